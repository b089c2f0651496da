"""The FLOPs of a UNet, counted on the meta device: most of them are convolutions, which no site knows of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from catome_adapters.sites.weights import TEXT_TOKENS


def count_flops(network: Any, size: tuple[int, ...]) -> int:
    """FLOPs of a UNet for one sample of this height and width.

    Raises:
        ValueError: If the configuration requires an input that cannot be made here.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**make_inputs(network, size))
    return counter.get_total_flops()


def make_inputs(network: Any, size: tuple[int, ...]) -> dict[str, Any]:
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


def _empty(network: Any, *shape: int) -> Tensor:
    return torch.zeros(1, *shape, device="meta", dtype=network.dtype)
