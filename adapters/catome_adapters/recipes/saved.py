"""Recipes in files: whole or not there, and with the name of the file in every error."""

from __future__ import annotations

from collections.abc import Callable
from os import getpid
from pathlib import Path
from typing import TypeVar

from catome_core import checks

Recipe = TypeVar("Recipe")


def save_text(path: str | Path, text: str) -> None:
    """Write a file; one that is there is replaced, as a whole or not at all.

    Raises:
        OSError: If the file cannot be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{getpid()}")
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_text(path: str | Path, parse: Callable[[str], Recipe]) -> Recipe:
    """What `parse` makes of a file; its errors begin with the name of the file.

    Raises:
        OSError: If the file cannot be read.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except (TypeError, ValueError) as error:
        raise checks.located(f"{path}: ", error) from error
