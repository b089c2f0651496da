"""How fast a GPU is beside the one whose rates were measured, by its multiprocessors, its clock and its memory."""

from __future__ import annotations

from typing import Any, NamedTuple

MULTIPLICATIONS = {7: 512, 8: 256, 9: 2048, 10: 4096, 12: 256}
"""Multiply-adds of a multiprocessor's tensor cores in a cycle, in half precision with sums in single precision; by the
major compute capability."""
A100 = (8, 0)
"""Twice as many as the other GPUs of its generation, and twice again."""
H100_FLOPS, H100_BANDWIDTH = 2 * 2048 * 132 * 1.83e9, 3.35e12
"""By its data sheet."""


class RelativeSpeed(NamedTuple):
    """As shares of the figures of an H100."""

    arithmetic: float = 1.0
    memory: float = 1.0


def relative_speed(properties: Any) -> RelativeSpeed:
    """The speed of a GPU with these properties, as `torch.cuda.get_device_properties` gives them; 1 if it is unknown.

    Examples:
        >>> from types import SimpleNamespace
        >>> clocks = {"clock_rate": 2520000, "memory_clock_rate": 10501000}
        >>> rtx_4090 = SimpleNamespace(major=8, minor=9, multi_processor_count=128, memory_bus_width=384, **clocks)
        >>> speed = relative_speed(rtx_4090)
        >>> f"{speed.arithmetic:.2f} {speed.memory:.2f}"
        '0.17 0.30'
    """
    capability = properties.major, properties.minor
    of_one = 1024 if capability == A100 else MULTIPLICATIONS.get(properties.major)
    clock, width = getattr(properties, "clock_rate", 0), getattr(properties, "memory_bus_width", 0)
    if not of_one or not clock:
        return RelativeSpeed()
    arithmetic = 2 * of_one * properties.multi_processor_count * clock * 1e3 / H100_FLOPS
    # Two numbers of every line in a cycle, in kilohertz.
    memory = 2 * width / 8 * getattr(properties, "memory_clock_rate", 0) * 1e3 / H100_BANDWIDTH
    return RelativeSpeed(arithmetic, memory or arithmetic)
