"""What the MODEL argument of a command stands for: a shipped model, a folder, or an id on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from catome_bench.measure.rows import describe
from catome_bench.models.pipeline import load_shipped
from catome_bench.names import ARCHS, Arch


def shipped_arch(model: str) -> Arch | None:
    """The shipped network that a name stands for.

    Examples:
        >>> [shipped_arch(name) for name in ("dit", "shipped/dit", "shipped", "./unet")]
        ['dit', 'dit', 'unet', None]
    """
    if model == "shipped":
        return ARCHS[0]
    return next((arch for arch in ARCHS if model in (arch, f"shipped/{arch}")), None)


def reason_offline(model: str) -> str:
    """Why the hub cannot be asked for a model of this name; empty if it has one."""
    from huggingface_hub import HfApi

    try:
        # One request, where a download without a network would be tried for half a minute.
        HfApi().model_info(model, timeout=10)
    except Exception as error:
        return describe(error)
    return ""


def open_pipeline(model: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A pipeline with its weights, of which only safetensors are read.

    Args:
        model: A shipped model, "unet", "dit" or "dit-patch1"; a folder that `save_pretrained` wrote; or an id on the
            hub.
        device: Torch device.
        dtype: Dtype of the weights.

    Raises:
        ValueError: If there is no such pipeline, or it cannot be read.

    Examples:
        >>> open_pipeline("dit").network.dtype
        torch.float32
    """
    arch = shipped_arch(model)
    if arch is not None:
        return load_shipped(arch, dtype).to(device)
    folder = Path(model)
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(f"{model} has no model_index.json; pass a folder that save_pretrained of a pipeline wrote")
    offline = "" if folder.is_dir() else reason_offline(model)
    try:
        pipe = DiffusionPipeline.from_pretrained(
            model, dtype=dtype, use_safetensors=True, local_files_only=bool(offline)
        )
    except Exception as error:
        if folder.is_dir():
            raise ValueError(f"{model} cannot be opened: {describe(error)}") from error
        raise ValueError(
            f"{model!r} is no folder, none of {ARCHS}, and neither on the hub nor in its cache "
            f"({offline or describe(error)}); pass one of these"
        ) from error
    return pipe.to(device)
