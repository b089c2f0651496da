"""The folder of a sweep: its settings, and pictures that are whole or not there, each with its time inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from catome_bench.comparison.pictures import to_pictures
from catome_bench.files import differing, whole_file
from catome_bench.sweeping.takes import Take
from catome_bench.views.comparison import to_bytes

SETTINGS = "sweep.json"
FACTS = "catome"
"""The name of the text chunk of a PNG that holds what is known of its drawing."""


class StoredPicture(NamedTuple):
    """What was drawn for one take by one row.

    Attributes:
        values: (3, height, width), float32, in [0, 1]; rounded to bytes in the file.
        seconds: From the call to the picture.
        merged: Share of the tokens, or of the keys, that merging removed; None where it was not counted.
        machine: On which it was drawn.
    """

    values: Tensor
    seconds: float
    merged: float | None
    machine: str


class Store:
    """The folder of a sweep.

    One process or several write to it, and each may be killed at any time. A picture counts once its file is there:
    its time is in the file itself, so neither is ever without the other.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that the sweep began with.

        Raises:
            ValueError: If there are none that can be read.
        """
        file = self.folder / SETTINGS
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read ({error}); pass the folder of a sweep, or begin one") from error

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Fix the settings at the first start; every later one must have the same.

        Raises:
            ValueError: If it has others.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=2)
        if not (self.folder / SETTINGS).exists():
            with whole_file(self.folder / SETTINGS) as part:
                part.write_text(text + "\n", encoding="utf-8")
        # Errors name addresses, and memory that happens to be free: the rows that are left out must be the same.
        before, now = (one | {"left_out": sorted(one.get("left_out", ()))} for one in (self.settings, json.loads(text)))
        if changed := differing(before, now):
            was, is_now = (shorten(one.get(changed[0])) for one in (before, now))
            raise ValueError(
                f"{self.folder} was begun with other settings: {changed[0]} was {was}, and is {is_now} now; go on with "
                f"those of its {SETTINGS}, or choose another folder"
            )

    def path(self, row: str, take: Take) -> Path:
        """Where the picture of a row is, or will be."""
        return self.folder / row / take.file

    def missing(self, rows: Iterable[str], take: Take) -> list[str]:
        """The rows that have not drawn a take yet."""
        return [row for row in rows if not self.path(row, take).is_file()]

    def save(self, row: str, take: Take, picture: StoredPicture) -> None:
        """Write a picture, whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        facts = PngInfo()
        facts.add_text(FACTS, json.dumps({name: getattr(picture, name) for name in StoredPicture._fields[1:]}))
        path = self.path(row, take)
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as part:
            Image.fromarray(to_bytes(picture.values).permute(1, 2, 0).numpy()).save(part, pnginfo=facts)

    def load(self, row: str, take: Take) -> StoredPicture:
        """Read a picture.

        Raises:
            ValueError: If its file is damaged, or something else.
        """
        path = self.path(row, take)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                return StoredPicture(to_pictures(image)[0], **json.loads(image.info[FACTS]))
        except (OSError, SyntaxError, KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is no picture of a sweep ({what}); delete it and draw again") from error


def shorten(value: Any) -> str:
    """JSON, with its middle left out where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:38]} ... {text[-38:]}"
