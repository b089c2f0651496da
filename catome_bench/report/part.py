"""What the page says about one file of results."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """A part of the page.

    Attributes:
        conclusion: One sentence.
        body: HTML.
    """

    conclusion: str
    body: str


def likeness(psnr: float | None) -> str:
    """How close pictures are to the unmerged ones; None: equal."""
    return "with the same pictures" if psnr is None else f"at {psnr:.1f} dB from the unmerged pictures"
