"""The figures of one way to draw: without merging, or with a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, NamedTuple

from torch import Tensor

from catome_adapters.recipes.calibrated import Recipe
from catome_bench.comparison.drawing import DrawnCall
from catome_bench.measure.fidelity import mean_ssim, psnr
from catome_bench.measure.spread import Spread
from catome_bench.views.comparison import to_bytes

UNITS = {"psnr": " dB", "ssim": ""}
"""The measures of fidelity that a gate may ask for."""


class ComparedSample(NamedTuple):
    """One call, beside the unmerged one with the same arguments and seed.

    Attributes:
        pictures: How many.
        seconds: For each picture.
        denoiser: The part of it that was spent in the networks that merge.
        memory: Peak bytes on the GPU.
        psnr: In dB, of the mean squared error over the pictures of the call; inf if all are equal.
        ssim: Mean over the pictures of the call.
        merged: Share of the tokens, or of the keys, that merging removed.
        shown: One of the pictures, uint8 (3, height, width).
    """

    pictures: int
    seconds: float
    denoiser: float
    memory: int | None
    psnr: float
    ssim: float
    merged: float
    shown: Tensor

    @classmethod
    def of(cls, drawn: DrawnCall, unmerged: Tensor, merged: float) -> ComparedSample:
        """What was drawn, against the unmerged pictures.

        Raises:
            ValueError: If they have other sizes.
        """
        pictures = drawn.pictures
        if pictures.shape != unmerged.shape:
            raise ValueError(f"drew {tuple(pictures.shape)}, unmerged {tuple(unmerged.shape)}; expected one size")
        fidelity = psnr(pictures, unmerged), mean_ssim(pictures, unmerged)
        return cls(len(pictures), *drawn[1:], *fidelity, merged, to_bytes(pictures[len(pictures) // 2]))


@dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """One way to draw, over all calls.

    Attributes:
        name: "unmerged", or that of the recipe.
        recipe: None for the unmerged.
        seconds: For each picture, end to end.
        denoiser: The part of it that was spent in the networks that merge.
        speedup: Of the same call over the unmerged one, end to end.
        denoiser_speedup: The same of the networks; None if the call did not call them.
        warm_up: Seconds that the first call took longer than the median one: compilation, and loading of kernels.
        memory: Peak of the bytes allocated on the GPU; None elsewhere.
        psnr: In dB against the unmerged pictures; None for them.
        ssim: Against the unmerged pictures; None for them.
        merged: Share of the tokens, or of the keys, that merging removed.
        shown: One picture of each call, uint8 (3, height, width).
    """

    name: str
    recipe: Recipe | None
    seconds: Spread
    denoiser: Spread
    speedup: Spread
    denoiser_speedup: Spread | None
    warm_up: float
    memory: int | None
    psnr: Spread | None
    ssim: Spread | None
    merged: float
    shown: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, name: str, recipe: Recipe | None, samples: Sequence[ComparedSample], unmerged: Sequence[ComparedSample]
    ) -> ComparedRow:
        """Of samples whose first one is the warm-up, as is the first of the unmerged ones."""
        first, *rest = samples
        pairs = list(zip(unmerged[1:], rest, strict=True))
        in_networks = all(one.denoiser for pair in pairs for one in pair)
        memory = [one.memory for one in rest if one.memory is not None]
        return cls(
            name=name,
            recipe=recipe,
            seconds=Spread.of([one.seconds for one in rest]),
            denoiser=Spread.of([one.denoiser for one in rest]),
            speedup=Spread.of([base.seconds / one.seconds for base, one in pairs]),
            denoiser_speedup=Spread.of([base.denoiser / one.denoiser for base, one in pairs]) if in_networks else None,
            warm_up=first.pictures * max(0.0, first.seconds - median(one.seconds for one in rest)),
            memory=max(memory, default=None),
            psnr=Spread.of([one.psnr for one in rest]) if recipe else None,
            ssim=Spread.of([one.ssim for one in rest]) if recipe else None,
            merged=mean(one.merged for one in rest),
            shown=tuple(one.shown for one in rest),
        )

    def failures(self, gate: Mapping[str, float]) -> list[str]:
        """The floors that its median picture does not reach."""
        found = {"psnr": self.psnr, "ssim": self.ssim}
        return [
            f"{name.upper()} {spread.median:.4g}{UNITS[name]} is below {floor:g}{UNITS[name]}"
            for name, floor in gate.items()
            if (spread := found[name]) is not None and not spread.median >= floor
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        spreads = {name: value.to_dict() for name, value in vars(self).items() if isinstance(value, Spread)}
        others = {name: getattr(self, name) for name in ("name", "warm_up", "memory", "merged")}
        missing = {name: None for name in ("denoiser_speedup", "psnr", "ssim") if name not in spreads}
        return others | spreads | missing | {"recipe": json.loads(self.recipe.to_json()) if self.recipe else None}
