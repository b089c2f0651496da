"""Attention over a lattice of keys by hand, in networks that know nothing of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_adapters import find_sites
from catome_core import NearField, TokenGrid, attend_near_and_far, choose_destinations, dither_offsets, lattice_plan
from zoo.transformers import ARCHITECTURES
from zoo.unets import SD
from zoo.vits import VITS


@dataclass(frozen=True)
class Case:
    """A model, the size of a call, and the tokens of no grid among the keys of its attention."""

    model: Any
    size: tuple[int, ...]
    front: int = 0
    back: int = 0
    prefix: int = 0

    def grid(self, level: int) -> TokenGrid:
        if self.model is SD:
            return TokenGrid(tuple(side // level for side in self.size))
        shape = self.model.grid(self.size)
        return TokenGrid(shape, (1,) * (len(shape) - 2) + (2, 2), self.prefix)


CASES = {
    "SD": Case(SD, (16, 16)),
    "PixArt": Case(ARCHITECTURES["PixArt"], (16, 16)),
    "SD3": Case(ARCHITECTURES["SD3"], (16, 16), back=5),
    "Flux": Case(ARCHITECTURES["Flux"], (8, 8), front=5),
    "Flux, partial cells": Case(ARCHITECTURES["Flux"], (5, 7), front=5),
    "Wan": Case(ARCHITECTURES["Wan"], ARCHITECTURES["Wan"].sizes[0]),
    "Wan, partial cells": Case(ARCHITECTURES["Wan"], ARCHITECTURES["Wan"].sizes[1]),
}
VIT = Case(VITS["ViT"], (32, 32), prefix=1)
WIDE = {
    "SD": Case(SD, (16, 80)),
    "PixArt": Case(ARCHITECTURES["PixArt"], (8, 80)),
    "Flux": Case(ARCHITECTURES["Flux"], (4, 40), front=5),
}
"""Of more than one tile, so that a near field does not cover them."""


class ByHand(TorchFunctionMode):
    """The self-attention of every site sees one token of each cell; the sites' phases count up from `seed`."""

    def __init__(self, case: Case, network: nn.Module, *, step: int, seed: int, moving: bool, weighed: bool, near: Any):
        super().__init__()
        self.case, self.sites, self.step, self.seed = case, find_sites(network), step, seed
        self.moving, self.weighed, self.near = moving, weighed, near
        self.index, self.around = None, (0, 0)

    def enter(self, index: int, with_text: bool) -> None:
        self.index, self.around = index, (self.case.front, self.case.back) if with_text else (0, 0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not scaled_dot_product_attention or self.index is None:
            return func(*args, **(kwargs or {}))
        grid, place = self.case.grid(self.sites[self.index].level), self.seed + self.index + self.step
        self.index = None
        offsets = dither_offsets(grid, place) if self.moving else 0
        return self.attend(dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {}), grid, offsets)

    def attend(self, call: dict[str, Any], grid: TokenGrid, offsets: Any) -> Tensor:
        anchors, (front, back) = choose_destinations(grid, offsets), self.around
        if self.near is not None:
            return attend_near_and_far(call, anchors, NearField(grid, self.near, front, back))
        lead, end = front + grid.prefix, front + grid.tokens
        kept = torch.cat([torch.arange(lead), anchors + lead, torch.arange(end, end + back)])
        size = torch.cat([torch.ones(front), lattice_plan(grid).size[0], torch.ones(back)])
        assert call["key"].shape[2] == end + back and call.get("attn_mask") is None
        scores = call["query"] @ call["key"][:, :, kept].mT / call["query"].shape[-1] ** 0.5
        return (scores + (size.log() if self.weighed else 0)).softmax(-1) @ call["value"][:, :, kept]


@contextmanager
def by_hand(
    case: Case, network: nn.Module, step: int, *, seed=0, moving=True, weighed=True, near=None
) -> Iterator[None]:
    """Within this block the network attends as in this step."""
    mode = ByHand(case, network, step=step, seed=seed, moving=moving, weighed=weighed, near=near)
    handles = [
        module.register_forward_pre_hook(lambda *_, place=(index, module is site.attention): mode.enter(*place))
        for index, site in enumerate(mode.sites)
        for module in site.attentions
    ]
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


def steps_by_hand(case: Case, network: nn.Module, steps: Sequence[int], **options: Any) -> list[Tensor]:
    """Predictions of one sample at these steps."""
    predictions = []
    for step in steps:
        with by_hand(case, network, step, **options):
            predictions.append(case.model.call(network, size=case.size))
    return predictions
