"""Files that are whole or not there, and finding out before the work whether they can be written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file replaces `path` once the context ends; if it ends in an error, nothing changes.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with whole_file(Path(folder, "a.txt")) as part:
        ...         _ = part.write_text("whole")
        ...     print([file.name for file in Path(folder).iterdir()])
        ['a.txt']
    """
    part = _part_of(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names under which two JSON objects hold different values, such as settings of a folder and of a run.

    Examples:
        >>> differing({"steps": 4, "seed": 0}, {"steps": 8, "seed": 0, "size": 32})
        ['steps', 'size']
    """
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def check_file(path: Path, option: str) -> None:
    """Make the folder of a file, and find out whether the file could be written in it.

    Raises:
        typer.BadParameter: If it could not.
    """
    if path.exists() and not path.is_file():
        raise typer.BadParameter(f"{path} is not a regular file", param_hint=option)
    try:
        try_to_write(path)
    except OSError as error:
        raise typer.BadParameter(
            f"cannot write {path}: {error.filename}: {error.strerror}", param_hint=option
        ) from error


def try_to_write(path: Path) -> None:
    """Make the folder of a file, and nothing else.

    Raises:
        OSError: If the file could not be written in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _part_of(path).touch()
    _part_of(path).unlink()


def check_folder(path: Path, option: str) -> None:
    """Make a folder, and find out whether files could be written in it.

    Raises:
        typer.BadParameter: If not.
    """
    check_file(path / "any", option)


def _part_of(path: Path) -> Path:
    # Several processes may write one file. The suffix stays: it says in which format matplotlib writes.
    return path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
