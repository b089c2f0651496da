"""The node "CA-ToMe": a clone of the model whose self-attention sees fewer tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .run import Run, restore
from .settings import SHARES, Settings, choose_recipe, fitting_recipes

KEY = "catome"
"""Where the clone's `transformer_options` have the settings, and in a run the run."""

NEEDS = "ComfyUI 0.3.30 or newer"


class CaTome:
    """Merges tokens in the self-attention of a UNet (Stable Diffusion 1 and 2, SDXL, SVD)."""

    CATEGORY = "model_patches/unet"
    DESCRIPTION = "Faster UNets at large sizes: self-attention sees fewer tokens. Bypass the node to compare."
    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - the host's name
        """The inputs, as the host wants them."""
        percent = {"min": 0.0, "max": 1.0, "step": 0.01}
        return {
            "required": {
                "model": ("MODEL",),
                "recipe": (fitting_recipes(), {"default": "default"}),
                "share": ([*SHARES], {"tooltip": "Share of the tokens that self-attention sees."}),
                "min_tokens": ("INT", {"default": 2048, "min": 4, "max": 2**20, "tooltip": "Fewer are left alone."}),
                "start_percent": ("FLOAT", {"default": 0.0, **percent}),
                "end_percent": ("FLOAT", {"default": 1.0, **percent}),
            }
        }

    def patch(
        self, model: Any, recipe: str, share: str, min_tokens: int, start_percent: float, end_percent: float
    ) -> tuple[Any]:
        """A clone of the model that merges tokens; the model itself stays as it is.

        A second node on the clone replaces the settings of the first.

        Raises:
            RuntimeError: If the host is too old.
            TypeError: If the model is no UNet.
            ValueError: If no part of the sampling is between the percents.
        """
        outer_sample, calc_cond_batch = _wrapper_types()
        _refuse_transformers(model)
        settings = Settings(choose_recipe(recipe, share), min_tokens, start_percent, end_percent)
        clone = model.clone()
        options = clone.model_options["transformer_options"]
        if KEY not in options:
            clone.add_wrapper_with_key(outer_sample, KEY, sample)
            clone.add_wrapper_with_key(calc_cond_batch, KEY, evaluate)
            # A run is plain Python objects, of which compiled code with graph breaks may lose a change.
            clone.set_model_attn1_patch(torch.compiler.disable(before_attention))
            clone.set_model_attn1_output_patch(torch.compiler.disable(after_attention))
        options[KEY] = settings
        return (clone,)


# These have no state of their own: that of a run is in the run's `transformer_options`, and goes with them.


def sample(executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Around a sampling run, which is a new one whatever has happened to the last."""
    guider = executor.class_obj
    options = guider.model_options["transformer_options"]
    settings = options[KEY]
    run = options[KEY] = Run(settings, sigmas.tolist(), guider.model_patcher.get_model_object("model_sampling"))
    try:
        result = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        run.look()
        return result
    finally:
        options[KEY] = settings


def evaluate(executor: Any, model: Any, conds: Any, x: Any, timestep: Tensor, model_options: dict[str, Any]) -> Any:
    """Around an evaluation of the network, in which conds may be one batch or several."""
    options = model_options["transformer_options"]
    run = options.get(KEY)
    if isinstance(run, Run):
        run.begin(float(timestep.flatten()[0]), options.get("patches_replace", {}).get("attn1", {}))
    return executor(model, conds, x, timestep, model_options)


def before_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Merge, in the part of a run in which tokens merge."""
    run = extra_options.get(KEY)
    return run.merge(q, k, v, extra_options) if isinstance(run, Run) and run.merging else (q, k, v)


def after_attention(out: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Unmerge what has merged."""
    return restore(out, extra_options)


def _wrapper_types() -> tuple[str, str]:
    try:
        from comfy.patcher_extension import WrappersMP  # pyright: ignore[reportMissingImports]

        return WrappersMP.OUTER_SAMPLE, WrappersMP.CALC_COND_BATCH
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"CA-ToMe needs {NEEDS}, whose model patches have wrappers: {error}. Update it.") from error


def _refuse_transformers(model: Any) -> None:
    """The host calls patches of self-attention, before its projections, in UNets only."""
    network = model.get_model_object("diffusion_model")
    if not all(hasattr(network, part) for part in ("input_blocks", "middle_block", "output_blocks")):
        raise TypeError(
            f"CA-ToMe: the model is a {type(network).__name__}, and the node works with UNets only (Stable Diffusion 1 "
            "and 2, SDXL, SVD), since ComfyUI has no patch for keys in other networks; for Flux, Stable Diffusion 3 "
            "and Wan use catome with diffusers, or remove the node"
        )
