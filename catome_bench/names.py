"""Names that options take, written down so that help and a typing error need no import of torch."""

from __future__ import annotations

from typing import Literal, get_args

Arch = Literal["unet", "dit", "dit-patch1"]
"""The shipped networks."""

ARCHS: tuple[Arch, ...] = get_args(Arch)
RECIPE_NAMES = ("default", "close", "balanced", "fast", "adaptive", "paper", "keys", "todo", "tomesd", "vit", "tome")
LEVELS = ("block", "check", "kernels", "operations", "ladder", "model", "pipeline", "never-slower")
SUITE_NAMES = ("cpu", "gpu")
CASE_NAMES = (
    "sd15-512-attention",
    "sd15-512",
    "sdxl-1024-top",
    "sdxl-1024-deep",
    "pixart-1024",
    "sd15-1024",
    "flux-1024-double",
    "flux-1024-single",
    "wan-480p",
    "sdxl-1024",
    "flux-1024",
    *ARCHS,
)
SWEEP_TABLES = ("thresholds", "configurations", "caching", "comparison")
IMAGENET_2K = "imagenet-2k"
PRESET_NAMES = (IMAGENET_2K, "drawbench", "parti", "coco5k")
CLASS_TEMPLATE = "A high-quality photograph of a {class}"
