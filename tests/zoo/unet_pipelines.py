"""Tiny pipelines around the tiny UNets, and one run of each."""

from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from catome_bench.models.pipeline import ClassConditionalPipeline
from zoo.noise import noise, seeded
from zoo.pipeline_parts import ddim, quiet, text_encoder, tokenizer, vae
from zoo.unets import CLASSES, class_unet, sd_unet, sdxl_unet


def sd_pipeline(cls: type = StableDiffusionPipeline, scheduler: Any = None, **parts: Any) -> Any:
    """Text to image, or another of the SD1 pipelines."""
    parts = {"unet": sd_unet(), "vae": vae(), "scheduler": scheduler or ddim()} | parts
    texts = {"text_encoder": text_encoder(), "tokenizer": tokenizer()}
    safety = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return quiet(cls(**parts, **texts, **safety))


def sdxl_pipeline() -> Any:
    texts = {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(CLIPTextModelWithProjection)}
    words = {"tokenizer": tokenizer(), "tokenizer_2": tokenizer()}
    return quiet(StableDiffusionXLPipeline(vae(), unet=sdxl_unet(), scheduler=ddim(), **texts, **words))


def class_pipeline(scheduler: Any = None) -> Any:
    return quiet(ClassConditionalPipeline(class_unet(), scheduler or ddim(), CLASSES))


def draw(pipe: Any, *, batch: int = 1, size: int = 16, steps: int = 5, seed: int = 0, **options: Any) -> Tensor:
    """Pictures (batch, 3, size, size) of a class-conditional pipeline."""
    generator = torch.Generator().manual_seed(seed)
    classes = [CLASSES[index % len(CLASSES)] for index in range(batch)]
    with seeded(seed):
        return pipe(classes, size=size, num_inference_steps=steps, generator=generator, **options)


def picture(pipe: Any, *, steps: int | None = 4, **options: Any) -> Tensor:
    """Latents of a text-to-image pipeline."""
    options = {"height": 32, "width": 32, "num_inference_steps": steps, "output_type": "latent"} | options
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images


def redraw(pipe: Any) -> Tensor:
    """Latents of an image-to-image pipeline, the second half of ten steps."""
    options = {"image": noise(1, 3, 32, 32).clamp(0, 1), "strength": 0.5}
    generator = torch.Generator().manual_seed(0)
    return pipe("a cat", num_inference_steps=10, generator=generator, output_type="latent", **options).images
