"""Networks without weights: from the configuration in a folder or on the hub, or from the name of a timm model."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from torch import nn

from catome_adapters.architectures.find import NETWORKS
from catome_bench.measure.rows import describe
from catome_bench.models.weights import SHIPPED
from catome_bench.planning.vae import SCALES, TYPICAL_SCALE, vae_scale

Sides = tuple[int | None, int | None]


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
        model: "shipped" or "shipped/dit", a folder of a pipeline or a network in diffusers format, the name of a timm
            model, also with "timm:" in front, or an id on the hub.
        sides: Height and width in pixels, which a timm model is built for; None: its own.
        dtype: Dtype of the weights.

    Raises:
        ValueError: If there is no such model, or its configuration does not describe one.

    Examples:
        >>> read_blueprint("shipped").networks["unet"].device
        device(type='meta')
    """
    name, _, rest = model.partition("/")
    folder = SHIPPED / (rest or "unet") if name == "shipped" else Path(model)
    if folder.is_dir():
        found = _read_folder(folder)
    elif model.startswith("timm:") or _is_timm(model):
        found = Blueprint({"": _build_timm(model.removeprefix("timm:"), sides)}, (1, 1), denoises=False)
    else:
        found = _read_folder(_from_hub(model))
    for network in found.networks.values():
        # Not the model's own `to`, which warns about casting modules that should stay in float32.
        nn.Module.to(network, dtype)
    return found


def _read_folder(folder: Path) -> Blueprint:
    files = {name: folder / name / "config.json" for name in NETWORKS}
    files = {name: file for name, file in files.items() if file.is_file()}
    if not files and (folder / "config.json").is_file():
        files = {"": folder / "config.json"}
    if not files:
        places = ", ".join(f"{name}/config.json" for name in NETWORKS)
        raise ValueError(f"{folder} has neither {places} nor config.json; pass a folder in diffusers format")
    networks = {name: _build(file) for name, file in files.items()}
    if SHIPPED in folder.parents:
        return Blueprint(networks, (2, 1))
    vae = folder / "vae" / "config.json"
    kind = type(next(iter(networks.values()))).__name__
    return Blueprint(networks, _scale_of(vae) if vae.is_file() else SCALES.get(kind, TYPICAL_SCALE))


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


def _build(file: Path) -> nn.Module:
    config = _read(file)
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


def _is_timm(name: str) -> bool:
    try:
        import timm
    except ModuleNotFoundError:
        return False
    return timm.is_model(name)


def _build_timm(name: str, sides: Sides) -> nn.Module:
    import timm

    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models())
        raise ValueError(f"timm has no model {name!r}; expected one of timm.list_models(), such as {close}")
    try:
        with torch.device("meta"):
            if sides == (None, None):
                return timm.create_model(name)
            height, width = sides
            return timm.create_model(name, img_size=(height or width, width or height))
    except Exception as error:
        raise ValueError(f"timm cannot build {name} at this size: {describe(error)}") from error


def _from_hub(name: str) -> Path:
    """The configurations of a repository on the hub, downloaded or in its cache."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One request, where a download without a network would be tried for half a minute.
        online, reason = HfApi().model_info(name, timeout=10) is not None, ""
    except Exception as error:
        online, reason = False, describe(error)
    try:
        files = ["model_index.json", "config.json", "*/config.json"]
        return Path(snapshot_download(name, allow_patterns=files, local_files_only=not online))
    except Exception as error:
        raise ValueError(
            f"{name!r} is no folder, no model of timm, and neither on the hub nor in its cache "
            f"({reason or describe(error)}); pass one of these, or 'shipped'"
        ) from error
