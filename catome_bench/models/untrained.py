"""The untrained networks of the shipped models, and the noise schedule they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from catome_bench.models.photographs import CLASS_NAMES
from catome_bench.names import Arch

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
        attention_head_dim=(2, 4, 6),  # pyright: ignore[reportArgumentType]  # annotated as tuple[int]
        cross_attention_dim=64,
        norm_num_groups=16,
        encoder_hid_dim=TOKENS_PER_CLASS * (classes + 1),
        encoder_hid_dim_type="text_proj",
    )


def build_dit(classes: int = len(CLASS_NAMES), *, patch_size: int = 2) -> DiTTransformer2DModel:
    """Build the untrained transformer: 9.4 M parameters; label `classes` means no class.

    Args:
        classes: How many classes there are.
        patch_size: Latent pixels along each side of a token; each is 2 x 2 pixels of the picture.
    """
    return DiTTransformer2DModel(
        sample_size=64,
        in_channels=12,
        out_channels=12,
        patch_size=patch_size,
        num_layers=7,
        num_attention_heads=4,
        attention_head_dim=64,
        num_embeds_ada_norm=classes,
    )


UNTRAINED: dict[Arch, Callable[[], ModelMixin]] = {
    "unet": build_unet,
    "dit": build_dit,
    "dit-patch1": partial(build_dit, patch_size=1),
}
"""The function that builds each of the shipped networks."""


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of training: squared cosine, v-prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
