"""Caches over steps on a shipped model, each applied by a context manager that removes it again.

    with step_caches("dit", 50)["TaylorSeer 3"](pipe):
        pipe(["cat"], num_inference_steps=50)

A step cache computes some steps and guesses the others from them. They run their own code: that of diffusers on the
DiT, and the package DeepCache, unchanged, on the UNet. Each context begins with an empty cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from functools import cache, partial
from io import StringIO
from typing import Any

import torch
from diffusers.hooks.faster_cache import FasterCacheConfig, apply_faster_cache
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from catome_bench.models.pipeline import load_shipped
from catome_bench.names import Arch
from catome_bench.races.peers import first_network, import_peer

StepCache = Callable[[Any], AbstractContextManager[Any]]

INTERVALS = (2, 3, 4)
THRESHOLDS = (0.1, 0.2, 0.4)
# The first is the default of diffusers; between two steps of ten, residuals change more than it expects.
MAGNITUDES = (0.06, 0.12, 0.24)

# The parts of a block whose results are extrapolated; diffusers' default names fit no block of a DiT.
PARTS = (r"transformer_blocks\.\d+\.(attn1|ff)",)


def step_caches(arch: Arch, steps: int) -> Mapping[str, StepCache]:
    """The step caches for runs of `steps` steps of this architecture, by name, each with several settings."""
    if arch == "unet":
        return {f"DeepCache {interval}": partial(deep_cache, interval=interval) for interval in INTERVALS}
    first = {f"FirstBlock {threshold}": partial(first_block, threshold=threshold) for threshold in THRESHOLDS}
    taylor = {f"TaylorSeer {interval}": partial(taylor_seer, interval=interval) for interval in INTERVALS}
    magnitude = {
        f"MagCache {limit}": partial(mag_cache, arch=arch, threshold=limit, steps=steps) for limit in MAGNITUDES
    }
    faster = {f"FasterCache {interval}": partial(faster_cache, interval=interval) for interval in INTERVALS}
    return first | taylor | magnitude | faster


def first_block(model: Any, threshold: float) -> AbstractContextManager[None]:
    """FirstBlockCache: the other blocks are skipped where the first one has changed by less than `threshold`."""
    return _applied(model, apply_first_block_cache, FirstBlockCacheConfig(threshold=threshold))


def taylor_seer(model: Any, interval: int) -> AbstractContextManager[None]:
    """TaylorSeer, first order: one step of `interval` is computed, the others are extrapolated part by part."""
    config = TaylorSeerCacheConfig(
        cache_interval=interval, cache_identifiers=list(PARTS), taylor_factors_dtype=torch.float32
    )
    return _applied(model, apply_taylorseer_cache, config)


def mag_cache(model: Any, arch: Arch, threshold: float, steps: int) -> AbstractContextManager[None]:
    """MagCache: a step is skipped if the error that the growth of its residual predicts is below `threshold`."""
    config = MagCacheConfig(threshold=threshold, num_inference_steps=steps, mag_ratios=[*magnitude_ratios(arch, steps)])
    return _applied(model, apply_mag_cache, config)


@cache
def magnitude_ratios(arch: Arch, steps: int) -> tuple[float, ...]:
    """By what factor the residual of all blocks of a shipped DiT grows from step to step, in a small picture."""
    pipeline, printed = load_shipped(arch), StringIO()
    pipeline.set_progress_bar_config(disable=True)
    config = MagCacheConfig(calibrate=True, num_inference_steps=steps)
    # diffusers prints them, and keeps them nowhere.
    with _applied(pipeline, apply_mag_cache, config), redirect_stdout(printed):
        pipeline(["cat"], size=64, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
    return tuple(json.loads(re.findall(r"\[[\d., e+-]+\]", printed.getvalue())[-1]))


@contextmanager
def faster_cache(model: Any, interval: int) -> Iterator[None]:
    """FasterCache: one step of `interval` computes the unconditional half of the batch, and the others guess it."""
    present: list[int] = []

    def note_timestep(_: nn.Module, args: tuple[Tensor, Tensor], kwargs: dict[str, Any]) -> Any:
        sample, timestep = args
        present[:] = [int(timestep)]
        # Whatever is positional would be cut in half.
        return (sample,), kwargs | {"timestep": timestep}

    config = FasterCacheConfig(
        unconditional_batch_skip_range=interval,
        tensor_format="BCHW",
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=lambda: present[0],
        _unconditional_conditional_input_kwargs_identifiers=["class_labels"],
    )
    handle = first_network(model).register_forward_pre_hook(note_timestep, with_kwargs=True)
    try:
        with _applied(model, apply_faster_cache, config):
            yield
    finally:
        handle.remove()


@contextmanager
def deep_cache(model: Any, interval: int) -> Iterator[None]:
    """DeepCache: one step of `interval` is computed, and the others run the outermost blocks of the UNet only."""
    helper = import_peer("DeepCache", "DeepCache==0.1.1").DeepCacheSDHelper(pipe=model)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    with _restored(first_network(model)):
        helper.enable()
        yield


@contextmanager
def _applied(model: Any, apply: Callable[[nn.Module, Any], None], config: object) -> Iterator[None]:
    """A cache of diffusers, empty."""
    network: Any = first_network(model)
    with _restored(network):
        apply(network, config)
        with CacheMixin.cache_context(network, "both"):
            yield


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Afterwards every module has the `forward` that it had, and none of diffusers' hooks."""
    before = {module: vars(module).get("forward") for module in network.modules()}
    try:
        yield
    finally:
        for module, forward in before.items():
            for name in ("forward", "_diffusers_hook"):
                vars(module).pop(name, None)
            if forward is not None:
                vars(module)["forward"] = forward
