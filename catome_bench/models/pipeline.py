"""Class-conditional pixel pipelines in diffusers' own format: the shipped models draw through them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from catome_bench.models.photographs import CLASS_NAMES, to_pixels
from catome_bench.models.untrained import TOKENS_PER_CLASS
from catome_bench.models.weights import find_weights
from catome_bench.names import Arch


def class_tokens(labels: Tensor, classes: int) -> Tensor:
    """One-hot tokens (batch, 4, 4 * (classes + 1)), int64, for the UNet's projection.

    Args:
        labels: Class numbers (batch,), int64; the number `classes` means no class.
        classes: How many classes there are.

    Examples:
        >>> class_tokens(torch.tensor([0, 6]), classes=6).shape
        torch.Size([2, 4, 28])
    """
    index = labels[:, None] * TOKENS_PER_CLASS + torch.arange(TOKENS_PER_CLASS, device=labels.device)
    return F.one_hot(index, TOKENS_PER_CLASS * (classes + 1))


class ClassPipeline(DiffusionPipeline):
    """Draws pictures of named classes with classifier-free guidance; subclasses name the network.

    Works with any diffusers scheduler: `pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)`.

    Attributes:
        component: Name of the network among the pipeline's components.
    """

    component: ClassVar[str]

    scheduler: Any

    def __init__(self, network: ModelMixin, scheduler: Any, class_names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.register_modules(**{self.component: network}, scheduler=scheduler)
        self.register_to_config(class_names=list(class_names or CLASS_NAMES))

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Keyword arguments that condition the network on labels (batch,), int64; label `classes` means no class."""
        raise NotImplementedError

    @property
    def network(self) -> Any:
        """The network that predicts the noise."""
        return getattr(self, self.component)

    @property
    def token_pixels(self) -> int:
        """Side in pixels of the square that one token of the top level covers; a latent pixel covers 2 x 2."""
        return 2 * self.network.config.get("patch_size", 1)

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

        Raises:
            ValueError: If there is no class, one is unknown, or the size is not a multiple of 8.
        """
        labels = self._labels(classes)
        if size % 8:
            raise ValueError(f"size is {size}; expected a multiple of 8, which the networks fold and halve")
        shape = (len(labels), self.network.config.in_channels, size // 2, size // 2)
        latents = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.network.dtype)
        conditions = self._conditions(labels, guidance_scale)
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        latents = latents * self.scheduler.init_noise_sigma
        options = self._step_options(generator)
        progress_bar: Any = self.progress_bar  # its decorator has no types
        for timestep in progress_bar(self.scheduler.timesteps):
            noise = self._predict(latents, timestep, conditions, guidance_scale)
            latents = self.scheduler.step(noise, timestep, latents, **options).prev_sample
        return (to_pixels(latents).float() / 2 + 0.5).clamp(0, 1)

    def _labels(self, classes: Sequence[str]) -> Tensor:
        names = list(self.config["class_names"])
        unknown = [name for name in classes if name not in names]
        if unknown or not classes:
            raise ValueError(f"classes is {list(classes)}; expected at least one of {names}")
        return torch.tensor([names.index(name) for name in classes], device=self._execution_device)

    def _conditions(self, labels: Tensor, guidance_scale: float) -> dict[str, Tensor]:
        count = len(self.config["class_names"])
        if guidance_scale != 1:
            labels = torch.cat([torch.full_like(labels, count), labels])
        return self.conditions(labels, count, self.network.dtype)

    def _predict(
        self, latents: Tensor, timestep: Tensor, conditions: dict[str, Tensor], guidance_scale: float
    ) -> Tensor:
        batch = latents if guidance_scale == 1 else torch.cat([latents, latents])
        batch = self.scheduler.scale_model_input(batch, timestep)
        noise = self.network(batch, timestep[None], **conditions, return_dict=False)[0]
        if guidance_scale == 1:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _step_options(self, generator: Any) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in accepted else {}


class ClassConditionalPipeline(ClassPipeline):
    """Draws with a UNet, conditioned on the class by cross-attention."""

    component = "unet"

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, class_names: list[str] | None = None) -> None:
        super().__init__(unet, scheduler, class_names)

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tokens for cross-attention."""
        return {"encoder_hidden_states": class_tokens(labels, classes).to(dtype)}


class ClassConditionalDiTPipeline(ClassPipeline):
    """Draws with a DiT, conditioned on the class by adaptive layer norm."""

    component = "transformer"

    def __init__(
        self, transformer: DiTTransformer2DModel, scheduler: Any, class_names: list[str] | None = None
    ) -> None:
        super().__init__(transformer, scheduler, class_names)

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The labels themselves: the network has an embedding for no class."""
        return {"class_labels": labels}


PIPELINES: dict[Arch, type[ClassPipeline]] = {
    "unet": ClassConditionalPipeline,
    "dit": ClassConditionalDiTPipeline,
    "dit-patch1": ClassConditionalDiTPipeline,
}


def load_shipped(arch: Arch = "unet", dtype: torch.dtype = torch.float32) -> ClassPipeline:
    """Load the trained model of this architecture that ships with the library, ready to draw.

    Args:
        arch: The architecture.
        dtype: Of the weights, and of what is computed with them.

    Raises:
        ValueError: If there is no such model.
        FileNotFoundError: If its weights are neither in a checkout nor installed, with `pip install catome-weights`.

    Examples:
        >>> load_shipped("dit").network.config.num_layers
        7
    """
    if arch not in PIPELINES:
        raise ValueError(f"arch is {arch!r}; expected one of {list(PIPELINES)}")
    return PIPELINES[arch].from_pretrained(find_weights(arch), dtype=dtype, use_safetensors=True)
