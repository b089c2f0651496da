"""Compare what a pipeline draws without merging and with recipes: time, memory and fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catome_adapters import RECIPES, CalibratedRecipe, MergeRecipe
from catome_adapters.recipes.calibrated import Recipe
from catome_bench.comparison.calls import listed, plain
from catome_bench.comparison.compared import WITHOUT_LPIPS, Compared, check_gate
from catome_bench.comparison.comparison import UNMERGED, Comparison
from catome_bench.comparison.drawing import Call, device_of
from catome_bench.comparison.rows import ComparedRow
from catome_bench.measure.environment import describe_environment

__all__ = ["Compared", "compare"]

Named = Recipe | str
"""A recipe, or the name of one."""


def compare(
    pipe: Any,
    recipes: Named | Mapping[str, Named] | Sequence[Named],
    call: Call | Sequence[Call],
    *,
    seeds: Iterable[int] = range(4),
    gate: Mapping[str, float] | None = None,
    progress: bool = True,
) -> Compared:
    """Draw the same pictures without merging and with every recipe, and compare them.

    They are drawn one right after the other, so that the condition of the machine is the same for all; with a compiled
    pipeline one recipe after the other, since attaching compiles anew. Before that, each makes the first call once
    more: it compiles, and does not count.

    Args:
        pipe: A pipeline of diffusers, or whatever else `attach` takes; nothing may be attached to it.
        recipes: A recipe or the name of one; or several, in a list or by names of your own.
        call: Arguments of the pipeline, such as `{"prompt": "a cat", "num_inference_steps": 20}`; or a function that
            gets the pipeline and a seeded `torch.Generator` and returns pictures; or a list of these. Pictures are PIL
            images, arrays (..., height, width, channels) or tensors (..., channels, height, width), float in [0, 1] or
            uint8; the frames of a video are pictures.
        seeds: Of every call. Torch's own random numbers begin with them, too.
        gate: Floors for the medians of "psnr", in dB, and of "ssim", by which a recipe is kept or dropped.
        progress: Whether to show a bar.

    Returns:
        Figures and pictures; `print` shows a table and a sentence for each recipe.

    Raises:
        KeyError: If no recipe has this name.
        RuntimeError: If a session is attached to the pipeline.
        TypeError: If it has no network, or a call returns no pictures.
        ValueError: If there is nothing to compare, a recipe does not fit the pipeline, the gate has other names, or
            what is drawn is not finite. Whatever is raised, also by the pipeline, nothing is left attached.

    Examples:
        >>> from catome_bench.models import load_shipped
        >>> pipe = load_shipped()
        >>> pipe.set_progress_bar_config(disable=True)
        >>> call = {"classes": ["cat"], "size": 32, "num_inference_steps": 2}
        >>> compared = compare(pipe, ["close", "fast"], call, seeds=[0], progress=False)
        >>> [row.name for row in compared.rows]
        ['unmerged', 'close', 'fast']
    """
    gate = check_gate(gate or {})
    calls, seeds = listed(call), list(seeds)
    comparison = Comparison(pipe, _by_name(recipes), calls, seeds)
    samples = comparison.draw_all(progress)
    order = "in turn" if comparison.alternates else "one after the other, since the pipeline is compiled"
    return Compared(
        rows=tuple(
            ComparedRow.of(name, one, samples[name], samples[UNMERGED]) for name, one in comparison.variants.items()
        ),
        gate=gate,
        settings={"calls": [plain(one) for one in calls], "seeds": seeds, "order": order},
        machine=describe_environment(str(device_of(pipe))),
        notes=_notes(samples[UNMERGED][1].psnr),
    )


def _by_name(recipes: Named | Mapping[str, Named] | Sequence[Named]) -> dict[str, Recipe]:
    if isinstance(recipes, Mapping):
        return {name: _find(one) for name, one in recipes.items()}
    several = [recipes] if isinstance(recipes, str | MergeRecipe | CalibratedRecipe) else recipes
    names: dict[Any, str] = {recipe: name for name, recipe in RECIPES.items()}
    return {
        one if isinstance(one, str) else names.get(one, f"recipe {number}"): _find(one)
        for number, one in enumerate(several, 1)
    }


def _find(recipe: Named) -> Recipe:
    return RECIPES[recipe] if isinstance(recipe, str) else recipe


def _notes(apart: float) -> tuple[str, ...]:
    """What to know about the figures, if pictures of one seed are apart without merging, by this PSNR in dB."""
    strange = f"without merging, one seed drew two pictures that are {apart:.1f} dB apart: is its generator used?"
    return (WITHOUT_LPIPS,) if apart == float("inf") else (WITHOUT_LPIPS, strange)
