"""The ladder of capacities."""

from collections import defaultdict
from functools import partial

import pytest
from torch import Tensor, nn

from catome_adapters import attach
from catome_core import LADDER, CheckpointSchedule, TokenGrid, count_overflow, match_tokens
from running import ONCE, run, square_grid, unet_recipe
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import SD, sd_unet


@pytest.mark.parametrize("spare", ["pad", "fill"])
def test_capacity_moves_after_a_checkpoint_to_the_smallest_rung_that_is_large_enough(spare):
    unet, demands = sd_unet(), defaultdict(int)
    with attach(unet, unet_recipe(capacity=None, spare=spare, schedule=ONCE)) as session:
        handles = [site.block.register_forward_pre_hook(partial(note_demand, demands)) for site in session.sites]
        run(SD, unet, session, steps=[0], total=10)
        for handle in handles:
            handle.remove()
        run(SD, unet, session, steps=range(4), total=10, seed=0)
        rows = session.summary().rows
    for row in rows:
        grid = square_grid(row.tokens)
        places = min(room for rung in (*LADDER, 1) if (room := raised(grid, rung)) >= demands[row.tokens])
        assert row.capacity == (0.75 if row.step == 0 else places / grid.area)
        assert row.slots == grid.destinations + grid.kept(row.capacity)
        assert row.overflow == 0 and row.checkpoint == (row.step == 0)
    assert len({row.capacity for row in rows}) > 1


def raised(grid: TokenGrid, rung: float) -> int:
    """Places of a rung when it is raised to the next multiple of 8 slots that the grid can fill."""
    slots = grid.destinations + grid.kept(rung)
    while slots % 8 and slots < grid.tokens:
        slots += 1
    return slots - grid.destinations


def note_demand(demands: dict[int, int], block: nn.Module, args: tuple[Tensor, ...]) -> None:
    """By number of tokens, the most sources that any sample keeps at any site when there is room."""
    grid = square_grid(args[0].shape[1])
    wanted = int(count_overflow(match_tokens(args[0], grid), grid, threshold=0.7, capacity=0).max())
    demands[grid.tokens] = max(demands[grid.tokens], wanted)


def test_sites_of_a_level_share_their_capacity_at_every_step():
    unet, schedule = sd_unet(), CheckpointSchedule((0, 3, 6), 10)
    with attach(unet, unet_recipe(threshold=0.8, capacity=None, schedule=schedule)) as session:
        run(SD, unet, session, steps=range(9), total=10)
        capacities = defaultdict(set)
        for row in session.summary().rows:
            capacities[row.step, row.tokens].add(row.capacity)
    assert all(len(found) == 1 for found in capacities.values())


def test_capacity_given_as_a_number_stays():
    pipe = class_pipeline()
    with attach(pipe, unet_recipe(levels="auto")) as session:
        draw(pipe, steps=4)
        rows = session.summary().rows
    assert {row.capacity for row in rows} == {0.25} and {row.slots for row in rows} == {32}


def test_next_run_begins_with_the_policys_capacity_again():
    pipe = class_pipeline()
    with attach(pipe, unet_recipe(capacity=None, schedule=ONCE, levels="auto")) as session:
        draw(pipe)
        first = session.summary()
        draw(pipe)
        assert session.summary().rows == first.rows
    assert {row.slots for row in first.rows if row.step == 0} == {64}
    assert max(row.slots for row in first.rows if row.step > 0) < 64
