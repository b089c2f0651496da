"""From tokens to the best destination of every source (paper, III-A)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from catome_core import checks
from catome_core.grid import TokenGrid, choose_destinations, source_positions
from catome_core.similarity import UnitRows, cosines
from catome_core.windows import match_in_windows

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int


class Match(NamedTuple):
    """The best destination of every source, sources in raster order.

    Attributes:
        score: Cosine similarity in [-1, 1].
        target: Index (int64) of the destination, 0 to destinations - 1.
    """

    score: Float32[Tensor, "batch sources"]
    target: Int[Tensor, "batch sources"]


def match_tokens(
    tokens: Float[Tensor, "batch tokens channels"],
    grid: TokenGrid,
    *,
    radius: int | None = None,
    shared: bool = False,
    destinations: Int[Tensor, "destinations"] | None = None,
) -> Match:
    """Find the most similar destination of every source token.

    Similarity is the cosine, accumulated in float32 whatever the dtype of `tokens`, each sample by itself, and exact at
    any magnitude. A zero token has similarity 0 with everything; one with a NaN or infinite entry, -1.
    The full similarity matrix is never built. Apart from a few numbers per token, matching needs less than 64 MiB at
    any size; with a radius also what one tile of the whole batch takes, if that is more. With a radius, time grows as
    tokens x window. No gradient flows: a match is a choice.

    Args:
        tokens: Any float dtype.
        grid: Their layout.
        radius: Consider only destinations at most `radius` cells away in each dimension; None considers all.
        shared: One match for the whole batch, from the similarity averaged over it.
        destinations: From `choose_destinations`; None means top-left.

    Returns:
        The `Match`, with batch 1 if `shared`. Among equal similarities the first destination wins.

    Raises:
        TypeError: If the radius is not a whole number.
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
    with _full_precision(tokens.device):
        return match_rows(UnitRows.of(tokens.detach(), grid.prefix), grid, destinations, radius=radius, shared=shared)


def match_rows(
    rows: UnitRows, grid: TokenGrid, destinations: Int[Tensor, "destinations"], *, radius: int | None, shared: bool
) -> Match:
    """`match_tokens` of unit vectors, after all checks."""
    sources = source_positions(grid, destinations)
    if radius is None or radius + 1 >= max(grid.cells):
        score, target = _match_everywhere(rows, sources, destinations, shared)
    else:
        score, target = match_in_windows(rows, grid, sources, destinations, radius, shared)
    finite = rows.finite(sources), rows.finite(destinations)
    of_source, of_target = (part.all(0, keepdim=True) for part in finite) if shared else finite
    return Match(score.clamp(-1, 1).where(of_source & of_target.gather(1, target), -1), target)


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast would take the matrix product back to half precision; meta tensors know none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _match_everywhere(rows: UnitRows, sources: Tensor, destinations: Tensor, shared: bool) -> Match:
    """The similarity matrix in chunks; neither a chunk nor the rows it is a product of exceed `rows.max_elements`."""
    batch, _, channels = rows.tokens.shape
    elements = rows.max_elements // max(1, batch)
    width = max(1, min(len(destinations), elements // max(1, channels)))
    height = max(1, elements // max(channels, width))
    bands = [_best_of_band(rows, band, destinations.split(width), shared) for band in sources.split(height)]
    return Match(*(torch.cat(parts, 1) for parts in zip(*bands, strict=True)))


def _best_of_band(rows: UnitRows, sources: Tensor, chunks: Sequence[Tensor], shared: bool) -> Match:
    unit, first = rows.unit(sources), 0
    best = None
    for chunk in chunks:
        score, target = cosines(unit, rows.unit(chunk), shared).max(-1)
        found = Match(score, target + first)
        best = found if best is None else _better(found, best)
        first += len(chunk)
    assert best is not None
    return best


def _better(new: Match, old: Match) -> Match:
    wins = new.score > old.score
    return Match(new.score.where(wins, old.score), new.target.where(wins, old.target))


def check_radius(radius: int | None) -> int | None:
    """The radius as a number of cells or None; TypeError or ValueError if it is neither."""
    expected = "0 (own cell), a number of cells, or None (everywhere)"
    return None if radius is None else checks.integer("radius", radius, expected, least=0)


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
