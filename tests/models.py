"""Tiny diffusers networks and pipelines with random weights, built from configurations alone, and one run of each."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from catome_bench.pipeline import TOKENS_PER_CLASS, ClassConditionalPipeline
from catome_core import AdaptiveMerge, Match

TEXT_WIDTH, TEXT_LENGTH = 8, 8
CLASSES = ("cat", "dog")


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Random weights that are the same whatever ran before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sd_unet(**changes: Any) -> UNet2DConditionModel:
    """Shaped like SD1: self-attention from the top level down to the middle, at levels 1, 2 and 4."""
    config = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
        "norm_num_groups": 4,
    }
    with seeded():
        return UNet2DConditionModel(**config | changes).eval()


def sdxl_unet(**changes: Any) -> UNet2DConditionModel:
    """Shaped like SDXL: no attention at the top level, several blocks to a transformer, embedded sizes."""
    config = {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 1),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 8,
    }
    return sd_unet(**config | changes)


def class_unet(**changes: Any) -> UNet2DConditionModel:
    """The smallest network that the class-conditional pipeline can drive."""
    config = {
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "mid_block_type": None,
        "encoder_hid_dim": TOKENS_PER_CLASS * (len(CLASSES) + 1),
        "encoder_hid_dim_type": "text_proj",
    }
    return sd_unet(**config | changes)


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for the autoencoder below, with closing convolutions that are not zero: what it computes is seen."""
    with seeded(1):
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8)).eval()
        for parameter in net.controlnet_down_blocks.parameters():
            nn.init.normal_(parameter, std=0.3)
    return net


def text_encoder(cls: type = CLIPTextModel) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()),
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with seeded():
        return cls(config).eval()


def tokenizer() -> CLIPTokenizer:
    """Knows letters, and no words."""
    with TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(_vocabulary()))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT_LENGTH)


def _vocabulary() -> dict[str, int]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return {name: index for index, name in enumerate(names)}


def vae(**changes: Any) -> AutoencoderKL:
    """Halves the image once: a picture of 32 pixels has latents of 16."""
    with seeded():
        return AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            **changes,
        ).eval()


def ddim() -> DDIMScheduler:
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1)


def quiet(pipe: DiffusionPipeline) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


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
    with seeded(seed):  # for schedulers that draw without a generator
        return pipe(classes, size=size, num_inference_steps=steps, generator=generator, **options)


def conditions(unet: nn.Module, batch: int) -> dict[str, Any]:
    """What the network wants beside the sample and the timestep: another text for every sample."""

    def each(*shape: int) -> Tensor:
        return torch.stack([noise(*shape, seed=index) for index in range(batch)])

    inputs: dict[str, Any] = {"encoder_hidden_states": each(3, unet.config.cross_attention_dim)}
    if unet.config.addition_embed_type == "text_time":
        sizes = torch.tensor([[32, 32, 0, 0, 32, 32]]).expand(batch, -1)
        inputs["added_cond_kwargs"] = {"text_embeds": each(TEXT_WIDTH), "time_ids": sizes}
    return inputs


def predict(unet: nn.Module, sample: Tensor, timestep: int = 500, **options: Any) -> Tensor:
    """One call of a bare network, in the format of its weights."""
    inputs = conditions(unet, len(sample)) | options
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].to(unet.dtype)
    return unet(sample.to(unet.dtype), timestep, **inputs, return_dict=False)[0]


class BareNetwork:
    """A network without a scheduler: the session is told its steps."""

    def __init__(self, network: nn.Module) -> None:
        self.source = self.network = network

    @torch.no_grad()
    def run(self, session: Any = None, *, batch: int = 2, size: tuple[int, int] = (16, 16), steps: int = 3) -> Tensor:
        sample = noise(batch, self.network.config.in_channels, *size)
        for step in range(steps):
            if session is not None:
                session.begin_step(step, steps)
            sample = sample - 0.2 * predict(self.network, sample, 900 - 100 * step)
        return sample


class TextToImage:
    """A Stable Diffusion pipeline: its scheduler tells the session the steps. Sizes are those of the latents."""

    def __init__(self, pipe: Any) -> None:
        self.source, self.network = pipe, pipe.unet

    def run(self, session: Any = None, *, batch: int = 2, size: tuple[int, int] = (16, 16), steps: int = 3) -> Tensor:
        prompts, (height, width) = ["a cat", "a dog", "a fox"][:batch], size
        return self.source(
            prompts,
            height=2 * height,
            width=2 * width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images


SUBJECTS: dict[str, Callable[[], Any]] = {
    "sd1": lambda: BareNetwork(sd_unet()),
    "sdxl": lambda: BareNetwork(sdxl_unet()),
    "pipeline": lambda: TextToImage(sd_pipeline()),
}


@dataclass(frozen=True)
class CountingMerge(AdaptiveMerge):
    """Counts how often it matches during each call of a watched network: not zero means that pairs were recomputed."""

    calls: list[int] = field(default_factory=list, compare=False)

    def watch(self, network: nn.Module) -> None:
        network.register_forward_pre_hook(lambda *_: self.calls.append(0))

    def match(self, *args: Any, **kwargs: Any) -> Match:
        if self.calls:
            self.calls[-1] += 1
        return super().match(*args, **kwargs)

    @property
    def recomputed(self) -> list[int]:
        """The calls, from 0, that matched."""
        return [call for call, matches in enumerate(self.calls) if matches]


def anatomy(network: nn.Module) -> dict[str, Any]:
    """Whatever a patch could leave behind: modules, their attributes, processors, hooks, forwards, weights' names."""
    parts = {name: _anatomy(module) for name, module in network.named_modules()}
    return parts | {"state_dict": list(network.state_dict())}


def _anatomy(module: nn.Module) -> tuple[Any, ...]:
    hooks = {name: len(value) for name, value in vars(module).items() if "hooks" in name and value is not None}
    return type(module), sorted(vars(module)), hooks, module.forward, type(getattr(module, "processor", None))
