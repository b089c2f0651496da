"""Between two checkpoints the host never waits for the device, and at a checkpoint it does so once."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from catome_adapters import attach
from running import TOTAL, call, unet_recipe
from tiers import tiered
from zoo.noise import each_sample
from zoo.unets import SMALL, conditions

OPERATORS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}


pytestmark = pytest.mark.usefixtures("without_gradients")


class Operators(TorchDispatchMode):
    """Notes the operators for whose result, or its size, the host waits."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else []
        if name in OPERATORS or any(index is not None and index.dtype == torch.bool for index in indices):
            self.reads.append(name)
        return func(*args, **kwargs or {})


class Copies(TorchFunctionMode):
    """Notes what copies a tensor to the host; on a CPU that takes no operator."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu"):
            self.reads.append(func.__name__)
        return func(*args, **kwargs or {})


@contextmanager
def host_reads() -> Iterator[list[str]]:
    reads: list[str] = []
    with Operators(reads), Copies(reads):
        yield reads


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.amax().item(), "_local_scalar_dense"),
        (lambda x: bool(x[0] > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.tolist(), "tolist"),
    ],
)
def test_reads_are_seen(read, name):
    with host_reads() as reads:
        read(torch.ones(3))
    assert reads == [name]


@pytest.mark.parametrize("proportional", tiered([True, False], [True]))
@pytest.mark.parametrize("spare", tiered(["pad", "fill"], ["fill"]))
@pytest.mark.parametrize("capacity", [None, 0.25], ids=["ladder", "fixed"])
def test_one_read_a_checkpoint_and_none_between(small, variant, capacity, spare, proportional):
    """A checkpoint's rungs are chosen before the next step begins, for all sites at once."""
    recipe = unet_recipe(**variant, capacity=capacity, spare=spare, proportional=proportional)
    reads = []
    with attach(small, recipe) as session:
        for step in range(TOTAL):
            with host_reads() as seen:
                call(SMALL, small, session, step, seed=step)
            reads.append(seen)
    assert reads == [["tolist"] if capacity is None and step in (1, 4) else [] for step in range(TOTAL)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_is_not_waited_for_between_checkpoints(small, variant):
    inputs = {"timestep": torch.tensor(500), **conditions(small, 2)}
    inputs = tree_map(lambda value: value.cuda(), inputs)
    samples = [each_sample(2, 4, 16, 16, seed=step).cuda() for step in range(3)]
    small.cuda()
    with attach(small, unet_recipe(**variant, capacity=None)) as session:
        for step, sample in enumerate(samples):
            torch.cuda.set_sync_debug_mode("error" if step == 2 else "default")
            try:
                session.begin_step(step, TOTAL)
                small(sample, **inputs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
