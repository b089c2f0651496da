"""Speed-ups as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pace(speedup: float) -> str:
    """How much faster or slower.

    Examples:
        >>> pace(1.5), pace(0.5)
        ('1.50x faster', '2.00x slower')
    """
    return f"{speedup:.2f}x faster" if speedup >= 1 else f"{1 / speedup:.2f}x slower"


def with_interval(spread: Mapping[str, Any]) -> str:
    """A median and its interval, of `Spread.to_dict`.

    Examples:
        >>> with_interval({"median": 1.5, "worst": 1.3, "interval": [1.4, 1.6]})
        '1.50x (1.40-1.60)'
    """
    low, high = spread["interval"]
    return f"{spread['median']:.2f}x ({low:.2f}-{high:.2f})"
