"""What was measured so far, in a file that a later run goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from catome_bench.files import differing, try_to_write, whole_file


class Measurements:
    """Values by key, each measured once: in memory and, with a path, line by line in a file.

    Args:
        path: The file, whose first line has the settings; None: memory alone.
        settings: What the values depend on, as JSON values.

    Raises:
        ValueError: If the file holds values of other settings, or is another file.
        OSError: If it cannot be read or written.

    Examples:
        >>> measurements = Measurements(None, {})
        >>> measurements.of(["a"], lambda: 1), measurements.of(["a"], lambda: 2)
        (1, 1)
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._found: dict[tuple[str, ...], Any] = {}
        if path is not None:
            # Before the first measurement, which takes minutes.
            try_to_write(path)
        if path is not None and path.exists():
            first, *lines = _whole_lines(path) or [json.dumps(settings)]
            _check_same(path, first, settings)
            self._found = {tuple(line["key"]): line["value"] for line in map(json.loads, lines)}
            # A line that was cut off is dropped, before others follow it.
            with whole_file(path) as part:
                part.write_text("".join(f"{line}\n" for line in (first, *lines)), encoding="utf-8")

    def of(self, key: Sequence[str], measure: Callable[[], Any]) -> Any:
        """The JSON value of this key; it is measured if it is not known yet."""
        if tuple(key) not in self._found:
            # As it will be read: numbers in lists.
            self._found[tuple(key)] = json.loads(json.dumps(measure()))
            self._append(key)
        return self._found[tuple(key)]

    def _append(self, key: Sequence[str]) -> None:
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps(self._settings) + "\n")
            file.write(json.dumps({"key": list(key), "value": self._found[tuple(key)]}) + "\n")


def _whole_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _check_same(path: Path, line: str, settings: Mapping[str, Any]) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no measurements; delete it, or pass another output")
    if changed := differing(found, settings):
        name = changed[0]
        raise ValueError(
            f"{path} holds measurements of a run with {name}={found.get(name)!r}, not {settings.get(name)!r}; "
            "delete it, or pass another output"
        )
