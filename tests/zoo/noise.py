"""Random tensors and weights that are the same whatever ran before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


def filled(network: Any, *parts: str, std: float = 0.2) -> Any:
    """The network with noise in parameters with such names, which are zero, or not set at all, before training."""
    for name, parameter in network.named_parameters():
        if any(part in name for part in parts):
            nn.init.normal_(parameter, std=std)
    return network
