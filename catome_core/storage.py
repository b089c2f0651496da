"""The static memory of one plan: what CUDA graphs replay from, and what no later plan moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from catome_core.grid import TokenGrid
from catome_core.matching import Match
from catome_core.planning import MergePlan, index_plan

if TYPE_CHECKING:
    from jaxtyping import Float32, Int


class PlanKey(NamedTuple):
    """What a stored plan is valid for.

    Attributes:
        batch: Number of samples.
        grid: The layout of the tokens.
        device: Where they are.
        dtype: Their format.
    """

    batch: int
    grid: TokenGrid
    device: torch.device
    dtype: torch.dtype


class PlanStorage(nn.Module):
    """Memory for one plan, its index, and the match and the destinations it was made from.

    Memory is for one slot per token, so that no later capacity moves a buffer; `slots` of them are in use. The buffers
    are not part of the state_dict. Index and token numbers are int64, the score is float32. `plans` is 1 for a plan
    that the whole batch shares, else the batch.

    Attributes:
        slots: Number of slots of the stored plan. A Python number, since it is the shape of the compiled code.
    """

    slot: Int[Tensor, "plans tokens"]
    size: Int[Tensor, "plans tokens"]
    anchor: Int[Tensor, "plans tokens"]
    rows: Int[Tensor, "batch*tokens"]
    offsets: Int[Tensor, "batch*tokens"]
    inverse: Int[Tensor, "batch*tokens"]
    score: Float32[Tensor, "plans sources"]
    target: Int[Tensor, "plans sources"]
    cell_offsets: Int[Tensor, "destinations"]
    destinations: Int[Tensor, "destinations"]

    def __init__(self) -> None:
        super().__init__()
        self.slots = 0
        for name in ("slot", "size", "anchor", "rows", "offsets", "inverse", "target", "cell_offsets", "destinations"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("score", torch.empty(0), persistent=False)

    def allocate(self, key: PlanKey, shared: bool) -> None:
        """Reserve new memory, all zero, for one plan of the batch (`shared`) or one plan of every sample."""
        batch, grid, device, _ = key
        plans = 1 if shared else batch

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        self.slot, self.size, self.anchor = (zeros(plans, grid.tokens) for _ in range(3))
        self.rows, self.offsets, self.inverse = (zeros(batch * grid.tokens) for _ in range(3))
        self.score = torch.zeros(plans, grid.sources, device=device)
        self.target = zeros(plans, grid.sources)
        self.cell_offsets, self.destinations = zeros(grid.destinations), zeros(grid.destinations)

    def write_match(self, match: Match, destinations: Int[Tensor, "destinations"]) -> None:
        """Store a match and the destinations it was made with."""
        self.score.copy_(match.score)
        self.target.copy_(match.target)
        self.destinations.copy_(destinations)

    def write(self, plan: MergePlan) -> None:
        """Store a plan of at most as many slots as there are tokens, with its index."""
        self.slots = slots = plan.size.shape[1]
        index = index_plan(plan, len(self.inverse) // self.slot.shape[1])
        self.slot.copy_(plan.slot)
        self.size[:, :slots].copy_(plan.size)
        self.anchor[:, :slots].copy_(plan.anchor)
        self.rows.copy_(index.rows)
        self.offsets[: len(index.offsets)].copy_(index.offsets)
        self.inverse.copy_(index.inverse)

    def own_memory(self) -> None:
        """Move every buffer to new memory.

        What a compiled graph allocates may belong to a CUDA graph, and what inference mode allocates cannot be
        updated outside it.
        """
        with torch.inference_mode(False):
            for name, buffer in self.named_buffers():
                setattr(self, name, buffer.clone())

    def extra_repr(self) -> str:
        """Shown by `print`."""
        return f"{self.slot.shape[1]} tokens, {self.slots} slots"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlanStorage:
        """A cast of the module must not round the score, which stays float32."""
        score = self.score
        super()._apply(fn, recurse)
        if self.score.dtype != score.dtype:
            self.score = score.to(self.slot.device)
        return self
