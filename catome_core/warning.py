"""The library's warnings, at the line of the caller's code that led to them."""

from __future__ import annotations

import inspect
import warnings

LIBRARIES = {"catome_core", "catome_adapters", "torch", "diffusers", "transformers", "timm", "accelerate", "contextlib"}
"""Packages between the caller's code and a warning, which a warning does not point at."""


class MergeWarning(UserWarning):
    """Merging works, but does not gain what it could; the message says what to do.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", MergeWarning)
    """

    @classmethod
    def warn(cls, message: str) -> None:
        """Warn at the line that led here, in the first file that belongs to neither this library nor its hosts."""
        frame, level = inspect.currentframe(), 1
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in LIBRARIES:
            frame, level = frame.f_back, level + 1
        # Level 1 is this very method.
        warnings.warn(message, cls, stacklevel=level)
