"""What options stand for: a device, a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import typer

from catome_adapters import RECIPES, CalibratedRecipe, MergeRecipe
from catome_adapters.recipes.calibrated import Recipe


def choose_device(name: str | None) -> str:
    """The device of this name, or a GPU if there is one, else the CPU.

    Raises:
        typer.BadParameter: If nothing can be computed there.
    """
    name = name or default_device()
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:
        message = (
            f"nothing can be computed on {name!r} here; expected a device of this machine, such as {default_device()}"
        )
        raise typer.BadParameter(message, param_hint="--device") from error
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        # Events, memory and waiting are those of the current one.
        torch.cuda.set_device(name)
    return name


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def find_recipe(name: str) -> Recipe:
    """The recipe of this name, or the one in this JSON file.

    Raises:
        typer.BadParameter: If there is neither.
    """
    if name in RECIPES:
        return RECIPES[name]
    try:
        text = Path(name).read_text()
        found = json.loads(text)
        is_calibrated = isinstance(found, dict) and "recipes" in found
        return (CalibratedRecipe if is_calibrated else MergeRecipe).from_json(text)
    except (OSError, ValueError, TypeError) as error:
        raise typer.BadParameter(f"{name}: {error}", param_hint="--recipe") from error


def read_lines(file: Path, option: str) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        typer.BadParameter: If it cannot be read.
    """
    try:
        # A byte order mark is no part of the first line.
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint=option) from error
    return [line.strip() for line in lines if line.strip()]
