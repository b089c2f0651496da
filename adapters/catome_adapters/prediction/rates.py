"""What devices sustain, to the order of magnitude that a decision needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from catome_adapters.prediction.gpus import RelativeSpeed, relative_speed


class Work(NamedTuple):
    """Seconds that something takes of the device, and of the host that launches it there."""

    device: float
    host: float


@dataclass(frozen=True)
class DeviceRates:
    """Rates that a device sustains, to the order of magnitude that a decision needs.

    Attributes:
        flops: FLOP/s of a matrix product.
        attention_flops: FLOP/s of fused attention.
        bandwidth: Bytes/s of copying.
        launch: Seconds of the host for a small operation, without compilation.
        tiling: Bytes/s at which the tiles of a near field get their keys, beside `bandwidth`.
        tile_flops: FLOP/s of fused attention in tiles that gather their own keys; None: as of any other.
        joining: Passes over the queries that each part of a near field takes to be joined to the others; None: tiles
            gather their own keys.
        convolution_flops: FLOP/s of a UNet's convolutions, with the norms and activations around them; None: as of a
            matrix product.
        single_share: Share of the FLOP/s of matrix products and attention that is left in single precision.
        hooks: Seconds of the host around a block that merges, without compilation.
        runs_ahead: Whether the host launches operations while the device computes earlier ones.
    """

    flops: float
    attention_flops: float
    bandwidth: float
    launch: float
    tiling: float = float("inf")
    tile_flops: float | None = None
    joining: float | None = None
    convolution_flops: float | None = None
    single_share: float = 1.0
    hooks: float = 0.0
    runs_ahead: bool = False

    def elapsed(self, *parts: Work) -> float:
        """Seconds that these parts take together: as long as the slower of the two, where the host runs ahead.

        Examples:
            >>> for rates in DEVICE_RATES.values():
            ...     print(f"{1e3 * rates.elapsed(Work(device=1e-3, host=2e-4), Work(device=1e-3, host=1e-4)):.1f} ms")
            2.3 ms
            2.0 ms
        """
        device, host = (sum(seconds) for seconds in zip(*parts, strict=True))
        return max(device, host) if self.runs_ahead else device + host

    def scaled(self, speed: RelativeSpeed) -> DeviceRates:
        """Those of a device of another speed, with the same host."""
        arithmetic, memory = speed
        return replace(
            self,
            flops=self.flops * arithmetic,
            attention_flops=self.attention_flops * arithmetic,
            tile_flops=self.tile_flops and self.tile_flops * arithmetic,
            convolution_flops=self.convolution_flops and self.convolution_flops * arithmetic,
            bandwidth=self.bandwidth * memory,
        )

    def in_precision(self, itemsize: int) -> DeviceRates:
        """The same for numbers of `itemsize` bytes."""
        if itemsize < 4 or self.single_share == 1.0:
            return self
        return replace(
            self,
            flops=self.flops * self.single_share,
            attention_flops=self.attention_flops * self.single_share,
            tile_flops=self.tile_flops and self.tile_flops * self.single_share,
            single_share=1.0,
        )

    @property
    def compiled(self) -> DeviceRates:
        """The same for compiled code, in which the host does little; on a CPU it makes no difference that counts."""
        if not self.runs_ahead:
            return self
        return replace(self, launch=self.launch / 5, hooks=0.0, joining=self.joining and 1.0)


DEVICE_RATES = {
    "cpu": DeviceRates(flops=1.4e11, attention_flops=1.5e11, bandwidth=3e10, launch=1.5e-5, tiling=3e9, hooks=2e-4),
    "cuda": DeviceRates(
        flops=7e14,
        attention_flops=6e14,
        tile_flops=3.4e14,
        joining=6.0,
        convolution_flops=1.7e14,
        single_share=0.06,
        bandwidth=3e12,
        launch=2.2e-5,
        hooks=2e-4,
        runs_ahead=True,
    ),
}
"""Measured: two cores of a server's CPU in float32, and an H100 in bfloat16, and in float32 without TF32."""


SPEEDS: dict[int, RelativeSpeed] = {}
"""Of the GPUs that eager code has asked about, by index."""


def rates_for(device: torch.device | str, *, compiled: bool = False) -> DeviceRates:
    """The rates of a device, for eager or compiled code.

    Those of a GPU are scaled by its own speed. Every other accelerator counts as the GPU that was measured, as does
    "cuda" where there is none.
    """
    device = torch.device(device)
    rates = DEVICE_RATES["cpu" if device.type == "cpu" else "cuda"]
    if device.type == "cuda":
        index = device.index or 0
        if index not in SPEEDS and not torch.compiler.is_compiling() and torch.cuda.is_available():
            SPEEDS[index] = relative_speed(torch.cuda.get_device_properties(index))
        rates = rates.scaled(SPEEDS.get(index, RelativeSpeed()))
    return rates.compiled if compiled else rates


def rates_of(module: nn.Module, *, compiled: bool = False) -> DeviceRates:
    """The rates of the device where a module's weights are, for eager or compiled code."""
    device = next((weight.device for weight in module.parameters()), "cpu")
    return rates_for(device, compiled=compiled)
