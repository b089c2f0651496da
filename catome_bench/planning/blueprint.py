"""Networks without weights: from the configuration in a folder or on the hub, or from the name of a timm model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from catome_adapters.architectures.find import NETWORKS
from catome_bench.measure.rows import describe
from catome_bench.models.weights import SHIPPED
from catome_bench.names import ARCHS
from catome_bench.open import reason_offline, shipped_arch
from catome_bench.planning.encoders import Sides, build_encoder, build_timm, is_timm
from catome_bench.planning.vae import SCALES, TYPICAL_SCALE, vae_scale


class Blueprint(NamedTuple):
    """Networks without weights.

    Attributes:
        networks: By the name that the pipeline gives them; "" for one by itself.
        scale: Pixels per pixel of their input along each side, and frames per frame.
        denoises: Whether they are called step by step, and not once per input.
    """

    networks: dict[str, nn.Module]
    scale: tuple[int, int]
    denoises: bool = True


def read_blueprint(model: str, sides: Sides = (None, None), dtype: torch.dtype = torch.float32) -> Blueprint:
    """Build the networks of a model on the meta device.

    Args:
        model: A shipped model, "unet", "dit" or "dit-patch1"; a folder of a pipeline or a network in diffusers format,
            or of a ViT of transformers; the name of a timm model, also with "timm:" in front; or an id on the hub.
        sides: Height and width in pixels, which a ViT is built for; None: its own.
        dtype: Dtype of the weights.

    Raises:
        ValueError: If there is no such model, or its configuration does not describe one.

    Examples:
        >>> read_blueprint("unet").networks["unet"].device
        device(type='meta')
    """
    arch = shipped_arch(model)
    folder = SHIPPED / arch if arch else Path(model)
    if folder.is_dir():
        found = _read_folder(folder, sides)
    elif model.startswith("timm:") or is_timm(model):
        found = Blueprint({"": build_timm(model.removeprefix("timm:"), sides)}, (1, 1), denoises=False)
    else:
        found = _read_folder(_from_hub(model), sides)
    for network in found.networks.values():
        # Not the model's own `to`, which warns about casting modules that should stay in float32.
        nn.Module.to(network, dtype)
    return found


def _read_folder(folder: Path, sides: Sides) -> Blueprint:
    files = {name: folder / name / "config.json" for name in NETWORKS}
    files = {name: file for name, file in files.items() if file.is_file()}
    alone = folder / "config.json"
    if not files and alone.is_file():
        files = {"": alone}
    if not files:
        places = ", ".join(f"{name}/config.json" for name in NETWORKS)
        raise ValueError(f"{folder} has neither {places} nor config.json; pass a folder that save_pretrained wrote")
    configs = {name: _read(file) for name, file in files.items()}
    if "model_type" in configs.get("", ()):
        return Blueprint({"": build_encoder(configs[""], sides)}, (1, 1), denoises=False)
    networks = {name: _build(config, files[name]) for name, config in configs.items()}
    return Blueprint(networks, _scale_beside(folder, next(iter(networks.values()))))


def _scale_beside(folder: Path, network: nn.Module) -> tuple[int, int]:
    """That of the VAE in the same folder, or the usual one of such networks; the shipped models have none."""
    if SHIPPED in folder.parents:
        return (2, 1)
    vae = folder / "vae" / "config.json"
    return _scale_of(vae) if vae.is_file() else SCALES.get(type(network).__name__, TYPICAL_SCALE)


def _scale_of(file: Path) -> tuple[int, int]:
    try:
        return vae_scale(_read(file))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} describes no VAE that is known: {describe(error)}; pass --scale") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds {str(config)[:40]}; expected an object, as diffusers writes it")
    return config


def _build(config: dict[str, Any], file: Path) -> nn.Module:
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and issubclass(kind, ConfigMixin)):
        raise ValueError(f"{file} describes a {name}; expected a network of diffusers, such as FluxTransformer2DModel")
    try:
        with torch.device("meta"):
            network = kind.from_config(config)
    except Exception as error:
        raise ValueError(f"{file} describes no {name} that can be built: {describe(error)}") from error
    assert isinstance(network, nn.Module)
    return network


def _from_hub(name: str) -> Path:
    """The configurations of a repository on the hub, downloaded or in its cache."""
    from huggingface_hub import snapshot_download

    offline = reason_offline(name)
    try:
        files = ["model_index.json", "config.json", "*/config.json"]
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=bool(offline)))
    except Exception as error:
        raise ValueError(
            f"{name!r} is no folder, none of {ARCHS}, no model of timm, and neither on the hub nor in its cache "
            f"({offline or describe(error)}); pass one of these"
        ) from error
