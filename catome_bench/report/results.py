"""What a folder holds: results that our commands wrote, and their pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

KINDS = {
    "demo": {"settings", "results", "jaccard"},
    "compare": {"rows", "verdicts", "kept", "settings"},
    "bench": {"tables", "suite"},
    "sweep": {"rows", "missing", "distance"},
}
"""The commands whose results can be shown, and the fields by which their files are known."""


class ResultsError(ValueError):
    """Results that cannot be shown; the message says why."""


class Results(NamedTuple):
    """A file that one of the commands wrote.

    Attributes:
        command: Out of `KINDS`.
        file: Where.
        found: What it holds.
    """

    command: str
    file: Path
    found: dict[str, Any]


def find_results(folder: Path) -> list[Results]:
    """The results that lie in a folder, by the names of their files.

    Raises:
        ResultsError: If there are none, or a JSON file cannot be read.
    """
    if not folder.is_dir():
        raise ResultsError(f"{folder} is no folder")
    results = list(_read_all(folder))
    if not results:
        commands = ", ".join(f"catome {command}" for command in KINDS)
        raise ResultsError(f"{folder} holds no results; let one of {commands} write them there")
    return results


def _read_all(folder: Path) -> Iterator[Results]:
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ResultsError(f"{file} is no JSON that can be read: {error}; move it elsewhere") from error
        for command, fields in KINDS.items():
            if isinstance(found, dict) and fields <= found.keys():
                yield Results(command, file, found)


def find_picture(folder: Path, name: str) -> Path:
    """The path of a picture that results name.

    Raises:
        ResultsError: If it is no PNG, or does not lie in the folder.
    """
    path = (folder / name).resolve()
    try:
        # What a JSON file of somebody else's names could be any file of this machine.
        if not path.is_relative_to(folder.resolve()):
            raise ResultsError(f"{folder} names a picture outside of it: {name}")
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except (OSError, SyntaxError) as error:
        raise ResultsError(f"{path} is missing or no PNG; draw the pictures again") from error
    return path
