"""What devices sustain, to the order of magnitude that a decision needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class DeviceRates:
    """Rates that a device sustains, to the order of magnitude that a decision needs.

    Attributes:
        flops: FLOP/s of a matrix product.
        attention_flops: FLOP/s of fused attention.
        bandwidth: Bytes/s of copying.
        launch: Seconds that a small operation takes however small it is, without compilation.
        tiling: Bytes/s at which the tiles of a near field get their keys, beside `bandwidth`.
        hooks: Seconds of Python around a block whose keys are gathered, without compilation; an accelerator computes
            meanwhile.
    """

    flops: float
    attention_flops: float
    bandwidth: float
    launch: float
    tiling: float = float("inf")
    hooks: float = 0.0


DEVICE_RATES = {
    "cpu": DeviceRates(flops=1.4e11, attention_flops=1.5e11, bandwidth=3e10, launch=1.5e-5, tiling=3e9, hooks=2e-4),
    "cuda": DeviceRates(flops=4e14, attention_flops=3e14, bandwidth=3e12, launch=5e-6),
}
"""Two cores of a server's CPU in float32, and a recent data-center GPU in bfloat16."""


def rates_for(device_type: str) -> DeviceRates:
    """The rates of a device type such as "cpu"; every accelerator counts as "cuda"."""
    return DEVICE_RATES["cpu" if device_type == "cpu" else "cuda"]


def rates_of(module: nn.Module, device_type: str = "") -> DeviceRates:
    """The rates of the device where a module's weights are, or of another `device_type`."""
    return rates_for(device_type or next((weight.device.type for weight in module.parameters()), "cpu"))
