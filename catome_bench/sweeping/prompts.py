"""Lists of prompts that have names, and prompts of the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from catome_bench.names import IMAGENET_2K

CLASS = "{class}"


class Preset(NamedTuple):
    """A list of prompts that others use, too.

    Attributes:
        prompts: How many there are.
        digest: SHA-256 of them, as `digest_of` gives it; None where it is not known here.
    """

    prompts: int
    digest: str | None = None


PRESETS = {
    IMAGENET_2K: Preset(1000, "bfd16c9fa0cebfa71b93a9df704b6688dc879745492148bfd9b190ed380ad2a0"),
    "drawbench": Preset(200),
    "parti": Preset(1632),
    "coco5k": Preset(5000),
}


def digest_of(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts, one in a line, in UTF-8.

    Examples:
        >>> digest_of(["a cat"])[:8]
        '565660af'
    """
    return sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


def check_preset(name: str, prompts: Sequence[str]) -> None:
    """Find out whether these are the prompts of a preset.

    Raises:
        ValueError: If not.
    """
    wanted, digest = PRESETS[name], digest_of(prompts)
    if len(prompts) != wanted.prompts:
        raise ValueError(f"{name} has {wanted.prompts} prompts, and these are {len(prompts)}: pass the whole list")
    if wanted.digest not in (None, digest):
        raise ValueError(f"the SHA-256 of these prompts is {digest}, and that of {name} is {wanted.digest}")


def fill(template: str, names: Sequence[str]) -> list[str]:
    """A prompt for every class.

    Raises:
        ValueError: If the template has no place for it.

    Examples:
        >>> fill("a photograph of a {class}", ["cat"])
        ['a photograph of a cat']
    """
    if CLASS not in template:
        raise ValueError(f"the template {template!r} has no {CLASS}, which the name of a class replaces")
    return [template.replace(CLASS, name) for name in names]


def imagenet_classes() -> list[str]:
    """The 1,000 classes of ImageNet-1k, in the order of their labels, each by the first of its names.

    Examples:
        >>> imagenet_classes()[:2]
        ['tench', 'goldfish']
    """
    from timm.data.imagenet_info import ImageNetInfo

    return [description.partition(",")[0] for description in ImageNetInfo().label_descriptions()]
