"""A class-conditional pixel pipeline in diffusers' own format: the shipped model draws through it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from catome_bench.photographs import CLASS_NAMES, to_pixels

SHIPPED_MODEL = Path(__file__).parent / "shipped"
TOKENS_PER_CLASS = 4


def build_unet(classes: int = len(CLASS_NAMES)) -> UNet2DConditionModel:
    """Build the untrained network: 8.7 M parameters, self-attention over every latent pixel at the top level."""
    return UNet2DConditionModel(
        sample_size=64,
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4, 6),
        cross_attention_dim=64,
        norm_num_groups=16,
        encoder_hid_dim=TOKENS_PER_CLASS * (classes + 1),
        encoder_hid_dim_type="text_proj",
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training: squared cosine, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def class_tokens(labels: Tensor, classes: int) -> Tensor:
    """One-hot tokens (batch, 4, 4 * (classes + 1)), embedded by the UNet's projection; label `classes` means none."""
    index = labels[:, None] * TOKENS_PER_CLASS + torch.arange(TOKENS_PER_CLASS, device=labels.device)
    return F.one_hot(index, TOKENS_PER_CLASS * (classes + 1))


class ClassConditionalPipeline(DiffusionPipeline):
    """Draws pictures of named classes with classifier-free guidance.

    Works with any diffusers scheduler: `pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)`.
    """

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, class_names: list[str] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=list(class_names or CLASS_NAMES))

    @torch.no_grad()
    def __call__(
        self,
        classes: Sequence[str],
        *,
        size: int = 128,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Tensor:
        """Draw one picture per class name.

        Args:
            classes: Names out of `pipe.config.class_names`.
            size: Height and width in pixels; a multiple of 8.
            num_inference_steps: Denoising steps.
            guidance_scale: Weight of classifier-free guidance; 1 switches it off.
            generator: One generator, or one per picture, for the first noise and stochastic schedulers.

        Returns:
            Pictures (batch, 3, size, size), float, in [0, 1].
        """
        labels = self._labels(classes)
        if size % 8:
            raise ValueError(f"size is {size}; expected a multiple of 8, which the network halves three times")
        shape = (len(labels), self.unet.config.in_channels, size // 2, size // 2)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        tokens = self._tokens(labels, guidance_scale)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = latents * self.scheduler.init_noise_sigma
        options = self._step_options(generator)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noise = self._predict(latents, timestep, tokens, guidance_scale)
            latents = self.scheduler.step(noise, timestep, latents, **options).prev_sample
        return (to_pixels(latents).float() / 2 + 0.5).clamp(0, 1)

    def _labels(self, classes: Sequence[str]) -> Tensor:
        names = list(self.config.class_names)
        unknown = [name for name in classes if name not in names]
        if unknown or not classes:
            raise ValueError(f"classes is {list(classes)}; expected at least one of {names}")
        return torch.tensor([names.index(name) for name in classes], device=self.device)

    def _tokens(self, labels: Tensor, guidance_scale: float) -> Tensor:
        count = len(self.config.class_names)
        if guidance_scale != 1:
            labels = torch.cat([torch.full_like(labels, count), labels])
        return class_tokens(labels, count).to(self.unet.dtype)

    def _predict(self, latents: Tensor, timestep: Tensor, tokens: Tensor, guidance_scale: float) -> Tensor:
        batch = latents if guidance_scale == 1 else torch.cat([latents, latents])
        batch = self.scheduler.scale_model_input(batch, timestep)
        noise = self.unet(batch, timestep, encoder_hidden_states=tokens, return_dict=False)[0]
        if guidance_scale == 1:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _step_options(self, generator: Any) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in accepted else {}


def load_shipped(folder: Path = SHIPPED_MODEL) -> ClassConditionalPipeline:
    """Load the trained model that travels with the package, in float32, ready to draw."""
    return ClassConditionalPipeline.from_pretrained(folder)
