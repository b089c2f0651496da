"""From tokens to the best destination of every source (paper, III-A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from catome_core import similarity
from catome_core.grid import TokenGrid, choose_destinations, source_positions
from catome_core.neighbours import match_nearby
from catome_core.similarity import UnitRows, compare


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
    The similarity matrix exists in pieces only: beyond a few numbers a token, matching takes less than 64 MiB, whatever
    the size. With a radius, time grows as tokens x window.

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
    rows = UnitRows.of(tokens, grid.prefix)
    if radius is None or radius + 1 >= max(grid.cells):
        score, target = _match_everywhere(rows, sources, destinations, shared)
    else:
        score, target = match_nearby(rows, grid, sources, destinations, radius, shared)
    usable = rows.usable(sources), rows.usable(destinations)
    of_source, of_target = (part.all(0, keepdim=True) for part in usable) if shared else usable
    return Match(score.clamp(-1, 1).where(of_source & of_target.gather(1, target), -1), target)


def _match_everywhere(rows: UnitRows, sources: Tensor, destinations: Tensor, shared: bool) -> Match:
    """Pieces of the matrix, at most CHUNK numbers each, and so the rows that they are products of."""
    batch, _, channels = rows.tokens.shape
    room = similarity.CHUNK // batch
    wide = max(1, min(len(destinations), room // channels))
    high = max(1, room // max(channels, wide))
    bands = [_best_of_band(rows, band, destinations.split(wide), shared) for band in sources.split(high)]
    return Match(*(torch.cat(parts, 1) for parts in zip(*bands, strict=True)))


def _best_of_band(rows: UnitRows, sources: Tensor, pieces: Sequence[Tensor], shared: bool) -> Match:
    unit, first = rows(sources), 0
    best = None
    for piece in pieces:
        score, target = compare(unit, rows(piece), shared).max(-1)
        found = Match(score, target + first)
        best = found if best is None else _better(found, best)
        first += len(piece)
    assert best is not None
    return best


def _better(new: Match, old: Match) -> Match:
    wins = new.score > old.score
    return Match(new.score.where(wins, old.score), new.target.where(wins, old.target))


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
