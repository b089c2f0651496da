"""Token merging in loops over Python numbers: the specification, slow and plain, with which the library is compared.

A token is a list of floats, a sequence a list of tokens, a batch a list of sequences; results are in the same order.
A grid is anything with `shape`, `stride` (a tuple) and `prefix`; `offsets` chooses the destination of every cell.
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


def cell_of(token: int, grid) -> tuple[int, ...]:
    return tuple(index // step for index, step in zip(positions(grid)[token], grid.stride, strict=True))


def destinations(grid, offsets: list[int] | None = None) -> list[int]:
    """One token of every cell: the top-left one, or number `offset` of its own tokens, counted round and round."""
    chosen = []
    for number, cell in enumerate(cells(grid)):
        own = [token for token in range(prod(grid.shape)) if cell_of(token, grid) == cell]
        chosen.append(own[offsets[number] % len(own)] if offsets else own[0])
    return chosen


def sources(grid, chosen: list[int]) -> list[int]:
    return [token for token in range(prod(grid.shape)) if token not in chosen]


def lattice(grid, offsets: list[int]) -> list[list[int]]:
    """Slot, size and anchor: every prefix token is a slot of its own, then every cell is one."""
    prefix, numbers = list(range(grid.prefix)), {cell: number for number, cell in enumerate(cells(grid), grid.prefix)}
    slot = prefix + [numbers[cell_of(token, grid)] for token in range(prod(grid.shape))]
    size = [slot.count(number) for number in range(grid.prefix + len(numbers))]
    return [slot, size, prefix + [grid.prefix + token for token in destinations(grid, offsets)]]


# ---------------------------------------------------------------- matching


def is_finite(token: Token) -> bool:
    return all(map(isfinite, token))


def cosine(a: Token, b: Token) -> float:
    """A zero token is similar to nothing, and a non-finite token counts as a zero token."""
    if not (is_finite(a) and is_finite(b)):
        return 0.0
    # In units of the largest entry: squares of the numbers themselves may be too large or too small for floats.
    (a, of_a), (b, of_b) = (_in_units(token) for token in (a, b))
    return max(-1.0, min(1.0, sum(x * y for x, y in zip(a, b, strict=True)) / of_a / of_b))


def _in_units(token: Token) -> tuple[Token, float]:
    """The token in units of its largest entry, and how long it is; 1 for a zero token."""
    scaled = [x / (max(map(abs, token)) or 1.0) for x in token]
    return scaled, sqrt(sum(x * x for x in scaled)) or 1.0


def reachable(source: int, grid, chosen: list[int], radius: int | None) -> list[int]:
    """Numbers of the destinations whose cell is at most `radius` cells away from the source's, along every axis."""
    home = cell_of(source, grid)
    apart = [max(abs(a - b) for a, b in zip(home, cell_of(token, grid), strict=True)) for token in chosen]
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


def match(batch: list[Sequence], grid, *, radius=None, shared=False, offsets=None) -> list[list[tuple[float, int]]]:
    """(score, target) of every source; of equally similar destinations, the first."""
    chosen = destinations(grid, offsets)
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


def kept_slots(grid, capacity: float | None) -> int:
    """That fraction of the grid's tokens, rounded up (but 0.55 of 100, in floats a little above 55, is 55)."""
    available = len(sources(grid, destinations(grid)))
    return available if capacity is None else min(available, ceil(round(capacity * prod(grid.shape), 6)))


def rung(grid, capacity: float) -> int:
    """The capacity's kept slots, and more until all slots are a multiple of 8, as long as there are sources left."""
    kept, chosen = kept_slots(grid, capacity), destinations(grid)
    while (grid.prefix + len(chosen) + kept) % 8 and kept < len(sources(grid, chosen)):
        kept += 1
    return kept


def unmergeable(scores: list[float], threshold: float) -> int:
    """How many sources are not similar enough to merge."""
    return sum(score <= threshold for score in scores)


def overflow(scores: list[float], grid, *, threshold: float, capacity: float | None = None) -> int:
    """How many sources merge although they are not similar enough."""
    return max(0, unmergeable(scores, threshold) - kept_slots(grid, capacity))


def plan(row: list[tuple[float, int]], grid, *, threshold: float, capacity=None, spare="pad", offsets=None):
    """(slot, size, anchor) of one sample."""
    chosen = destinations(grid, offsets)
    room = kept_slots(grid, capacity)
    scores = [score for score, _ in row]
    least_similar_first = sorted(range(len(row)), key=lambda number: (scores[number], number))
    kept = sorted(least_similar_first[: room if spare == "fill" else min(room, unmergeable(scores, threshold))])

    anchor = list(range(grid.prefix)) + [grid.prefix + token for token in chosen] + [0] * room
    slot = {index: number for number, index in enumerate(anchor[: grid.prefix + len(chosen)])}
    for number, source in enumerate(sources(grid, chosen)):
        slot[grid.prefix + source] = grid.prefix + row[number][1]
        if number in kept:
            rank = grid.prefix + len(chosen) + kept.index(number)
            slot[grid.prefix + source], anchor[rank] = rank, grid.prefix + source

    slots = [slot[index] for index in sorted(slot)]
    return slots, [slots.count(number) for number in range(len(anchor))], anchor


# ---------------------------------------------------------------- merging


def merge(sequence: Sequence, slot: list[int], size: list[int]) -> Sequence:
    """The mean over each slot; padding is zero."""
    merged = [[0.0] * len(sequence[0]) for _ in size]
    for token, number in zip(sequence, slot, strict=True):
        merged[number] = [total + value / size[number] for total, value in zip(merged[number], token, strict=True)]
    return merged


def unmerge(merged: Sequence, slot: list[int]) -> Sequence:
    return [merged[number] for number in slot]


def gather_anchors(rows: list, anchor: list[int]) -> list:
    return [rows[index] for index in anchor]


def attention_bias(size: list[int], *, proportional: bool = False) -> list[float]:
    return [-inf if count == 0 else log(count) if proportional else 0.0 for count in size]


# ---------------------------------------------------------------- longer sequences


def extend(slot: list[int], size: list[int], anchor: list[int], front: int, back: int):
    """(slot, size, anchor) of one sample with other tokens around the plan's: each is a slot of its own."""
    longer_slot, longer_size, longer_anchor = [], [], []
    for token in range(front):
        longer_slot.append(len(longer_size))
        longer_anchor.append(token)
        longer_size.append(1)
    longer_slot += [front + number for number in slot]
    longer_anchor += [front + token for token in anchor]
    longer_size += size
    for token in range(front + len(slot), front + len(slot) + back):
        longer_slot.append(len(longer_size))
        longer_anchor.append(token)
        longer_size.append(1)
    return longer_slot, longer_size, longer_anchor


def index(slots: list[list[int]], count: int):
    """(rows, offsets, inverse) of a batch: every sample's tokens slot by slot, where each slot begins, and back."""
    rows, offsets, inverse = [], [], []
    for sample, slot in enumerate(slots):
        for number in range(count):
            offsets.append(len(rows))
            rows += [sample * len(slot) + token for token in range(len(slot)) if slot[token] == number]
        inverse += [sample * count + number for number in slot]
    return rows, offsets, inverse


# ---------------------------------------------------------------- near and far


def window(cell: int, cells: int, side: int, near: int) -> range:
    """Along one dimension: the cells that the cell's tile sees token by token, as many for every tile.

    Tiles have at most `side` cells and are equally large; at the border, tiles and what they see are shifted inwards.
    """
    width = ceil(cells / ceil(cells / max(1, side)))
    first, length = min(cell // width * width, cells - width), min(width + 2 * near, cells)
    start = max(0, min(first - near, cells - length))
    return range(start, start + length)


def weigh_keys(grid, anchors: list[int], *, near: int, tile: int, front: int = 0, back: int = 0) -> list[list[float]]:
    """For every query of the sequence, how many tokens each key counts for; 0 for a key that it does not see."""
    lead, area = front + grid.prefix, prod(grid.shape)
    sides = [max(1, tile // 4), tile, tile][-len(grid.shape) :]
    counts = [ceil(length / step) for length, step in zip(grid.shape, grid.stride, strict=True)]
    members: dict[tuple[int, ...], list[int]] = {cell: [] for cell in cells(grid)}
    for token in range(area):
        members[cell_of(token, grid)].append(token)
    weights = []
    for query in range(-lead, area + back):
        row = [1.0] * (lead + area + back)
        weights.append(row)
        if not 0 <= query < area:
            continue
        axes = zip(cell_of(query, grid), counts, sides, grid.stride, strict=True)
        windows = [window(cell, count, side // step, near) for cell, count, side, step in axes]
        for number, (cell, tokens) in enumerate(members.items()):
            if any(index not in seen for index, seen in zip(cell, windows, strict=True)):
                for token in tokens:
                    row[lead + token] = float(len(tokens)) if token == anchors[number] else 0.0
    return weights


# ---------------------------------------------------------------- summaries


def merged_pairs(slot: list[int], anchor: list[int]) -> set[tuple[int, int]]:
    """(source, destination) of every token that was merged, as token indices."""
    return {(token, anchor[number]) for token, number in enumerate(slot) if anchor[number] != token}


def jaccard_distance(a: set, b: set) -> float:
    return 1 - len(a & b) / len(a | b) if a | b else 0.0
