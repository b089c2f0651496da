"""What a pipeline has besides its network: text encoder, tokenizer, autoencoder and scheduler."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from zoo.noise import seeded
from zoo.unets import TEXT_WIDTH

TEXT_LENGTH = 8


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
    """Of letters, without words."""
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
