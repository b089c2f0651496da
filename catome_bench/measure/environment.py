"""The device, the software and the versions that a measurement was made with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch

from catome_bench.measure.versions import installed_version

PACKAGES = ("torch", "diffusers", "catome")


def describe_environment(device: str, also: Sequence[str] = ()) -> dict[str, Any]:
    """Device, threads and versions, for JSON.

    Args:
        device: Torch device that the measurement runs on.
        also: Packages to list beside torch, diffusers and catome; the version of a missing package is None.

    Examples:
        >>> describe_environment("cpu", also=["no-such-package"])["no-such-package"] is None
        True
    """
    host = {"device": device_name(device), "threads": torch.get_num_threads(), "python": platform.python_version()}
    return host | {package: installed_version(package) for package in (*PACKAGES, *also)}


def device_name(device: str) -> str:
    """The name of the GPU, or the instruction set and threads of the CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.backends.cpu.get_cpu_capability()} CPU, {torch.get_num_threads()} threads"
