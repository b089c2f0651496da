"""From tokens to the best destination of every source (paper, III-A)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from catome_core.grid import TokenGrid, choose_destinations, flatten, source_positions, unflatten

# The similarity matrix exists in pieces of at most this many numbers per sample: 16 MiB in float32.
CHUNK = 2**22
NORM_FLOOR = 1e-12


class Match(NamedTuple):
    """The best destination of every source, sources in raster order.

    Attributes:
        score: float32 (batch, sources), cosine similarity in [-1, 1].
        target: int64 (batch, sources), index of the destination, 0 to destinations - 1.
    """

    score: Tensor
    target: Tensor


def match_tokens(
    tokens: Tensor,
    grid: TokenGrid,
    *,
    radius: int | None = None,
    shared: bool = False,
    destinations: Tensor | None = None,
) -> Match:
    """Find the most similar destination of every source token.

    Similarity is the cosine, accumulated in float32 whatever the dtype of `tokens`, each sample by itself. A zero token
    has similarity 0 with everything; a token with a NaN or infinite entry is never more similar than -1.

    Args:
        tokens: (batch, tokens, channels), any float dtype.
        grid: Their layout.
        radius: Look only at destinations of cells at most so many cells away in each dimension; None looks everywhere.
        shared: One match for the whole batch, from the similarity averaged over it.
        destinations: int64 (destinations,) from `choose_destinations`; None means top-left.

    Returns:
        The `Match`, with batch 1 if `shared`. Among equal similarities the first destination wins.

    Raises:
        ValueError: If `tokens` does not fit `grid`.

    Examples:
        >>> tokens = torch.tensor([[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0]]])
        >>> match_tokens(tokens, TokenGrid((1, 4)))
        Match(score=tensor([[0.8000, 1.0000]]), target=tensor([[0, 1]]))
    """
    check_tokens(tokens, grid)
    check_radius(radius)
    if destinations is None:
        destinations = choose_destinations(grid, device=tokens.device)
    # Autocast would take the matrix product back to half precision.
    with torch.autocast(tokens.device.type, enabled=False):
        return _match(tokens, grid, radius, shared, destinations)


def _match(tokens: Tensor, grid: TokenGrid, radius: int | None, shared: bool, destinations: Tensor) -> Match:
    sources = source_positions(grid, destinations)
    wide = torch.promote_types(tokens.dtype, torch.float32)
    norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=wide).float()
    finite = norms.isfinite()
    scale = (1 / norms.clamp_min(NORM_FLOOR)).where(finite, 0)
    rows = _Rows(tokens, scale, grid.prefix)
    if radius is None:
        best = _match_everywhere(rows, sources, destinations, shared)
    else:
        best = _match_nearby(rows, grid, sources, destinations, radius, shared)
    usable = finite.all(0, keepdim=True) if shared else finite
    usable = usable[:, grid.prefix :]
    both = usable[:, sources] & usable[:, destinations].gather(1, best.target)
    return Match(best.score.clamp(-1, 1).where(both, -1), best.target)


class _Rows(NamedTuple):
    """Unit vectors on demand: no float32 copy of all tokens ever exists."""

    tokens: Tensor
    scale: Tensor
    prefix: int

    def __call__(self, positions: Tensor) -> Tensor:
        scale = self.scale[:, self.prefix + positions, None]
        return (self.tokens[:, self.prefix + positions].float() * scale).where(scale > 0, 0)


def _match_everywhere(rows: _Rows, sources: Tensor, destinations: Tensor, shared: bool) -> Match:
    columns = rows(destinations).transpose(1, 2)
    chunks = _chunks(sources, CHUNK // len(destinations))
    pieces = [Match(*_mean_if(shared, rows(chunk) @ columns).max(-1)) for chunk in chunks]
    return _join(pieces, rows, shared)


def _match_nearby(
    rows: _Rows, grid: TokenGrid, sources: Tensor, destinations: Tensor, radius: int, shared: bool
) -> Match:
    """Walk over the window one neighbouring cell at a time: time and memory grow with tokens x window."""
    columns = rows(destinations)
    pieces = []
    for chunk in _chunks(sources, CHUNK // rows.tokens.shape[-1]):
        unit = rows(chunk)
        home = unflatten(grid.shape, chunk) // torch.tensor(grid.steps, device=chunk.device)
        pieces.append(_best_of_window(unit, columns, grid, home, radius, shared))
    return _join(pieces, rows, shared)


def _best_of_window(unit: Tensor, columns: Tensor, grid: TokenGrid, home: Tensor, radius: int, shared: bool) -> Match:
    limits = torch.tensor(grid.cells, device=home.device)
    score = unit.new_full((1 if shared else len(unit), len(home)), -torch.inf)
    target = torch.zeros_like(score, dtype=torch.int64)
    reach = [min(radius, cells - 1) for cells in grid.cells]
    for offset in product(*(range(-far, far + 1) for far in reach)):
        cell = home + torch.tensor(offset, device=home.device)
        inside = ((cell >= 0) & (cell < limits)).all(-1)
        index = flatten(grid.cells, cell.clamp_min(0).minimum(limits - 1))
        similarity = _mean_if(shared, (unit * columns[:, index]).sum(-1))
        better = inside & (similarity > score)
        score, target = similarity.where(better, score), index.where(better, target)
    return Match(score, target)


def _chunks(positions: Tensor, rows: int) -> Iterator[Tensor]:
    return iter(positions.split(max(1, rows)))


def _mean_if(shared: bool, similarity: Tensor) -> Tensor:
    return similarity.mean(0, keepdim=True) if shared else similarity


def _join(pieces: list[Match], rows: _Rows, shared: bool) -> Match:
    if not pieces:
        batch = 1 if shared else len(rows.tokens)
        return Match(rows.scale.new_empty(batch, 0), rows.scale.new_empty(batch, 0, dtype=torch.int64))
    return Match(torch.cat([piece.score for piece in pieces], 1), torch.cat([piece.target for piece in pieces], 1))


def check_radius(radius: int | None) -> None:
    """Raise ValueError unless the radius is a number of cells or None."""
    if radius is not None and radius < 0:
        raise ValueError(f"radius is {radius}; expected 0 (own cell), a number of cells, or None (everywhere)")


def check_tokens(tokens: Tensor, grid: TokenGrid) -> None:
    """Raise unless `tokens` is (batch, grid.tokens, channels) and floating point; compiled code is not checked."""
    if torch.compiler.is_compiling():
        return
    if tokens.ndim != 3 or not tokens.is_floating_point():
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} and dtype {tokens.dtype}; "
            "expected a float tensor (batch, tokens, channels)"
        )
    if tokens.shape[1] != grid.tokens:
        raise ValueError(
            f"tokens has {tokens.shape[1]} tokens in shape {tuple(tokens.shape)}; {grid} lays out {grid.tokens}: "
            "pass the grid of these tokens, with their prefix counted"
        )
