"""Checkpoints: the best ones by trying all, and how many."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from catome_bench.calibration.schedule import best_checkpoints, choose_schedule


def distance_used(distance: Tensor, checkpoints: tuple[int, ...]) -> float:
    """The sum over all steps, in plain loops."""
    return sum(distance[max(one for one in checkpoints if one <= step), step].item() for step in range(len(distance)))


def random_distances(steps: int, seed: int) -> Tensor:
    values = torch.rand(steps, steps, generator=torch.Generator().manual_seed(seed))
    return (values + values.T) * (1 - torch.eye(steps))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_no_other_checkpoints_are_nearer(steps, seed):
    distance = random_distances(steps, seed)
    best = best_checkpoints(distance)
    assert [len(one.steps) for one in best] == list(range(1, steps + 1))
    for number, one in enumerate(best):
        tried = [distance_used(distance, (0, *others)) for others in combinations(range(1, steps), number)]
        assert one.steps[0] == 0
        assert one.distance == pytest.approx(distance_used(distance, one.steps), abs=1e-6)
        assert one.distance == pytest.approx(min(tried), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_number_of_checkpoints_is_the_one_farthest_below_the_average(seed):
    distance = random_distances(7, seed)
    best = best_checkpoints(distance)
    below = [best[0].distance * (6 - index) / 6 - one.distance for index, one in enumerate(best)]
    chosen = choose_schedule(distance)
    assert chosen.of == 7
    assert chosen.steps == best[below.index(max(below))].steps


def test_where_every_checkpoint_brings_as_much_there_is_one():
    assert choose_schedule(0.1 * (1 - torch.eye(6))).steps == (0,)
    assert choose_schedule(torch.zeros(6, 6)).steps == (0,)


def test_where_pairs_change_all_at_once_there_is_a_checkpoint():
    phase = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    assert choose_schedule((phase[:, None] != phase).float()).steps == (0, 3, 7)
