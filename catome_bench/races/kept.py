"""The pictures of a benchmark that was broken off, in a folder that the same command goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from catome_bench.files import differing, whole_file
from catome_bench.models.artist import Drawing

MACHINE = "machine.json"


class KeptDrawings:
    """Drawings by key, made once: with a folder, also after the process that drew them has ended.

    Args:
        folder: Where they are kept; None: nowhere.
        machine: What they are drawn with, as JSON values; the folder keeps those of one machine.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> def never() -> list[Drawing]:
        ...     raise AssertionError
        >>> with TemporaryDirectory() as folder:
        ...     key, drawing = ["cat", "1/4"], Drawing(torch.zeros(3, 8, 8), steps=[2.0])
        ...     first = KeptDrawings(folder, {}).of(key, lambda: [drawing])
        ...     KeptDrawings(folder, {}).of(key, never)[0].seconds
        2.0
    """

    def __init__(self, folder: str | Path | None, machine: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else Path(folder)
        if self._folder is not None:
            self._check_machine(self._folder / MACHINE, machine)

    def of(self, key: Sequence[str], draw: Callable[[], list[Drawing]]) -> list[Drawing]:
        """The pictures of this key; they are drawn if they are not there.

        Raises:
            ValueError: If its file holds something else.
            OSError: If it cannot be read or written.
        """
        if self._folder is None:
            return draw()
        # Names have slashes, as in "1/4 lattice".
        path = self._folder / f"{'/'.join(quote(part, safe='') for part in key)}.pt"
        if path.exists():
            return _load(path)
        drawings = draw()
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            torch.save([drawing._asdict() for drawing in drawings], part)
        return drawings

    @staticmethod
    def _check_machine(path: Path, machine: Mapping[str, Any]) -> None:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as part:
                part.write_text(json.dumps(machine))
        found = json.loads(path.read_text())
        if changed := differing(found, machine):
            name = changed[0]
            raise ValueError(
                f"{path.parent} holds pictures drawn with {name} {found.get(name)!r}, not {machine.get(name)!r}, whose "
                "times cannot be compared; delete it, or pass another output"
            )


def _load(path: Path) -> list[Drawing]:
    try:
        return [Drawing(**values) for values in torch.load(path, weights_only=True)]
    except Exception as error:
        raise ValueError(f"{path} holds no picture ({type(error).__name__}); delete it, and draw it again") from error
