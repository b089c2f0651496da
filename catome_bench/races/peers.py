"""Other methods on the same network, each applied by a context manager that removes it again.

    with PEERS["tomesd"](network):
        network(image)

A peer takes a pipeline, or any module with diffusers' `BasicTransformerBlock`s whose first positional argument is an
image (batch, channels, height, width), and changes the blocks whose grid is the whole image. `tomesd` and `ca-tome` run
their own code: the packages' `apply_patch` and `remove_patch`, unchanged. A peer that cannot run raises
`ModuleNotFoundError` or `ValueError` with the reason, before anything is changed.

Only ca-tome depends on the step. It comes from a pipeline's scheduler, or from the caller, as with a session:

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

from catome_adapters.architectures.find import denoisers
from catome_bench.races.peer_steps import PeerSteps

# The peers' blocks were written for these; with any other, they silently leave out the norm's modulation.
SUPPORTED_NORMS = ("layer_norm", "ada_norm", "ada_norm_zero")
# Attributes that the peers' `remove_patch` leaves on the modules.
LEFT_BEHIND = ("_tome_info", "_ca_tome_info", "_cache_info", "inference_step")


@contextmanager
def tomesd(model: Any, ratio: float = 0.5) -> Iterator[None]:
    """The package tomesd 0.1.3: a fixed share of the tokens, matched anew at every step, random destinations."""
    with _patched(import_peer("tomesd", "tomesd==0.1.3"), first_network(model), ratio=ratio):
        yield


@contextmanager
def ca_tome(model: Any, threshold: float = 0.7) -> Iterator[PeerSteps]:
    """The package ca-tome 0.1.3: pairs above a threshold, kept between the checkpoints of its best configuration.

    Its checkpoints are step numbers, whatever the length of the run. The package never discards its pairs, so within
    one context a second picture starts with the pairs of the first.
    """
    package = import_peer("ca_tome", "--no-deps ca-tome==0.1.3")
    with _patched(package.patch, first_network(model), compute_on=package.CacheConf.CONFIG_3, r=threshold) as blocks:
        steps = PeerSteps(blocks)
        with steps.observing(getattr(model, "scheduler", None)):
            yield steps


@contextmanager
def todo(model: Any, stride: int = 2) -> Iterator[None]:
    """ToDo's idea (Smith et al. 2024): keys and values from every second row and column, all queries."""
    network, grid = first_network(model), [0, 0]
    patch = getattr(network, "patch_size", 1)

    def record_grid(module: nn.Module, args: tuple[Any, ...]) -> None:
        grid[:] = (side // patch for side in args[0].shape[-2:])

    def thin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        tokens: Tensor = args[0]
        if tokens.shape[1] != grid[0] * grid[1]:
            return None
        rows = rearrange(tokens, "b (h w) c -> b h w c", h=grid[0])[:, ::stride, ::stride]
        return args, kwargs | {"encoder_hidden_states": rows.flatten(1, 2)}

    handles = [network.register_forward_pre_hook(record_grid)]
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
    """Any network, as the pipeline that both packages expect: they go by the class's name and its `unet`."""

    def __init__(self, unet: nn.Module) -> None:
        self.unet = unet


def import_peer(name: str, requirement: str) -> ModuleType:
    """Import the package of another method.

    Raises:
        ModuleNotFoundError: If it is not installed, with the `requirement` that installs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ModuleNotFoundError(f"not installed: pip install {requirement}", name=name) from None


@contextmanager
def _patched(package: ModuleType, network: nn.Module, **options: Any) -> Iterator[list[BasicTransformerBlock]]:
    """Apply a package's own patch, and remove all of it afterwards."""
    blocks = _blocks(network)
    _check_norms(blocks)
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
        raise ValueError(f"{type(network).__name__} has no BasicTransformerBlock; peers support no other block")
    return blocks


def _check_norms(blocks: list[BasicTransformerBlock]) -> None:
    unknown = {block.norm_type for block in blocks} - set(SUPPORTED_NORMS)
    if unknown:
        raise ValueError(f"norm_type is {min(unknown)!r}; the peer's block supports only {', '.join(SUPPORTED_NORMS)}")


def first_network(model: Any) -> nn.Module:
    """The first denoising network of a pipeline, which is the only one that these packages patch."""
    return next(iter(denoisers(model).values()))
