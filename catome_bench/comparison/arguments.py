"""The arguments with which a pipeline draws what the command line asks for."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

OPTIONS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "height": "height",
    "width": "width",
    "frames": "num_frames",
}
"""Options by the names that pipelines have for them."""


def arguments_for(pipe: Any, prompt: str, options: Mapping[str, float | None]) -> dict[str, Any]:
    """The arguments with which a pipeline draws a prompt.

    Raises:
        ValueError: If it takes no prompt, or not one of the options that are given.
    """
    return motif_of(pipe, prompt) | settings_of(pipe, options)


def motif_of(pipe: Any, prompt: str) -> dict[str, Any]:
    """A prompt as a pipeline takes it; for the shipped models, it is the name of a class.

    Raises:
        ValueError: If it takes none.
    """
    known = _known(pipe)
    if "classes" in known:
        return {"classes": [prompt]}
    if "prompt" not in known:
        raise ValueError(f"{type(pipe).__name__} takes no prompt: compare it in Python, with catome.compare")
    return {"prompt": prompt}


def settings_of(pipe: Any, options: Mapping[str, float | None]) -> dict[str, Any]:
    """Those of `OPTIONS` that are given, by the pipeline's names.

    Raises:
        ValueError: If it does not take one of them.
    """
    known = _known(pipe)
    given = {OPTIONS[name]: value for name, value in options.items() if value is not None}
    if "classes" in known:
        return _square(given)
    unknown = [name for name, argument in OPTIONS.items() if argument in given and argument not in known]
    if unknown:
        raise ValueError(f"{type(pipe).__name__} takes no {OPTIONS[unknown[0]]}: leave --{unknown[0]} out")
    return given


def _known(pipe: Any) -> Mapping[str, Any]:
    return signature(pipe.__call__).parameters


def _square(given: Mapping[str, Any]) -> dict[str, Any]:
    """The shipped models draw squares."""
    others = dict(given)
    sides = {side for side in (others.pop("height", None), others.pop("width", None)) if side}
    if len(sides) > 1 or "num_frames" in others:
        raise ValueError(f"got {dict(given)}; the shipped models draw single squares: pass --height alone")
    return others | ({"size": sides.pop()} if sides else {})
