"""Keys of attention on a lattice: one token of every cell, and in every step another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from catome_core import checks
from catome_core.attention.field import NearField
from catome_core.calls import CallMemory, has_values, is_captured, refuse_jit_trace
from catome_core.dither import dither_offsets
from catome_core.grid import TokenGrid, cell_extents, choose_destinations, ravel, unravel
from catome_core.matching import check_tokens
from catome_core.planning import MergePlan
from catome_core.plans import extend

if TYPE_CHECKING:
    from jaxtyping import Int


@dataclass(frozen=True)
class Lattice:
    """Which keys attention sees: the key and value of one token in every cell of the grid. Nothing is matched.

    Tokens near each other have similar keys, so a lattice is a fair sample of the softmax's sum. Where it moves from
    step to step, the errors of the steps undo each other, as in dithering.

    Args:
        moving: The anchors move at every step, and neighboring cells have them in different places: see
            `dither_offsets`. False: always the top-left token of every cell (ToDo, arXiv 2402.13573).
        near: Attention sees every token of the query's surroundings instead, this many cells around the tile that the
            query lies in (`NearField`), and the lattice beyond. None: the lattice alone. "auto" leaves it to `attach`.

    Raises:
        TypeError: If a value has another type.
        ValueError: If `near` is negative.

    Examples:
        >>> Lattice()
        Lattice(moving=True, near=None)
    """

    moving: bool = True
    near: int | Literal["auto"] | None = None

    adapts: ClassVar[bool] = False
    """Whether the data decides the number of keys."""
    pads: ClassVar[bool] = False
    """Whether slots may be empty."""

    def __post_init__(self) -> None:
        checks.flag("moving", self.moving)
        if self.near is not None and self.near != "auto":
            expected = "a number of cells from 0, 'auto', or None: the lattice alone"
            object.__setattr__(self, "near", checks.integer("near", self.near, expected, least=0))

    def field(self, grid: TokenGrid, front: int = 0, back: int = 0) -> NearField | None:
        """The near field on a grid with `front` tokens before it and `back` behind; None if there is none.

        Raises:
            ValueError: If `near` is "auto", since it is unknown what network this is for.

        Examples:
            >>> Lattice(near=1).field(TokenGrid((64, 64)))
            NearField(grid=TokenGrid(shape=(64, 64), stride=(2, 2), prefix=0), near=1, front=0, back=0, tile=None)
        """
        if self.near == "auto":
            raise ValueError("near is 'auto', which only attach can decide; give a number of cells, or None")
        return None if self.near is None else NearField(grid, self.near, front, back)


def lattice_plan(
    grid: TokenGrid, offsets: Int[Tensor, "destinations"] | int = 0, *, device: torch.device | str | None = None
) -> MergePlan:
    """The plan in which every cell is one slot, whose anchor is one of its tokens: it follows from the grid alone.

    Args:
        grid: The layout; its stride is the size of the cells.
        offsets: Which token of each cell is the anchor, as for `choose_destinations`.
        device: Of the result; by default that of `offsets`.

    Returns:
        A plan of batch 1, which serves any batch. Its slots are the prefix tokens, then the cells.

    Examples:
        >>> plan = lattice_plan(TokenGrid((2, 5)), 3)
        >>> plan.slot.tolist(), plan.size.tolist(), plan.anchor.tolist()
        ([[0, 0, 1, 1, 2, 0, 0, 1, 1, 2]], [[4, 4, 2]], [[6, 8, 9]])
    """
    anchors = choose_destinations(grid, offsets, device=device)
    tokens = unravel(grid.shape, torch.arange(grid.area, device=anchors.device))
    cells = ravel(grid.cells, [coordinate // stride for coordinate, stride in zip(tokens, grid.strides, strict=True)])
    each = unravel(grid.cells, torch.arange(grid.destinations, device=anchors.device))
    size = torch.stack(cell_extents(grid, each)).prod(0)
    return extend(MergePlan(cells[None], size[None], anchors[None]), front=grid.prefix)


class MovingLattice(nn.Module):
    """The lattice of one layer, which knows the step: one graph for all steps, and nothing is read from the device.

    Args:
        lattice: What attention sees.
        phase: The step that the first one counts as. Another one for every layer, so that their errors differ.
        device: Of the step, which is the tokens' device.

    Attributes:
        step: The step, phase included, on the device: compiled code would be another one for every Python number.
        turn: The same as a Python number; the step is made from it again where the tokens are on another device.

    Examples:
        >>> lattice, tokens, grid = MovingLattice(Lattice()), torch.randn(1, 16, 8), TokenGrid((4, 4))
        >>> lattice(tokens, grid).anchor.tolist()
        [[0, 7, 13, 11]]
        >>> lattice.advance()
        >>> lattice(tokens, grid).anchor.tolist()
        [[5, 3, 9, 14]]
    """

    step: Int[Tensor, "1"]

    def __init__(self, lattice: Lattice, phase: int = 0, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.lattice, self.phase = lattice, checks.integer("phase", phase, "the number of a step")
        self.turn, self.calls = self.phase, CallMemory[MergePlan]()
        self._make_step(torch.empty(0, device=device).device)

    def forward(self, tokens: Tensor, grid: TokenGrid) -> MergePlan:
        """The plan of this step for tokens (batch, tokens, channels), which only give its device.

        A call that gradient checkpointing repeats with the same tensor has the same plan.

        Raises:
            ValueError: If the tokens do not fit the grid.
            RuntimeError: In `torch.jit.trace`, or if a call is repeated with another tensor.
        """
        check_tokens(tokens, grid)
        if torch.compiler.is_compiling():
            return _plan_at(self.lattice, grid, self.step.to(tokens.device))
        refuse_jit_trace()
        return self.calls.decide(tokens, lambda: self._plan(tokens, grid), "the lattice")

    def advance(self) -> None:
        """Before a step: move on. Not in compiled code."""
        self.move_to(self.turn - self.phase + 1)

    def move_to(self, step: int) -> None:
        """Before a step whose number is known, from 0. Not in compiled code."""
        self.turn = self.phase + step
        self.step.fill_(self.turn)

    def reset(self) -> None:
        """Begin with the first step again."""
        self.move_to(0)

    def _plan(self, tokens: Tensor, grid: TokenGrid) -> MergePlan:
        if not has_values(tokens) or is_captured(tokens):
            return _plan_at(self.lattice, grid, self.step.to(tokens.device))
        if self.step.device != tokens.device:
            self._make_step(tokens.device)
        plan, anchors = _all_plans(self.lattice, grid, tokens.device)
        return plan._replace(anchor=anchors.index_select(0, self.step % len(anchors)))

    def _make_step(self, device: torch.device) -> None:
        # Offloaded weights are on meta, where a number has no value; one made in inference mode could not move on.
        with torch.inference_mode(False):
            step = torch.full((1,), self.turn, device="cpu" if device.type == "meta" else device)
        self.register_buffer("step", step, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MovingLattice:
        """A move must not lose the step, as `to_empty` would, nor change it needlessly: a CUDA graph reads this one."""
        before = self.step
        super()._apply(fn, recurse)
        if self.step is not before:
            self._make_step(self.step.device)
        return self


def _plan_at(lattice: Lattice, grid: TokenGrid, step: Tensor) -> MergePlan:
    return lattice_plan(grid, dither_offsets(grid, step) if lattice.moving else 0, device=step.device)


@lru_cache(maxsize=64)
def _all_plans(lattice: Lattice, grid: TokenGrid, device: torch.device) -> tuple[MergePlan, Int[Tensor, "steps slots"]]:
    """The plan, and its anchors at every step."""
    # What inference mode makes could not be used outside it.
    with torch.inference_mode(False):
        if not lattice.moving:
            plan = lattice_plan(grid, device=device)
            return plan, plan.anchor
        steps = torch.arange(prod(grid.strides), device=device)
        offsets = dither_offsets(grid, steps[:, None])
        plan, anchors = lattice_plan(grid, offsets[0]), grid.prefix + choose_destinations(grid, offsets)
        prefix = plan.anchor[:, : grid.prefix].expand(len(steps), -1)
        return plan, torch.cat([prefix, anchors], 1)
