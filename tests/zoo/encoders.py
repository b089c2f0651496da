"""Tiny vision encoders of transformers, of every kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import transformers
from torch import Tensor, nn

from zoo.architecture import Architecture, Arguments, Size, image_sample
from zoo.noise import seeded
from zoo.vits import SIZES, grid_of

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
VISION = TINY | {"image_size": 32, "patch_size": 4}
TEXT = TINY | {"vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True, kw_only=True)
class Encoder(Architecture):
    """A vision encoder for images of 32 x 32 pixels, and of others.

    Attributes:
        folder: The path of its layers.
        prefix: Class and register tokens.
    """

    folder: str
    prefix: int = 1

    def network(self, **changes: Any) -> Any:
        """The network, the same whatever ran before; no branch is scaled to next to nothing."""
        with seeded():
            network = self.build(**changes).eval()
            for name, parameter in network.named_parameters():
                if parameter.ndim > 1 or "lambda" in name:
                    nn.init.normal_(parameter, std=0.3)
        return network

    def shallow(self) -> Any:
        return self.network(num_hidden_layers=1)


def make_model(name: str, **changes: Any) -> nn.Module:
    """A model of transformers by the name of its class."""
    model = getattr(transformers, name)
    return model(model.config_class(**VISION | changes))


def image_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return {"pixel_values": sample}


def image_inputs_of_any_size(sample: Tensor, size: Size, text: int) -> Arguments:
    """For models that refuse another size than the one they were made for, unless they are told."""
    return {"pixel_values": sample, "interpolate_pos_encoding": True}


def encoder(model: str, layer: str, folder: str, *, inputs: Callable[..., Arguments], prefix: int = 1) -> Encoder:
    return Encoder(
        build=partial(make_model, model),
        arguments=inputs,
        sizes=SIZES,
        sample=image_sample(3),
        grid=grid_of,
        blocks=(layer,),
        depths=("num_hidden_layers",),
        folder=folder,
        prefix=prefix,
    )


VIT = encoder("ViTModel", "ViTLayer", "layers", inputs=image_inputs_of_any_size)
ENCODERS: dict[str, Encoder] = {
    "ViTModel": VIT,
    "Dinov2Model": encoder("Dinov2Model", "Dinov2Layer", "encoder.layer", inputs=image_inputs),
    "Dinov2WithRegistersModel": encoder(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersLayer", "encoder.layer", inputs=image_inputs, prefix=5
    ),
    "DINOv3ViTModel": replace(
        encoder("DINOv3ViTModel", "DINOv3ViTLayer", "model.layer", inputs=image_inputs, prefix=5),
        build=partial(make_model, "DINOv3ViTModel", num_register_tokens=4),
    ),
    "SiglipVisionModel": encoder(
        "SiglipVisionModel", "SiglipEncoderLayer", "encoder.layers", inputs=image_inputs_of_any_size, prefix=0
    ),
    "CLIPVisionModel": encoder(
        "CLIPVisionModel", "CLIPEncoderLayer", "encoder.layers", inputs=image_inputs_of_any_size
    ),
}


def image_and_text(name: str) -> Any:
    """CLIP or SigLIP, with a text encoder whose layers are those of the vision encoder."""
    model = getattr(transformers, f"{name}Model")
    with seeded():
        return model(model.config_class(text_config=TEXT, vision_config=VISION)).eval()
