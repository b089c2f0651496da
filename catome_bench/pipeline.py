"""Class-conditional pixel pipelines in diffusers' own format: the shipped models draw through them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTTransformer2DModel, ModelMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from catome_bench.photographs import CLASS_NAMES, to_pixels

Arch = Literal["unet", "dit"]

SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_MODEL = SHIPPED / "unet"
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


def build_dit(classes: int = len(CLASS_NAMES)) -> DiTTransformer2DModel:
    """Build the untrained transformer: 9.4 M parameters, a token for every 4 x 4 pixels; label `classes` means none."""
    return DiTTransformer2DModel(
        sample_size=64,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        num_layers=7,
        num_attention_heads=4,
        attention_head_dim=64,
        num_embeds_ada_norm=classes,
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


class ClassPipeline(DiffusionPipeline):
    """Draws pictures of named classes with classifier-free guidance, by the network that a subclass names.

    Works with any diffusers scheduler: `pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config)`.

    Attributes:
        component: The network's name among the components.
        token_pixels: Side of the square that a token of the top level stands for.
    """

    component: ClassVar[str]
    token_pixels: ClassVar[int]

    @staticmethod
    def build_network() -> ModelMixin:
        """Build the untrained network."""
        raise NotImplementedError

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What tells the network the classes of a batch, labels (batch,); label `classes` means none."""
        raise NotImplementedError

    @property
    def network(self) -> Any:
        """The network that predicts."""
        return getattr(self, self.component)

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
            raise ValueError(f"size is {size}; expected a multiple of 8, which the networks fold and halve")
        shape = (len(labels), self.network.config.in_channels, size // 2, size // 2)
        latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.network.dtype)
        conditions = self._conditions(labels, guidance_scale)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = latents * self.scheduler.init_noise_sigma
        options = self._step_options(generator)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            noise = self._predict(latents, timestep, conditions, guidance_scale)
            latents = self.scheduler.step(noise, timestep, latents, **options).prev_sample
        return (to_pixels(latents).float() / 2 + 0.5).clamp(0, 1)

    def _labels(self, classes: Sequence[str]) -> Tensor:
        names = list(self.config.class_names)
        unknown = [name for name in classes if name not in names]
        if unknown or not classes:
            raise ValueError(f"classes is {list(classes)}; expected at least one of {names}")
        return torch.tensor([names.index(name) for name in classes], device=self.device)

    def _conditions(self, labels: Tensor, guidance_scale: float) -> dict[str, Tensor]:
        count = len(self.config.class_names)
        if guidance_scale != 1:
            labels = torch.cat([torch.full_like(labels, count), labels])
        return self.conditions(labels, count, self.network.dtype)

    def _predict(
        self, latents: Tensor, timestep: Tensor, conditions: dict[str, Tensor], guidance_scale: float
    ) -> Tensor:
        batch = latents if guidance_scale == 1 else torch.cat([latents, latents])
        batch = self.scheduler.scale_model_input(batch, timestep)
        noise = self.network(batch, timestep.expand(len(batch)), **conditions, return_dict=False)[0]
        if guidance_scale == 1:
            return noise
        unconditional, conditional = noise.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _step_options(self, generator: Any) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        return {"generator": generator} if "generator" in accepted else {}


class ClassConditionalPipeline(ClassPipeline):
    """Draws with a UNet, which sees its classes by cross-attention."""

    component = "unet"
    token_pixels = 2
    build_network = staticmethod(build_unet)

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, class_names: list[str] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=list(class_names or CLASS_NAMES))

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tokens for cross-attention."""
        return {"encoder_hidden_states": class_tokens(labels, classes).to(dtype)}


class ClassConditionalDiTPipeline(ClassPipeline):
    """Draws with a DiT, whose norms are shifted and scaled by the class."""

    component = "transformer"
    token_pixels = 4
    build_network = staticmethod(build_dit)

    def __init__(
        self, transformer: DiTTransformer2DModel, scheduler: Any, class_names: list[str] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(class_names=list(class_names or CLASS_NAMES))

    @staticmethod
    def conditions(labels: Tensor, classes: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The labels as they are: the network has a row for none."""
        return {"class_labels": labels}


PIPELINES: dict[Arch, type[ClassPipeline]] = {"unet": ClassConditionalPipeline, "dit": ClassConditionalDiTPipeline}


def load_shipped(arch: Arch = "unet") -> ClassPipeline:
    """Load the trained model of this architecture that travels with the package, in float32, ready to draw.

    Raises:
        ValueError: If the package has no such model.

    Examples:
        >>> load_shipped("dit").transformer.config.num_layers
        7
    """
    if arch not in PIPELINES:
        raise ValueError(f"arch is {arch!r}; expected one of {list(PIPELINES)}")
    return PIPELINES[arch].from_pretrained(SHIPPED / arch)
