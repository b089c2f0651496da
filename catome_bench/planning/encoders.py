"""Vision transformers without weights: of timm by their names, of transformers by their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from catome_bench.measure.rows import describe

Sides = tuple[int | None, int | None]
"""Height and width in pixels, that a model is built for; None: its own."""


def is_timm(name: str) -> bool:
    """Whether timm is installed and has a model of this name."""
    try:
        import timm
    except ModuleNotFoundError:
        return False
    return timm.is_model(name)


def build_timm(name: str, sides: Sides) -> nn.Module:
    """Build a model on the meta device, for images of this size.

    Raises:
        ValueError: If there is none, or it cannot have this size.
    """
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


def build_encoder(config: Mapping[str, Any], sides: Sides) -> nn.Module:
    """Build a model of transformers on the meta device, for images of this size.

    Raises:
        ValueError: If the configuration describes none.
    """
    import transformers

    names = [name for name in config.get("architectures") or () if hasattr(transformers, name)]
    try:
        known = transformers.AutoConfig.for_model(**_at_size(config, sides))
        kind: Any = getattr(transformers, names[0]) if names else transformers.AutoModel
        with torch.device("meta"):
            return kind._from_config(known) if names else kind.from_config(known)
    except Exception as error:
        what = config.get("model_type")
        raise ValueError(f"transformers cannot build this {what} at this size: {describe(error)}") from error


def _at_size(config: Mapping[str, Any], sides: Sides) -> dict[str, Any]:
    height, width = sides[0] or sides[1], sides[1] or sides[0]
    if height is None:
        return dict(config)
    size = {"image_size": height if height == width else [height, width]}
    # In a model of images and text.
    part = config.get("vision_config")
    return dict(config) | ({"vision_config": part | size} if part else size)
