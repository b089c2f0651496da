"""Random tensors and weights that are the same whatever ran before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """For random weights, and for schedulers that draw without a generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def each_sample(batch: int, *shape: int, seed: int = 0) -> Tensor:
    """Noise (batch, *shape); a sample does not depend on the batch."""
    return torch.stack([noise(*shape, seed=100 * seed + index) for index in range(batch)])
