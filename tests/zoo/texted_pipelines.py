"""Tiny pipelines with text encoders, as `save_pretrained` saves them and `catome compare` opens them."""

from collections.abc import Callable
from typing import Any

from diffusers import AutoencoderKLWan, FluxPipeline, UniPCMultistepScheduler, WanPipeline
from torch import nn
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

from zoo.noise import seeded
from zoo.pipeline_parts import quiet, text_encoder, tokenizer
from zoo.transformer_pipelines import autoencoder, flow, network
from zoo.unet_pipelines import sd_pipeline, sdxl_pipeline
from zoo.unets import TEXT_WIDTH


def t5(cls: type = T5EncoderModel, config: type = T5Config) -> nn.Module:
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with seeded():
        return cls(config(vocab_size=64, **sizes)).eval()


def flux() -> Any:
    texts = {
        "text_encoder": text_encoder(),
        "tokenizer": tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": tokenizer(),
    }
    transformer = network("Flux", in_channels=16)
    return quiet(FluxPipeline(flow(use_dynamic_shifting=True), autoencoder(), transformer=transformer, **texts))


def wan() -> Any:
    latents = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    with seeded():
        vae = AutoencoderKLWan(base_dim=4, dim_mult=[1] * 4, num_res_blocks=1, **latents).eval()
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return quiet(WanPipeline(tokenizer(), t5(UMT5EncoderModel, UMT5Config), vae, scheduler, network("Wan")))


TEXTED: dict[str, Callable[[], Any]] = {"SD1.5": sd_pipeline, "SDXL": sdxl_pipeline, "Flux": flux, "Wan": wan}
