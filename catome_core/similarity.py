"""Unit vectors on demand and their cosines, in float32 whatever the dtype of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Tokens as unit vectors, made when needed: no float32 copy of all tokens ever exists.

    Attributes:
        tokens: Any float dtype.
        largest: The largest absolute value of every token, in float32 at least; NaN if it has one.
        prefix: Tokens in front of the grid.
        max_elements: Matching works on chunks of at most this many numbers, over the whole batch: 16 MiB in float32.
    """

    tokens: Float[Tensor, "batch tokens channels"]
    largest: Float[Tensor, "batch tokens"]
    prefix: int
    max_elements: int

    @classmethod
    def of(cls, tokens: Float[Tensor, "batch tokens channels"], prefix: int, max_elements: int = 2**22) -> UnitRows:
        """A zero token stays zero, and so does one that is not finite."""
        largest = tokens.new_zeros(tokens.shape[:2])
        if tokens.shape[2]:
            # Much faster on CPU than a norm of infinite order.
            largest = torch.maximum(tokens.amax(-1), -tokens.amin(-1))
        return cls(tokens, largest.to(torch.promote_types(tokens.dtype, torch.float32)), prefix, max_elements)

    def unit(self, positions: Int[Tensor, "..."]) -> Float32[Tensor, "batch ... channels"]:
        """Unit vectors of grid positions."""
        positions = self.prefix + positions
        # Scaled first, since the squares of large numbers are infinite and those of small ones zero. What is not finite
        # divides to NaN or zero, and so does a zero token.
        rows = (self.tokens[:, positions] / self.largest[:, positions, None]).float().nan_to_num(0)
        return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(1)

    def finite(self, positions: Int[Tensor, "..."]) -> Bool[Tensor, "batch ..."]:
        """Whether the tokens at these grid positions are finite."""
        return self.largest[:, self.prefix + positions].isfinite()


def cosines(
    unit: Float32[Tensor, "batch ... rows channels"], other: Float32[Tensor, "batch ... others channels"], shared: bool
) -> Float32[Tensor, "plans ... rows others"]:
    """Cosine of every row with every other row; `shared` averages them over the batch, to batch 1."""
    product = unit @ other.mT
    # Not `mean`, which is NaN for no samples.
    return product.sum(0, keepdim=True) / max(1, len(product)) if shared else product
