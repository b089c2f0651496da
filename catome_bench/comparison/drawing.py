"""Drawing once with a pipeline: the pictures, and the time and memory that they took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from catome_adapters.architectures.find import NETWORKS
from catome_bench.comparison.pictures import to_pictures
from catome_bench.measure.timing import Stopwatch, choose_stopwatch

Call = Mapping[str, Any] | Callable[[Any, torch.Generator], Any]
"""The arguments of a pipeline, or a function that gets the pipeline and a seeded generator and returns pictures."""


class DrawnCall(NamedTuple):
    """What one call of a pipeline has drawn.

    Attributes:
        pictures: (n, 3, height, width), float32 in [0, 1], on the host.
        seconds: For each picture, from the call to the pictures.
        denoiser: The part of it that was spent in the networks that merge.
        memory: Peak of the bytes allocated on the GPU; None elsewhere.
    """

    pictures: Tensor
    seconds: float
    denoiser: float
    memory: int | None


def draw(pipe: Any, call: Call, seed: int) -> DrawnCall:
    """Call a pipeline once, with all of its random numbers from one seed.

    Raises:
        TypeError: If it returns no pictures.
        ValueError: If their values are not finite, or not those of pictures.
    """
    device, outputs = device_of(pipe), []
    stopwatch, generator = choose_stopwatch(device), torch.Generator().manual_seed(seed)
    cuda = [device] if device.type == "cuda" else []
    for one in cuda:
        torch.cuda.reset_peak_memory_stats(one)
    with torch.random.fork_rng(devices=cuda), timed_calls(networks_of(pipe), stopwatch) as calls:
        torch.manual_seed(seed)
        seconds = stopwatch(lambda: outputs.append(_call(pipe, call, generator)))
    memory = next((torch.cuda.max_memory_allocated(one) for one in cuda), None)
    pictures = to_pictures(outputs[0])
    return DrawnCall(pictures, seconds / len(pictures), sum(calls) / len(pictures), memory)


def networks_of(pipe: Any) -> list[nn.Module]:
    """The networks in which merging takes place, as the pipeline holds them: compiled ones in their wrapper."""
    parts = [getattr(pipe, name, None) for name in NETWORKS]
    return list(dict.fromkeys(part for part in parts if isinstance(part, nn.Module))) or [pipe]


def device_of(pipe: Any) -> torch.device:
    """Where the first of its networks runs."""
    weights = next(networks_of(pipe)[0].parameters()).device
    # Those of a network that is offloaded are elsewhere between its calls.
    running = getattr(pipe, "_execution_device", None) if weights.type in ("cpu", "meta") else None
    return weights if running is None else torch.device(running)


def is_compiled(pipe: Any) -> bool:
    """Whether any part of a pipeline is, as a whole or block by block."""
    parts = [pipe, *vars(pipe).values()]
    modules = (module for part in parts if isinstance(part, nn.Module) for module in part.modules())
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)


@contextmanager
def timed_calls(networks: Sequence[nn.Module], stopwatch: Stopwatch) -> Iterator[list[float]]:
    """The seconds of every call of the networks while the context lasts."""
    seconds: list[float] = []
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(_timed(network, stopwatch, seconds))
        yield seconds


@contextmanager
def _timed(network: nn.Module, stopwatch: Stopwatch, seconds: list[float]) -> Iterator[None]:
    # Hooks would be traced into the graph of a compiled network; torch asks for this attribute outside of it.
    own: dict[str, Any] = vars(network)
    before = own.get("_compiled_call_impl")
    inner: Any = before or network._call_impl

    def timed(*args: Any, **kwargs: Any) -> Any:
        results: list[Any] = []
        seconds.append(stopwatch(lambda: results.append(inner(*args, **kwargs))))
        return results[0]

    own["_compiled_call_impl"] = timed
    try:
        yield
    finally:
        del own["_compiled_call_impl"]
        own |= {} if before is None else {"_compiled_call_impl": before}


def _call(pipe: Any, call: Call, generator: torch.Generator) -> Any:
    if not isinstance(call, Mapping):
        return call(pipe, generator)
    # As PIL images, values that are not finite would be black.
    unrounded = {"output_type": "np"} if "output_type" in signature(pipe.__call__).parameters else {}
    return pipe(**unrounded | dict(call), generator=generator)
