"""What matching needs beside its input: counted in live tensors, at sizes that real models have."""

import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from catome_core import TokenGrid, match_tokens
from tiers import tiered

MIB = 2**20
# "A few numbers a token": norms, scores, targets and index tables, 8 bytes each.
NUMBERS_PER_TOKEN = 24


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made within it have held at once; views count with what they are views of."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.holders = 0, 0, Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and (leaf.untyped_storage().data_ptr() not in before - set(self.holders)):
                self._hold(leaf)
        return result

    def _hold(self, tensor):
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.holders[address] += 1
        self.live += size if self.holders[address] == 1 else 0
        self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self._drop, address, size)

    def _drop(self, address, size):
        self.holders[address] -= 1
        if not self.holders[address]:
            del self.holders[address]
            self.live -= size


def peak_of_matching(batch, grid, channels, requires_grad=False, **options):
    tokens = torch.randn(batch, grid.tokens, channels, requires_grad=requires_grad)
    with LiveBytes() as counted:
        match_tokens(tokens, grid, **options)
    return counted.peak


def test_live_bytes_are_counted():
    with LiveBytes() as counted:
        first = torch.zeros(MIB)
        view = first[:10]
        del first
        second = torch.zeros(MIB) + view[0]
        del view
        third = torch.zeros(MIB)
    # `torch.zeros(MIB) + ...` holds its operand, its result and `first`.
    assert counted.peak == pytest.approx(3 * 4 * MIB, abs=1024)
    assert counted.live == pytest.approx(2 * 4 * MIB, abs=1024)
    assert len(second) == len(third)


@pytest.mark.parametrize("radius", [None, 0, 2])
@pytest.mark.parametrize("shared", tiered([False, True], [False]))
@pytest.mark.parametrize(
    ("batch", "grid", "channels"),
    [
        (2, TokenGrid((64, 64)), 320),
        (8, TokenGrid((64, 64)), 320),
        (1, TokenGrid((128, 128)), 640),
        (2, TokenGrid((13, 30, 52)), 384),
    ],
)
def test_extra_memory_stays_below_a_constant(batch, grid, channels, radius, shared):
    few = 8 * NUMBERS_PER_TOKEN * batch * grid.tokens
    assert peak_of_matching(batch, grid, channels, radius=radius, shared=shared) < 64 * MIB + few


@pytest.mark.parametrize("radius", [None, 1])
def test_matching_records_no_graph_of_gradients(radius):
    one = (1, TokenGrid((32, 32)), 320)
    assert peak_of_matching(*one, requires_grad=True, radius=radius) == peak_of_matching(*one, radius=radius)


@pytest.mark.thorough
def test_a_video_of_75600_tokens_needs_less_than_two_gigabytes_input_included():
    grid, channels = TokenGrid((21, 60, 60)), 1536
    tokens = grid.tokens * channels * 4
    assert tokens + peak_of_matching(1, grid, channels, radius=1) < 2048 * MIB


@pytest.mark.parametrize("radius", [0, 2])
def test_the_work_of_a_window_is_linear_in_the_tokens(radius):
    """Counted, since time is noisy: four times the tokens, at most four and a half times the multiplications."""
    counts = []
    for side in (64, 128):
        grid = TokenGrid((side, side))
        with FlopCounterMode(display=False) as counter:
            match_tokens(torch.randn(1, grid.tokens, 32), grid, radius=radius)
        counts.append(counter.get_total_flops())
    assert 0 < counts[1] <= 4.5 * counts[0]
