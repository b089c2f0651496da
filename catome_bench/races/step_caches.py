"""Caches over steps on a shipped model, each applied by a context manager that removes it again.

    with step_caches("dit")["TaylorSeer 3"](pipe):
        pipe(["cat"])

A step cache computes some steps and guesses the others from them. They run their own code: that of diffusers on the
DiT, and the package DeepCache, unchanged, on the UNet. Each context begins with an empty cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.hooks.first_block_cache import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from diffusers.models.cache_utils import CacheMixin
from torch import nn

from catome_bench.names import Arch
from catome_bench.races.peers import first_network, import_peer

StepCache = Callable[[Any], AbstractContextManager[Any]]

INTERVALS = (2, 3, 4)
THRESHOLDS = (0.1, 0.2, 0.4)

# The parts of a block whose results are extrapolated; diffusers' default names fit no block of a DiT.
PARTS = (r"transformer_blocks\.\d+\.(attn1|ff)",)


def step_caches(arch: Arch) -> Mapping[str, StepCache]:
    """The step caches for this architecture, by name, each with several settings."""
    if arch == "unet":
        return {f"DeepCache {interval}": partial(deep_cache, interval=interval) for interval in INTERVALS}
    first = {f"FirstBlock {threshold}": partial(first_block, threshold=threshold) for threshold in THRESHOLDS}
    taylor = {f"TaylorSeer {interval}": partial(taylor_seer, interval=interval) for interval in INTERVALS}
    return first | taylor


@contextmanager
def first_block(model: Any, threshold: float) -> Iterator[None]:
    """FirstBlockCache: the other blocks are skipped where the first one has changed by less than `threshold`."""
    network: Any = first_network(model)
    with _restored(network):
        apply_first_block_cache(network, FirstBlockCacheConfig(threshold=threshold))
        with CacheMixin.cache_context(network, "both"):
            yield


@contextmanager
def taylor_seer(model: Any, interval: int) -> Iterator[None]:
    """TaylorSeer, first order: one step of `interval` is computed, the others are extrapolated part by part."""
    network: Any = first_network(model)
    config = TaylorSeerCacheConfig(
        cache_interval=interval, cache_identifiers=list(PARTS), taylor_factors_dtype=torch.float32
    )
    with _restored(network):
        apply_taylorseer_cache(network, config)
        with CacheMixin.cache_context(network, "both"):
            yield


@contextmanager
def deep_cache(model: Any, interval: int) -> Iterator[None]:
    """DeepCache: one step of `interval` is computed, and the others run the outermost blocks of the UNet only."""
    helper = import_peer("DeepCache", "DeepCache==0.1.1").DeepCacheSDHelper(pipe=model)
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    with _restored(first_network(model)):
        helper.enable()
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
