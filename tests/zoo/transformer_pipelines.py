"""Tiny pipelines around the tiny transformers, without text encoders: a prompt is a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ChromaPipeline,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DDIMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    LTXPipeline,
    Lumina2Pipeline,
    PixArtAlphaPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Pipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    ZImagePipeline,
)
from torch import Tensor, nn

from zoo.architecture import Architecture
from zoo.noise import noise, seeded
from zoo.pipeline_parts import quiet, vae
from zoo.transformers import ALL_ARCHITECTURES

TEXT = Architecture.text


@dataclass(frozen=True)
class Pipeline:
    """A kind of pipeline.

    Attributes:
        build: Makes it, always with the same weights.
        options: Arguments of its call, beside the number of steps.
        contexts: Names of the calls of a step.
        calls: How often a step calls the network.
    """

    build: Callable[[], Any]
    options: dict[str, Any]
    contexts: tuple[str, ...] = ("",)
    calls: int = 1

    def run(self, pipe: Any, *, steps: int = 6, seed: int = 0, **options: Any) -> Tensor:
        """Latents, or pictures where there are no latents."""
        generator = torch.Generator().manual_seed(seed)
        options = self.options | {"num_inference_steps": steps, "generator": generator, "return_dict": False} | options
        with seeded():
            images = pipe(**options)[0]
        return torch.as_tensor(images)


def autoencoder() -> AutoencoderKL:
    """For pipelines of transformers, which shift their latents as well."""
    return vae(shift_factor=0.0)


def prompt(seed: int = 1, batch: int = 1) -> Tensor:
    return noise(batch, TEXT, 8, seed=seed)


def flow(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**options)


def network(name: str, **changes: Any) -> nn.Module:
    return ALL_ARCHITECTURES[name].network(**changes)


def build(cls: type, scheduler: Any, transformer: nn.Module, vae: Any, *texts: str, **others: Any) -> Any:
    """A pipeline without its text encoders."""
    nothing = dict.fromkeys(texts)
    return quiet(cls(transformer=transformer, scheduler=scheduler, vae=vae, **nothing, **others))


def flux(cls: type = FluxPipeline) -> Any:
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    return build(cls, flow(use_dynamic_shifting=True), network("Flux", in_channels=16), autoencoder(), *texts)


def sd3(cls: type = StableDiffusion3Pipeline) -> Any:
    texts = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    return build(cls, flow(shift=3.0), network("SD3"), autoencoder(), *texts)


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan(**others: Any) -> Any:
    return build(WanPipeline, unipc(), network("Wan"), None, "text_encoder", "tokenizer", **others)


def two_wans() -> Any:
    """Wan 2.2: one network for the noisy half of a run, another one for the rest."""
    return wan(transformer_2=network("Wan", ffn_dim=48), boundary_ratio=0.75)


def pixart() -> Any:
    return build(
        PixArtAlphaPipeline,
        DPMSolverMultistepScheduler(),
        network("PixArt"),
        autoencoder(),
        "text_encoder",
        "tokenizer",
    )


def dit() -> Any:
    transformer = network("DiT", num_embeds_ada_norm=1000, out_channels=8)
    return quiet(DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False)))


def cogvideox() -> Any:
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    return build(
        CogVideoXPipeline, scheduler, network("CogVideoX", attention_head_dim=16), None, "text_encoder", "tokenizer"
    )


def shifted(cls: type, transformer: nn.Module) -> Any:
    """A pipeline of pictures with one text encoder, whose schedule depends on the size."""
    return build(cls, flow(use_dynamic_shifting=True), transformer, autoencoder(), "text_encoder", "tokenizer")


def skyreels() -> Any:
    return build(SkyReelsV2Pipeline, unipc(), network("SkyReels-V2"), None, "text_encoder", "tokenizer")


def skyreels_forcing() -> Any:
    transformer = network("SkyReels-V2", in_channels=16, out_channels=16)
    return build(SkyReelsV2DiffusionForcingPipeline, unipc(), transformer, None, "text_encoder", "tokenizer")


def ltx() -> Any:
    return build(LTXPipeline, flow(use_dynamic_shifting=True), network("LTX"), None, "text_encoder", "tokenizer")


LATENT = {"output_type": "latent"}
PROMPTS = {"prompt_embeds": prompt(), "negative_prompt_embeds": prompt(2)}
POOLED = {"pooled_prompt_embeds": noise(1, 8), "negative_pooled_prompt_embeds": noise(1, 8, seed=2)}
MASKS = {"prompt_attention_mask": torch.ones(1, TEXT), "negative_prompt_attention_mask": torch.ones(1, TEXT)}
IMAGE = {"image": noise(1, 3, 32, 32).clamp(0, 1), "strength": 0.5}
SQUARE = {"height": 32, "width": 32}
CLIP = {"height": 96, "width": 96, "num_frames": 9}
BOTH = ("cond", "uncond")
COUNTED = ("", "call 2")
COUNTS = {name: mask.long() for name, mask in MASKS.items()}
EACH_OF_A_LIST = {"prompt_embeds": [prompt()[0]], "negative_prompt_embeds": [prompt(2)[0]]}

PIPELINES: dict[str, Pipeline] = {
    "SD3": Pipeline(sd3, LATENT | PROMPTS | POOLED | SQUARE),
    "SD3 img2img": Pipeline(lambda: sd3(StableDiffusion3Img2ImgPipeline), LATENT | PROMPTS | POOLED | SQUARE | IMAGE),
    "Flux": Pipeline(flux, LATENT | PROMPTS | POOLED | SQUARE | {"true_cfg_scale": 4.0}, BOTH, 2),
    "Flux, guidance distilled": Pipeline(
        flux, LATENT | SQUARE | {"prompt_embeds": prompt(), "pooled_prompt_embeds": noise(1, 8)}, ("cond",)
    ),
    "Flux img2img": Pipeline(
        lambda: flux(FluxImg2ImgPipeline),
        LATENT | SQUARE | IMAGE | {"prompt_embeds": prompt(), "pooled_prompt_embeds": noise(1, 8)},
    ),
    "Wan": Pipeline(wan, LATENT | PROMPTS | CLIP, BOTH, 2),
    "Wan 2.2": Pipeline(two_wans, LATENT | PROMPTS | CLIP, BOTH, 2),
    "PixArt": Pipeline(
        pixart,
        LATENT | PROMPTS | MASKS | SQUARE | {"negative_prompt": None, "use_resolution_binning": False},
    ),
    "DiT": Pipeline(dit, {"class_labels": [1], "output_type": "np"}),
    "CogVideoX": Pipeline(cogvideox, LATENT | PROMPTS | CLIP, ("cond_uncond",)),
    "Chroma": Pipeline(
        lambda: shifted(ChromaPipeline, network("Chroma", in_channels=16)),
        LATENT | PROMPTS | MASKS | SQUARE,
        COUNTED,
        2,
    ),
    "Z-Image": Pipeline(lambda: shifted(ZImagePipeline, network("Z-Image")), LATENT | EACH_OF_A_LIST | SQUARE),
    "Lumina 2": Pipeline(
        lambda: shifted(Lumina2Pipeline, network("Lumina 2")),
        LATENT | PROMPTS | COUNTS | {"height": 128, "width": 128},
        COUNTED,
        2,
    ),
    "SkyReels-V2": Pipeline(skyreels, LATENT | PROMPTS | CLIP, BOTH, 2),
    "SkyReels-V2 with diffusion forcing": Pipeline(
        skyreels_forcing, LATENT | PROMPTS | {"prompt": None, "height": 96, "width": 96, "num_frames": 9}, BOTH, 2
    ),
    "LTX": Pipeline(ltx, LATENT | PROMPTS | MASKS | {"height": 192, "width": 192, "num_frames": 17}, ("cond_uncond",)),
}
