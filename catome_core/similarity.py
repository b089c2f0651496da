"""Unit vectors on demand and their cosines, in float32 whatever the dtype of the tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Matching works on pieces of at most this many numbers, the whole batch counted: 16 MiB in float32.
CHUNK = 2**22
NORM_FLOOR = 1e-12


class UnitRows(NamedTuple):
    """Tokens as unit vectors, made when asked for: no float32 copy of all tokens ever exists.

    Attributes:
        tokens: (batch, tokens, channels).
        scale: float32 (batch, tokens), 1 / norm; 0 for a token with an entry that is not finite.
        prefix: Tokens in front of the grid.
    """

    tokens: Tensor
    scale: Tensor
    prefix: int

    @classmethod
    def of(cls, tokens: Tensor, prefix: int) -> UnitRows:
        """A zero token stays zero, and so does one that is not finite."""
        wide = torch.promote_types(tokens.dtype, torch.float32)
        norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=wide).float()
        return cls(tokens, (1 / norms.clamp_min(NORM_FLOOR)).where(norms.isfinite(), 0), prefix)

    def __call__(self, positions: Tensor) -> Tensor:
        """Unit vectors float32 (batch, ..., channels) of grid positions (...)."""
        scale = self.scale[:, self.prefix + positions, None]
        return (self.tokens[:, self.prefix + positions].float() * scale).where(scale > 0, 0)

    def usable(self, positions: Tensor) -> Tensor:
        """Whether the tokens at these positions are finite: bool (batch, ...)."""
        return self.scale[:, self.prefix + positions] > 0


def compare(unit: Tensor, other: Tensor, shared: bool) -> Tensor:
    """Cosines (batch, ..., rows, other rows), averaged to batch 1 if `shared`."""
    cosines = unit @ other.mT
    return cosines.mean(0, keepdim=True) if shared else cosines
