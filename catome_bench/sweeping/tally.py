"""Measuring the folder of a sweep, as far as every row has drawn."""

from __future__ import annotations

from pathlib import Path

from catome_bench.measure.features import Features
from catome_bench.sweeping.real import find_pictures, measure_pictures
from catome_bench.sweeping.rows import measure
from catome_bench.sweeping.store import Store
from catome_bench.sweeping.swept import Swept
from catome_bench.sweeping.takes import all_takes


def tally(store: Store, features: Features, real: Path | None, *, partial: bool, progress: bool) -> Swept:
    """Measure the takes that every row has drawn.

    Args:
        store: The folder of the sweep.
        features: For the Frechet distance.
        real: A folder of pictures to measure it to; None: to the unmerged ones.
        partial: Whether to measure while pictures are missing.
        progress: Whether to show a bar.

    Raises:
        ValueError: If the folder is not that of a sweep, or a picture cannot be read.
    """
    settings = store.settings
    tables: dict[str, dict[str, str]] = settings["rows"]
    families = {name: family for rows in tables.values() for name, family in rows.items()}
    takes = all_takes(len(settings["prompts"]), settings["seeds"])
    missing = {take: len(store.missing(families, take)) for take in takes}
    whole = [take for take in takes if not missing[take]] if families else []
    rows, machines = (), ()
    if whole and (partial or len(whole) == len(takes)):
        goal = measure_pictures(find_pictures(real), features, progress) if real else None
        rows, machines = measure(store, families, whole, features, goal, progress)
    return Swept(
        rows=rows,
        settings=settings,
        takes=len(whole),
        missing=sum(missing.values()),
        distance=features.distance,
        to=str(real) if real else "the unmerged pictures",
        machines=machines,
    )
