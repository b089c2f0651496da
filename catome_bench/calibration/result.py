"""What came of a calibration: the recipe, how it was chosen, and what it does on other pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catome_adapters.recipes.calibrated import CalibratedRecipe
from catome_bench.calibration.damage import Effect
from catome_bench.calibration.goal import Goal, Outcome, psnr_of, speedup_of
from catome_bench.calibration.measure import Found
from catome_bench.calibration.pairs import mean_distance, neighbors
from catome_bench.comparison.compared import Compared
from catome_bench.comparison.rows import ComparedRow
from catome_bench.files import whole_file
from catome_bench.measure.spread import for_json
from catome_bench.views.calibration import render_choice
from catome_bench.views.comparison import to_text
from catome_bench.views.speed import pace
from catome_core import CheckpointSchedule

NAME = "calibrated"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The settings that are best for a model; `str()` is a table of them, and what they do on other pictures.

    Attributes:
        recipe: A recipe for each site; sites that it does not name are left whole.
        compared: The recipe beside named ones, on pictures that were not used to choose it.
        found: Everything that was measured before the choice.
        choice: The settings that were chosen.
    """

    recipe: CalibratedRecipe
    compared: Compared
    found: Found
    choice: tuple[Effect, ...]

    @property
    def damage(self) -> tuple[Effect, ...]:
        """What every setting does by itself."""
        return tuple(self.found.effects)

    @property
    def schedule(self) -> CheckpointSchedule | None:
        """The checkpoints of everything that is matched; None if nothing can be."""
        return self.found.schedule

    @property
    def jaccard(self) -> dict[str, list[float]]:
        """For each layer, how far the pairs of every step are from those of the step before (paper, Fig. 4)."""
        return {name: neighbors(layer) for name, layer in self.found.layers.items()}

    @property
    def similarity(self) -> dict[str, list[tuple[float, ...]]]:
        """For each layer and step: the step, then minimum, quartiles and maximum of the similarity (paper, Fig. 2)."""
        return {
            name: [(step, *row) for step, row in zip(layer.steps, layer.similarity.tolist(), strict=True)]
            for name, layer in self.found.layers.items()
        }

    @property
    def left_out(self) -> dict[str, str]:
        """The settings that do not fit the model, with the reasons."""
        refusals = self.found.refusals.items()
        return {f"{group}, {name}": reason for group, some in refusals for name, reason in some.items()}

    @property
    def sentence(self) -> str:
        """What the recipe does on pictures that were not used to choose it, and whether the goal was reached."""
        own, *others = map(_describe, self.compared.recipes)
        beside = f" ({'; '.join(others)})" if others else ""
        fit = self.recipe.fit
        missed = f". No choice reaches {fit['goal']} on the pictures of the fit: this is the closest"
        return f"on pictures that were not used to choose it, {own}{beside}{'' if fit['met'] else missed}"

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON; None stands for the PSNR of equal pictures."""
        layers = self.found.layers
        schedule = self.schedule and {"steps": self.schedule.steps, "of": self.schedule.of}
        return {
            "fit": dict(self.recipe.fit),
            "groups": {name: [site.name for site in sites] for name, sites in self.found.groups.items()},
            "choice": [_row(one) for one in self.choice],
            "damage": [_row(one) for one in self.damage],
            "left_out": self.left_out,
            "schedule": schedule,
            "jaccard": self.jaccard,
            "similarity": self.similarity,
            "distance": mean_distance(layers).tolist() if layers else [],
            "compared": self.compared.to_dict(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the recipe, and all figures to a file beside it: `recipe-calibration.json` for `recipe.json`.

        A file that is there is replaced, as a whole or not at all; the recipe comes last.

        Returns:
            The path of the figures.

        Raises:
            OSError: If a file cannot be written.
        """
        figures = figures_file(Path(path))
        with whole_file(figures) as part:
            part.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        self.recipe.save(path)
        return figures

    def __str__(self) -> str:
        return "\n".join([to_text(render_choice(self.to_dict())), *_first_refusal(self.left_out), self.sentence])


def figures_file(recipe: Path) -> Path:
    """Where all figures of a recipe are."""
    return recipe.with_name(f"{recipe.stem}-calibration.json")


def describe_fit(goal: Goal, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What was to be reached, predicted and measured on the pictures of the fit, for JSON."""
    error, saved, _ = outcome.choice
    return {
        "goal": str(goal),
        "met": goal.is_met(outcome),
        "predicted": {"psnr": for_json(psnr_of(error)), "speedup": speedup_of(saved, seconds)},
        "measured": {"psnr": for_json(psnr_of(outcome.error)), "speedup": outcome.speedup},
    }


def describe_held_out(compared: Compared) -> dict[str, Any]:
    """What the recipe and the named ones do on other pictures: medians, for JSON."""
    figures = {
        row.name: {
            "psnr": for_json(row.psnr.median) if row.psnr else None,
            "ssim": row.ssim.median if row.ssim else None,
            "speedup": row.speedup.median,
        }
        for row in compared.recipes
    }
    return {"seeds": compared.settings["seeds"], **figures}


def _first_refusal(left_out: Mapping[str, str]) -> list[str]:
    """One line: they mostly have one reason."""
    lines = [f"left out, since it does not fit: {name}: {reason}" for name, reason in left_out.items()]
    return [f"{lines[0]}{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}"] if lines else []


def _row(effect: Effect) -> dict[str, Any]:
    return effect._asdict() | {"psnr": for_json(psnr_of(effect.error))}


def _describe(row: ComparedRow) -> str:
    psnr = row.psnr.median if row.psnr else math.inf
    likeness = f"at {psnr:.1f} dB" if math.isfinite(psnr) else "with the same pictures"
    return f"{row.name} is {pace(row.speedup.median)} {likeness}"
