"""Token merging in loops over Python numbers: the specification, slow and plain, with which the library is compared.

A token is a list of floats, a sequence a list of tokens, a batch a list of sequences; results are in the same order.
A grid is anything with `shape`, `stride` (a tuple) and `prefix`; `places` chooses the destination of every cell.
"""

from functools import cache
from itertools import product
from math import ceil, inf, isfinite, log, prod, sqrt

Token = list[float]
Sequence = list[Token]


@cache
def positions(grid) -> list[tuple[int, ...]]:
    """The grid's positions in raster order, the prefix aside."""
    return list(product(*map(range, grid.shape)))


def cells(grid) -> list[tuple[int, ...]]:
    """The grid's cells in raster order; a remainder that the stride does not divide has cells of its own."""
    return list(product(*(range(ceil(length / step)) for length, step in zip(grid.shape, grid.stride, strict=True))))


def cell_of(place: int, grid) -> tuple[int, ...]:
    return tuple(index // step for index, step in zip(positions(grid)[place], grid.stride, strict=True))


def destinations(grid, places: list[int] | None = None) -> list[int]:
    """One token of every cell: the top-left one, or number `place` of its own tokens, counted round and round."""
    chosen = []
    for number, cell in enumerate(cells(grid)):
        own = [place for place in range(prod(grid.shape)) if cell_of(place, grid) == cell]
        chosen.append(own[places[number] % len(own)] if places else own[0])
    return chosen


def sources(grid, chosen: list[int]) -> list[int]:
    return [place for place in range(prod(grid.shape)) if place not in chosen]


# ---------------------------------------------------------------- matching


def is_finite(token: Token) -> bool:
    return all(map(isfinite, token))


def cosine(a: Token, b: Token) -> float:
    """A zero token is similar to nothing, and a non-finite token counts as a zero token."""
    if not (is_finite(a) and is_finite(b)):
        return 0.0
    lengths = [max(sqrt(sum(x * x for x in token)), 1e-12) for token in (a, b)]
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / lengths[0] / lengths[1]))


def reachable(source: int, grid, chosen: list[int], radius: int | None) -> list[int]:
    """Numbers of the destinations whose cell is at most `radius` cells away from the source's, along every axis."""
    home = cell_of(source, grid)
    apart = [max(abs(a - b) for a, b in zip(home, cell_of(place, grid), strict=True)) for place in chosen]
    return [number for number, distance in enumerate(apart) if radius is None or distance <= radius]


def similarities(sequences: list[Sequence], source: int, grid, chosen: list[int], radius=None) -> dict[int, float]:
    """Destination number -> cosine with the source, averaged over the sequences that share a plan."""
    mean = {}
    for number in reachable(source, grid, chosen, radius):
        pairs = [(sequence[grid.prefix + source], sequence[grid.prefix + chosen[number]]) for sequence in sequences]
        mean[number] = sum(cosine(*pair) for pair in pairs) / len(pairs)
    return mean


def score(sequences: list[Sequence], source: int, target: int, similarity: float, grid, chosen: list[int]) -> float:
    """The similarity, or -1 (merged last) where the source or its best destination is not finite in some sequence."""
    indices = (grid.prefix + source, grid.prefix + chosen[target])
    return similarity if all(is_finite(s[index]) for s in sequences for index in indices) else -1.0


def match(batch: list[Sequence], grid, *, radius=None, shared=False, places=None) -> list[list[tuple[float, int]]]:
    """(score, target) of every source; of equally similar destinations, the first."""
    chosen = destinations(grid, places)
    rows = []
    for sequences in [batch] if shared else [[sequence] for sequence in batch]:
        row = []
        for source in sources(grid, chosen):
            found = similarities(sequences, source, grid, chosen, radius)
            target = max(found, key=lambda number: (found[number], -number))
            row.append((score(sequences, source, target, found[target], grid, chosen), target))
        rows.append(row)
    return rows


# ---------------------------------------------------------------- planning


def kept_places(grid, capacity: float | None) -> int:
    """That fraction of the grid's tokens, rounded up (but 0.55 of 100, in floats a little above 55, is 55)."""
    available = len(sources(grid, destinations(grid)))
    return available if capacity is None else min(available, ceil(round(capacity * prod(grid.shape), 6)))


def rung(grid, capacity: float) -> int:
    """The capacity's places, and more until the slots are a multiple of 8, as long as there are sources for them."""
    places, chosen = kept_places(grid, capacity), destinations(grid)
    while (grid.prefix + len(chosen) + places) % 8 and places < len(sources(grid, chosen)):
        places += 1
    return places


def wanted(scores: list[float], threshold: float) -> int:
    """How many sources are not similar enough to merge."""
    return sum(score <= threshold for score in scores)


def overflow(scores: list[float], grid, *, threshold: float, capacity: float | None = None) -> int:
    """How many sources merge although they are not similar enough."""
    return max(0, wanted(scores, threshold) - kept_places(grid, capacity))


def plan(row: list[tuple[float, int]], grid, *, threshold: float, capacity=None, spare="pad", places=None):
    """(slot, size, anchor) of one sample."""
    chosen = destinations(grid, places)
    room = kept_places(grid, capacity)
    scores = [score for score, _ in row]
    least_similar_first = sorted(range(len(row)), key=lambda number: (scores[number], number))
    kept = sorted(least_similar_first[: room if spare == "fill" else min(room, wanted(scores, threshold))])

    anchor = list(range(grid.prefix)) + [grid.prefix + place for place in chosen] + [0] * room
    slot = {index: number for number, index in enumerate(anchor[: grid.prefix + len(chosen)])}
    for number, source in enumerate(sources(grid, chosen)):
        slot[grid.prefix + source] = grid.prefix + row[number][1]
        if number in kept:
            place = grid.prefix + len(chosen) + kept.index(number)
            slot[grid.prefix + source], anchor[place] = place, grid.prefix + source

    slots = [slot[index] for index in sorted(slot)]
    return slots, [slots.count(number) for number in range(len(anchor))], anchor


# ---------------------------------------------------------------- merging


def merge(sequence: Sequence, slot: list[int], size: list[int]) -> Sequence:
    """The mean over each slot; padding is zero."""
    merged = [[0.0] * len(sequence[0]) for _ in size]
    for token, place in zip(sequence, slot, strict=True):
        merged[place] = [total + value / size[place] for total, value in zip(merged[place], token, strict=True)]
    return merged


def unmerge(merged: Sequence, slot: list[int]) -> Sequence:
    return [merged[place] for place in slot]


def gather_anchors(rows: list, anchor: list[int]) -> list:
    return [rows[index] for index in anchor]


def attention_bias(size: list[int], *, proportional: bool = False) -> list[float]:
    return [-inf if count == 0 else log(count) if proportional else 0.0 for count in size]


# ---------------------------------------------------------------- summaries


def merged_pairs(slot: list[int], anchor: list[int]) -> set[tuple[int, int]]:
    """(source, destination) of every token that was merged, as token indices."""
    return {(token, anchor[place]) for token, place in enumerate(slot) if anchor[place] != token}


def jaccard_distance(a: set, b: set) -> float:
    return 1 - len(a & b) / len(a | b) if a | b else 0.0
