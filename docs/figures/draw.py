"""The figures of `docs/how-it-works.md`, computed by the library: `python docs/figures/draw.py` writes them anew."""

from collections.abc import Iterator
from itertools import chain
from math import hypot
from pathlib import Path

import torch
from svg import (
    BLUE,
    CORAL,
    GRAY,
    INK,
    LIGHT,
    OCHRE,
    OLIVE,
    PURPLE,
    TEAL,
    WHITE,
    Tokens,
    arrow,
    card,
    ring,
    square,
    word,
)
from torch import Tensor

from catome_core import (
    PAPER_SCHEDULES,
    CheckpointSchedule,
    MergePlan,
    NearField,
    TokenGrid,
    choose_destinations,
    dither_offsets,
    match_tokens,
    plan_merge,
)
from catome_core.attention.tables import index_field

IMAGES = Path(__file__).parents[1] / "images"
KINDS = "AABBAxBBCCDACCDy"
"""The page's first example: tokens of a letter are equal."""

COLORS = dict(zip("ABCDxy", (TEAL, OCHRE, PURPLE, CORAL, BLUE, OLIVE), strict=True))

PICTURE = "bbbbbbbb bbbbbyyb bbbbbyyb bbrrbbbb bbbbbbbb sssswsss sssssssw ssssssws".replace(" ", "")
"""A kite, the sun, and the sea with its foam, one letter a token."""

PALETTE = {"b": "#7db3e8", "y": "#f5c542", "r": "#c8503c", "s": "#2b5f8a", "w": "#dfe9f2"}


def plan() -> str:
    """Sixteen tokens, their slots, and what they get back."""
    grid, kinds = TokenGrid((4, 4)), {kind: index for index, kind in enumerate("ABCDxy")}
    tokens = torch.eye(6)[[kinds[kind] for kind in KINDS]][None]
    merged = plan_merge(match_tokens(tokens, grid), grid, threshold=0.7, capacity=0.25)
    before, slots, after = Tokens((16, 56), (4, 4), 34), Tokens((232, 107), (1, 8), 34), Tokens((588, 56), (4, 4), 34)
    slot, sizes, anchors = (part[0].tolist() for part in merged[:3])
    color = [COLORS[KINDS[anchor]] if size else LIGHT for anchor, size in zip(anchors, sizes, strict=True)]
    parts = [
        before.squares(lambda token: COLORS[KINDS[token]]),
        before.cells(2),
        before.numbers(lambda token: token, white),
        [ring(*before.middle(one), 12) for one in choose_destinations(grid).tolist()],
        [before.above("tokens"), before.below("ring: destination")],
        slots.squares(lambda index: color[index]),
        slots.numbers(lambda index: index, lambda index: WHITE if sizes[index] else INK),
        [word(slots.middle(index)[0], 166, size, size=13) for index, size in enumerate(sizes)],
        [word(slots.middle(index)[0], 188, anchor, size=13) for index, anchor in enumerate(anchors)],
        [word(226, 166, "size", anchor="end", size=13), word(226, 188, "anchor", anchor="end", size=13)],
        [word(300, 96, "destinations"), word(402, 96, "kept"), word(470, 96, "padding")],
        [word(368, 44, "slots"), word(190, 112, "merge"), word(546, 112, "unmerge")],
        [arrow(160, 124, 222, 124), arrow(510, 124, 580, 124)],
        after.squares(lambda token: color[slot[token]]),
        after.cells(2),
        after.numbers(lambda token: slot[token], white),
        [after.above("tokens again"), after.below("number: its slot")],
    ]
    return card(740, 236, "Sixteen tokens merge into eight slots, two of them padding, and come back", chain(*parts))


def white(_: int) -> str:
    return WHITE


def picture() -> Tensor:
    """Its tokens (1, 64, 5): red, green, blue, and the place, which tokens of a model know as well."""
    colors = [[int(PALETTE[kind][at : at + 2], 16) / 255 - 0.5 for at in (1, 3, 5)] for kind in PICTURE]
    place = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).flatten(0, 1)
    # Squared, so that no two destinations are equally far.
    return torch.cat([torch.tensor(colors), 0.002 * place.square() + 0.025 * place], -1)[None]


def matching() -> str:
    """Cells and destinations, the best destination of every source, and the plan."""
    grid, threshold = TokenGrid((8, 8)), 0.9
    match = match_tokens(picture(), grid)
    merged = plan_merge(match, grid, threshold=threshold)
    destinations = choose_destinations(grid).tolist()
    sources = [token for token in range(64) if token not in destinations]
    panels = [Tokens((16 + 216 * index, 40), (8, 8), 24) for index in range(3)]
    left, middle, right = panels
    best = zip(sources, match.target[0].tolist(), match.score[0].tolist(), strict=True)
    kept = kept_tokens(merged, len(destinations))
    parts = [
        *(panel.squares(lambda token: PALETTE[PICTURE[token]]) for panel in (left, middle)),
        left.cells(2),
        [ring(*left.middle(one), 7) for one in destinations],
        chain(*(link(middle, source, destinations[to]) for source, to, score in best if score > threshold)),
        [ring(*middle.middle(token), 7, INK) for token in kept],
        right.squares(lambda token: slot_color(merged, token, len(destinations))),
        right.numbers(lambda token: merged.slot[0, token].item(), lambda _: INK, size=11),
        [left.above("cells, destinations"), middle.above("best destination"), right.above("slots")],
        [left.below("16 of 64 tokens"), middle.below(f"ring: none above {threshold}")],
        [right.below(f"{len(destinations)} and {len(kept)} kept ones")],
    ]
    return card(656, 270, "Every source of a picture looks for its most similar destination", chain(*parts))


def kept_tokens(merged: MergePlan, destinations: int) -> list[int]:
    return [token for token, slot in enumerate(merged.slot[0].tolist()) if slot >= destinations]


def slot_color(merged: MergePlan, token: int, destinations: int) -> str:
    slot = merged.slot[0, token].item()
    return f"hsl({slot * 137.5 % 360:g}, 60%, 75%)" if slot < destinations else WHITE


def link(panel: Tokens, source: int, to: int) -> Iterator[str]:
    (x, y), (to_x, to_y) = panel.middle(source), panel.middle(to)
    length = hypot(to_x - x, to_y - y)
    yield arrow(x, y, to_x - 5 * (to_x - x) / length, to_y - 5 * (to_y - y) / length, "#222222")


def lattice() -> str:
    """The anchors of four steps."""
    grid, parts = TokenGrid((8, 8)), []
    for step in range(4):
        anchors = set(choose_destinations(grid, dither_offsets(grid, step)).tolist())
        panel = Tokens((16 + 158 * step, 36), (8, 8), 18)
        parts += [*panel.squares(lambda token, anchors=anchors: TEAL if token in anchors else LIGHT)]
        parts += [*panel.cells(2), panel.above(f"step {step}")]
    return card(650, 196, "Another token of every cell in every step, in neighboring cells another one", parts)


def near_far() -> str:
    """What the queries of one tile see."""
    grid = TokenGrid((16, 16))
    field = NearField(grid, near=1)
    index = index_field(field, torch.zeros(1, 1, field.tokens, 1))
    anchors = choose_destinations(grid, dither_offsets(grid))
    queries, near, far = (set(part[5].tolist()) for part in (index.queries, index.near, anchors[index.far]))
    panel = Tokens((16, 16), (16, 16), 18)

    def color(token: int) -> str:
        return BLUE if token in queries else TEAL if token in near else OCHRE if token in far else LIGHT

    legend = [
        (BLUE, f"{len(queries)} queries of a tile"),
        (TEAL, f"their near keys, with those: {len(near)}"),
        (OCHRE, f"one key of every cell beyond: {len(far)}"),
        (LIGHT, f"not seen: {grid.tokens - field.keys} of {grid.tokens}"),
    ]
    squares = [square(324, 90 + 36 * row, 18, fill) for row, (fill, _) in enumerate(legend)]
    words = [word(352, 104 + 36 * row, text, anchor="start") for row, (_, text) in enumerate(legend)]
    parts = [*panel.squares(color), *panel.cells(2), *squares, *words]
    return card(620, 320, "Near keys one by one, and one of every cell beyond", parts)


def reuse() -> str:
    """The steps of a run that match, by two schedules."""
    steps, parts = 20, []
    schedules = {"config_3": PAPER_SCHEDULES["config_3"], "every(5, 20)": CheckpointSchedule.every(5, 20)}
    for row, (name, schedule) in enumerate(schedules.items()):
        checkpoints = schedule.rescaled(steps).steps
        track = Tokens((126, 40 + 44 * row), (1, steps), 25)
        parts += [*track.squares([TEAL if step in checkpoints else LIGHT for step in range(steps)].__getitem__)]
        ink = [WHITE if step in checkpoints else GRAY for step in range(steps)]
        parts += [*track.numbers(lambda step: step, ink.__getitem__, 12)]
        parts += [word(116, 58 + 44 * row, name, anchor="end")]
    parts += [word(126, 26, "step", anchor="start"), square(126, 134, 16, TEAL), square(300, 134, 16, LIGHT)]
    parts += [word(150, 147, "match, plan, store", anchor="start"), word(324, 147, "reuse the plan", anchor="start")]
    return card(642, 166, "Checkpoints, and the steps between them", parts)


FIGURES = {"plan": plan, "matching": matching, "lattice": lattice, "near-far": near_far, "reuse": reuse}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (IMAGES / f"{name}.svg").write_text(draw())
