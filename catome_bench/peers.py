"""Peers beside us: what others do to the same network, put on by a context manager and taken off again at its end.

    with PEERS["tomesd"](network):
        network(image)

A peer takes a pipeline, or any module called with an image (batch, channels, height, width) as its first positional
argument that holds diffusers' `BasicTransformerBlock`s, and touches the blocks whose grid is the whole image.
`tomesd` and `ca-tome` run their own code: the packages' `apply_patch` and `remove_patch`, unchanged. What cannot run
raises `ModuleNotFoundError` or `ValueError` with the reason, before anything is changed.

Only ca-tome knows steps. A pipeline's scheduler tells them; otherwise the caller may, as with a session:

    with PEERS["ca-tome"](network) as steps:
        network(image)             # the first call matches
        steps.begin_step(1, 50)    # from 0
        network(image)             # reuses the pairs; steps 7, 10, 12, ... match anew
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from itertools import product
from types import MappingProxyType, ModuleType
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import Tensor, nn

from catome_adapters.clock import SchedulerClock
from catome_adapters.surveying import denoisers

# Their blocks were written for these; with another they would leave the norm's modulation out and say nothing.
KNOWN_NORMS = ("layer_norm", "ada_norm", "ada_norm_zero")
# Attributes that their `remove_patch` leaves on the modules.
LEFT_BEHIND = ("_tome_info", "_ca_tome_info", "_cache_info", "inference_step")


class PeerSteps:
    """Tells ca-tome's blocks which step comes; it counts from 1."""

    def __init__(self, blocks: list[BasicTransformerBlock]) -> None:
        self.blocks = blocks
        self.begin_step(0, 1)

    def begin_step(self, step: int, total: int) -> None:
        """Step `step`, from 0, comes next."""
        for block in self.blocks:
            block.inference_step = step + 1

    def begin_run(self, total: int) -> None:
        """A run begins; called by the scheduler."""
        self.begin_step(0, total)

    def begin_at(self, step: int, total: int) -> None:
        """The run begins at this step; called by the scheduler."""
        self.begin_step(step, total)

    def end_step(self, step: int, total: int) -> None:
        """A step is done; called by the scheduler."""
        self.begin_step(step + 1, total)


@contextmanager
def tomesd(model: Any, ratio: float = 0.5) -> Iterator[None]:
    """The package tomesd 0.1.3: a fixed share of the tokens, matched anew at every step, random destinations."""
    with _patched(_package("tomesd", "tomesd==0.1.3"), _network(model), ratio=ratio):
        yield


@contextmanager
def ca_tome(model: Any, threshold: float = 0.7) -> Iterator[PeerSteps]:
    """The package ca-tome 0.1.3: pairs above a threshold, kept between the checkpoints of its best configuration.

    Its checkpoints are numbers of steps, whatever the length of the run. It never forgets its pairs, so a context
    that draws two pictures starts the second with the pairs of the first, as the package does.
    """
    package = _package("ca_tome", "--no-deps ca-tome==0.1.3")
    with _patched(package.patch, _network(model), compute_on=package.CacheConf.CONFIG_3, r=threshold) as blocks:
        steps, scheduler = PeerSteps(blocks), getattr(model, "scheduler", None)
        clock = None if scheduler is None else SchedulerClock.listen(scheduler, steps)
        try:
            yield steps
        finally:
            if clock is not None:
                clock.stop(steps)


@contextmanager
def todo(model: Any, stride: int = 2) -> Iterator[None]:
    """ToDo's idea (Smith et al. 2024): keys and values from every second row and column, queries whole."""
    network, grid = _network(model), [0, 0]
    patch = getattr(network, "patch_size", 1)

    def see_grid(module: nn.Module, args: tuple[Any, ...]) -> None:
        grid[:] = (side // patch for side in args[0].shape[-2:])

    def thin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        tokens: Tensor = args[0]
        if tokens.shape[1] != grid[0] * grid[1]:
            return None
        rows = rearrange(tokens, "b (h w) c -> b h w c", h=grid[0])[:, ::stride, ::stride]
        return args, kwargs | {"encoder_hidden_states": rows.flatten(1, 2)}

    handles = [network.register_forward_pre_hook(see_grid)]
    handles += [block.attn1.register_forward_pre_hook(thin, with_kwargs=True) for block in _blocks(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


PEERS: Mapping[str, Callable[..., AbstractContextManager[Any]]] = MappingProxyType(
    {"tomesd": tomesd, "ca-tome": ca_tome, "ToDo": todo}
)
"""Each with its own defaults: tomesd at 50 %, ca-tome at t = 0.7 with config_3, ToDo with a quarter of the keys."""


class DiffusionPipeline:
    """Both packages know a pipeline by the name of its class and by its `unet`: in this one, any network passes."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


@contextmanager
def _patched(package: ModuleType, network: nn.Module, **options: Any) -> Iterator[list[BasicTransformerBlock]]:
    """A package's own patch, taken off without a trace."""
    blocks = _blocks(network)
    _refuse_unknown_norms(blocks)
    package.apply_patch(DiffusionPipeline(network), **options)
    try:
        yield blocks
    finally:
        package.remove_patch(network)
        for module, name in product([network, *blocks], LEFT_BEHIND):
            vars(module).pop(name, None)


def _blocks(network: nn.Module) -> list[BasicTransformerBlock]:
    blocks = [module for module in network.modules() if isinstance(module, BasicTransformerBlock)]
    if not blocks:
        raise ValueError(f"{type(network).__name__} has no BasicTransformerBlock; peers know no other block")
    return blocks


def _refuse_unknown_norms(blocks: list[BasicTransformerBlock]) -> None:
    unknown = {block.norm_type for block in blocks} - set(KNOWN_NORMS)
    if unknown:
        raise ValueError(f"norm_type is {min(unknown)!r}; this peer's own block knows only {', '.join(KNOWN_NORMS)}")


def _package(name: str, requirement: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"not installed: pip install {requirement}", name=name) from None


def _network(model: Any) -> nn.Module:
    """The one network that these packages know."""
    return next(iter(denoisers(model).values()))
