"""On a GPU every transformer gives what it gives on a CPU, and merging never waits for the device in between."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from warnings import WarningMessage

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from catome_adapters import MergeSession, attach
from running import assert_same, lattice_recipe, make_recipe, run, run_merged
from zoo.architecture import Architecture
from zoo.transformers import ALL_ARCHITECTURES

STEPS = range(3)
LATTICES = {
    "lattice": lattice_recipe(),
    "near": lattice_recipe(near=1),
}
# Whether texts have one length, which the network itself reads in every step.
READS = {"Lumina 2": 1}
RECIPES = LATTICES | {"matched": make_recipe("keys", spare="fill")}

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.parametrize("name", ALL_ARCHITECTURES),
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch) -> None:
    """Convolutions, too, which by default round to 10 bits on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@contextmanager
def on_the_gpu(network: nn.Module) -> Iterator[list[WarningMessage]]:
    """Calls take their arguments to the GPU, what is equal as one tensor: so pipelines pass positions and masks.

    Collects a warning for every time that a call then waits for the GPU.
    """
    moved: list[tuple[Tensor, Tensor]] = []

    def move(tensor: Tensor) -> Tensor:
        for known, there in moved:
            if known.dtype == tensor.dtype and torch.equal(known, tensor):
                return there
        moved.append((tensor, tensor.cuda()))
        return moved[-1][1]

    def begin(_, args, kwargs):
        on_device = tree_map_only(Tensor, move, (args, kwargs))
        torch.cuda.set_sync_debug_mode("warn")
        return on_device

    def end(*_):
        torch.cuda.set_sync_debug_mode("default")

    network.cuda()
    with (
        network.register_forward_pre_hook(begin, with_kwargs=True, prepend=True),
        network.register_forward_hook(end, always_call=True),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        yield caught


def waits_of_the_last_step(subject: Architecture, network: nn.Module, session: MergeSession | None = None) -> list[str]:
    """Where they are. Those of the first steps do not count: networks keep tables, and merging its first plan."""
    with on_the_gpu(network) as caught:
        run(subject, network, session, steps=STEPS[:-1])
        caught.clear()
        run(subject, network, session, steps=STEPS[-1:])
    return [f"{one.filename}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]


@pytest.mark.parametrize("recipe", LATTICES.values(), ids=LATTICES)
def test_keys_on_a_lattice_are_those_of_a_cpu(subject, network, recipe):
    expected = run_merged(subject, network, recipe, steps=STEPS)
    with on_the_gpu(network):
        found = run_merged(subject, network, recipe, steps=STEPS)
    assert_same([one.cpu() for one in found], expected, tolerance=1e-3)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_step_that_matches_nothing_does_not_wait(subject, name, network, recipe):
    """Counted, since a wait within intercepted attention has another place."""
    unmerged = waits_of_the_last_step(subject, network)
    with attach(network, recipe) as session:
        merged = waits_of_the_last_step(subject, network, session)
    assert len(merged) == len(unmerged) + READS.get(name, 0), (merged, unmerged)
