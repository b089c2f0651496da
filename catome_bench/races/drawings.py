"""How close the drawings of one variant are to the unmerged ones, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median
from typing import Any

from catome_bench.measure.features import Features
from catome_bench.measure.fidelity import psnr, ssim
from catome_bench.measure.spread import Spread
from catome_bench.measure.undisturbed import undisturbed
from catome_bench.models.artist import Drawing


def measure_drawings(
    drawings: Sequence[Drawing], references: Sequence[Drawing], describe: Features | None = None
) -> dict[str, Any]:
    """Time and fidelity of the drawings of one variant, against the reference's of the same classes and seeds."""
    pairs = list(zip(drawings, references, strict=True))
    apart = [describe.apart(drawing.picture, base.picture) for drawing, base in pairs] if describe else []
    return {
        "seconds": median(drawing.seconds for drawing in drawings),
        "speedup": Spread.of([drawing.speedup for drawing in drawings]).to_dict(),
        "undisturbed": undisturbed(one.beside for one in drawings) / undisturbed(one.steps for one in drawings),
        "psnr": Spread.of([psnr(drawing.picture, base.picture) for drawing, base in pairs]).to_dict(),
        "ssim": Spread.of([ssim(drawing.picture, base.picture) for drawing, base in pairs]).to_dict(),
        **({"distance": Spread.of_distances(apart).to_dict()} if apart else {}),
        "removed": mean(drawing.removed for drawing in drawings),
    }
