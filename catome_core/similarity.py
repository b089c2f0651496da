"""Unit vectors on demand and their cosines, in float32 whatever the dtype of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int

NORM_FLOOR = 1e-12


class UnitRows(NamedTuple):
    """Tokens as unit vectors, made when needed: no float32 copy of all tokens ever exists.

    Attributes:
        tokens: Any float dtype.
        scale: 1 / norm; 0 for a token with an entry that is not finite.
        prefix: Tokens in front of the grid.
        max_elements: Matching works on chunks of at most this many numbers, over the whole batch: 16 MiB in float32.
    """

    tokens: Float[Tensor, "batch tokens channels"]
    scale: Float32[Tensor, "batch tokens"]
    prefix: int
    max_elements: int

    @classmethod
    def of(cls, tokens: Float[Tensor, "batch tokens channels"], prefix: int, max_elements: int = 2**22) -> UnitRows:
        """A zero token stays zero, and so does one that is not finite."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=wide).float()
        scale = (1 / norms.clamp_min(NORM_FLOOR)).where(norms.isfinite(), 0)
        return cls(tokens, scale, prefix, max_elements)

    def __call__(self, positions: Int[Tensor, "..."]) -> Float32[Tensor, "batch ... channels"]:
        """Unit vectors of grid positions."""
        scale = self.scale[:, self.prefix + positions, None]
        return (self.tokens[:, self.prefix + positions].float() * scale).where(scale > 0, 0)

    def finite(self, positions: Int[Tensor, "..."]) -> Bool[Tensor, "batch ..."]:
        """Whether the tokens at these grid positions are finite."""
        return self.scale[:, self.prefix + positions] > 0


def cosines(
    unit: Float32[Tensor, "batch ... rows channels"], other: Float32[Tensor, "batch ... others channels"], shared: bool
) -> Float32[Tensor, "plans ... rows others"]:
    """Cosine of every row with every other row; `shared` averages them over the batch, to batch 1."""
    product = unit @ other.mT
    return product.mean(0, keepdim=True) if shared else product
