"""Forecast how much merging could save in a network at an input size, from FLOPs counted on the meta device."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from catome_adapters import SCOPES, MergeRecipe, MergeSite, find_sites
from catome_adapters.architectures.unet import at_size
from catome_adapters.prediction.levels import attached_levels, predict_levels
from catome_adapters.sites.weights import TEXT_TOKENS, count_weights
from catome_bench.models.pipeline import SHIPPED_MODEL

SHIPPED_SCALE, TYPICAL_SCALE = 2, 8


class Forecast(NamedTuple):
    """The arithmetic of a network at one input size.

    Attributes:
        sites: The network's sites, with their grids at this size.
        flops: FLOPs of every module for one sample, by module path; "" is the whole network.
        levels: The levels that `levels="auto"` attaches to.
    """

    sites: list[MergeSite]
    flops: dict[str, int]
    levels: list[int]

    def ceiling(self, sites: Iterable[MergeSite], removed: float, scope: str) -> float:
        """Speed-up of the whole network if removing this share of the tokens of these sites were free."""
        saved = sum(sum(SCOPES[scope].saved_flops(count_weights(site), count_tokens(site), removed)) for site in sites)
        return self.flops[""] / (self.flops[""] - saved)

    def share(self, paths: Iterable[str]) -> float:
        """Share of the network's FLOPs that these modules take."""
        return sum(self.flops.get(path, 0) for path in paths) / self.flops[""]


def count_tokens(site: MergeSite) -> int:
    """Tokens of a site; 0 if its grid is unknown."""
    height, width = site.shape or (0, 0)
    return height * width


def build_network(folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Build the UNet of a folder on the meta device, without weights.

    Args:
        folder: A pipeline's folder with `unet/config.json`, or a UNet's with `config.json`.
        dtype: Dtype of the weights.

    Raises:
        ValueError: If there is no such file, or it describes another kind of network.

    Examples:
        >>> build_network(SHIPPED_MODEL).device
        device(type='meta')
    """
    files = [file for file in (folder / "unet" / "config.json", folder / "config.json") if file.is_file()]
    if not files:
        raise ValueError(f"{folder} has neither unet/config.json nor config.json; pass a folder in diffusers format")
    config = json.loads(files[0].read_text())
    if config.get("_class_name") != UNet2DConditionModel.__name__:
        raise ValueError(f"{files[0]} describes a {config.get('_class_name')}; expected a UNet2DConditionModel")
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(config)
    assert isinstance(network, UNet2DConditionModel)
    # Not the model's own `to`, which warns about casting modules that should stay in float32.
    nn.Module.to(network, dtype)
    return network


def find_scale(folder: Path) -> int:
    """Pixels per pixel of the network's input, along each side, from the VAE's configuration if there is one."""
    vae = folder / "vae" / "config.json"
    if vae.is_file():
        return 2 ** (len(json.loads(vae.read_text())["block_out_channels"]) - 1)
    return SHIPPED_SCALE if folder == SHIPPED_MODEL else TYPICAL_SCALE


def input_size(network: UNet2DConditionModel, height: int | None, width: int | None, scale: int) -> tuple[int, int]:
    """Height and width of the network's input for a picture of this many pixels.

    Raises:
        ValueError: If a side is not a multiple of `scale`, or it is missing and the configuration has no size.

    Examples:
        >>> input_size(build_network(SHIPPED_MODEL), 256, None, 2)
        (128, 64)
    """
    odd = [side for side in (height, width) if side is not None and side % scale]
    if odd:
        raise ValueError(f"{odd[0]} pixels are no multiple of {scale}, the scale of the VAE; change one of them")
    own = network.config["sample_size"]
    own = (own, own) if isinstance(own, int) or own is None else own
    rows, columns = (
        side if pixels is None else pixels // scale for pixels, side in zip((height, width), own, strict=True)
    )
    if rows is None or columns is None:
        raise ValueError("the network's config has no sample_size; pass --height and --width")
    return rows, columns


def forecast(network: UNet2DConditionModel, size: tuple[int, int], recipe: MergeRecipe, device: str) -> Forecast:
    """Count the FLOPs of a network for one sample of this input size, and choose the levels.

    Raises:
        ValueError: If there is nothing to merge, or the network takes an input that cannot be made here.
    """
    sites = find_sites(network)
    if not sites:
        raise ValueError("the network has no self-attention that merging supports; see find_sites")
    return Forecast(
        at_size(sites, size), count_flops(network, size), attached_levels(sites, predict_levels(sites, recipe, device))
    )


def count_flops(network: UNet2DConditionModel, size: tuple[int, int]) -> dict[str, int]:
    """FLOPs of every module by module path; "" is the whole network."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**make_inputs(network, size))
    counts = {name.partition(".")[2]: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    return counts | {"": counter.get_total_flops()}


def make_inputs(network: UNet2DConditionModel, size: tuple[int, int]) -> dict[str, Any]:
    """Arguments of one call, on the meta device.

    Raises:
        ValueError: If the configuration requires an input that cannot be made here.
    """
    config = network.config
    _check_inputs(config)
    text = config["encoder_hid_dim"] or config["cross_attention_dim"]
    inputs: dict[str, Any] = {
        "sample": _empty(network, config["in_channels"], *size),
        "timestep": torch.zeros((), device="meta"),
        "encoder_hidden_states": _empty(network, TEXT_TOKENS, text if isinstance(text, int) else text[0]),
    }
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": _empty(network, pooled), "time_ids": _empty(network, 6)}
    return inputs


def _check_inputs(config: Any) -> None:
    known = {"addition_embed_type": (None, "text_time"), "encoder_hid_dim_type": (None, "text_proj")}
    known |= {"class_embed_type": (None,), "num_class_embeds": (None,)}
    for name, values in known.items():
        if config[name] not in values:
            raise ValueError(f"{name} is {config[name]!r}; expected one of {values}, for which inputs can be made")


def _empty(network: UNet2DConditionModel, *shape: int) -> Tensor:
    return torch.zeros(1, *shape, device="meta", dtype=network.dtype)
