"""`catome bench`: ours, the peers and the unpatched network in one process, as tables and one JSON file."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from torch._logging._internal import set_logs

from catome_bench.commands.jobs import Job, plan_jobs
from catome_bench.commands.options import choose_device
from catome_bench.commands.setting import Setting
from catome_bench.commands.suites import SUITES
from catome_bench.files import check_file, whole_file
from catome_bench.measure.environment import describe_environment
from catome_bench.measure.rows import Row, describe
from catome_bench.views.scatter import scatter
from catome_bench.views.tables import render_measured

MIN_COLUMNS = 120
MEASURED_PACKAGES = ("tomesd", "ca-tome", "triton")


def run_bench(
    levels: Sequence[str] | None,
    cases: Sequence[str],
    suite: str | None,
    *,
    repeats: int | None,
    subjects: Sequence[str],
    pictures: Mapping[str, Any],
    output: Path,
    device: str | None,
) -> None:
    """Measure levels and cases on a device; where they are not given, those of the suite, or of the device's suite.

    Args:
        levels: Out of `LEVELS`.
        cases: Out of `CASE_NAMES`.
        suite: Its name.
        repeats: Timed rounds.
        subjects: Names of contenders or variants; all, if there are none.
        pictures: The `steps`, `images`, `size`, `batch` and `features` of the level "pipeline"; None: by default.
        output: File to write. Beside it are the pictures of a run that was broken off, which then goes on with them.
        device: Torch device.

    Raises:
        typer.BadParameter: If there is nothing to measure, or the report could not be written.
        typer.Exit: With 1, if a measurement failed; the others are in the report.
    """
    device = choose_device(device)
    suite = suite or ("gpu" if torch.device(device).type == "cuda" else "cpu")
    chosen = SUITES[suite]
    setting = Setting(
        suite=chosen,
        device=device,
        repeats=repeats or chosen.repeats,
        subjects=tuple(subjects),
        pictures={name: value for name, value in pictures.items() if value} | {"partial": partial_folder(output)},
    )
    try:
        jobs = plan_jobs(setting, levels or chosen.levels, cases)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    check_file(output, "--output")
    report = {
        "machine": describe_environment(device, MEASURED_PACKAGES),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": suite,
        "repeats": setting.repeats,
        "tables": [],
        "not_begun": [],
    }
    run_jobs(jobs, report, output, chosen.seconds)


def run_jobs(jobs: Sequence[Job], report: dict[str, Any], output: Path, seconds: float) -> None:
    """Measure one table after the other, print it, and write the report; none starts after `seconds`."""
    # The tables count graph breaks; the log need not list them.
    set_logs(all=logging.ERROR)
    # Without a terminal, as in a log, rich would squeeze the columns.
    console, start = Console(width=max(Console().width, MIN_COLUMNS)), time.monotonic()
    for job in jobs:
        begins = time.monotonic() - start < seconds
        if begins:
            report["tables"].append(run_job(job))
        else:
            report["not_begun"].append(job.title)
        write_report(report, output)
        if begins:
            console.print(render_measured(report["tables"][-1], job.title))
            draw_scatter(report["tables"][-1], output)
    forget_pictures(report["tables"], output)
    if report["not_begun"]:
        console.print(f"no time left for: {'; '.join(report['not_begun'])}")
    console.print(f"written to {output}")
    failed = [table["level"] for table in report["tables"] if table["note"]]
    if failed:
        console.print(f"failed, for the reason in its table: {', '.join(failed)}")
        raise typer.Exit(1)


def partial_folder(output: Path) -> Path:
    """Where the pictures of an unfinished run are."""
    return output.with_name(f"{output.name}.partial")


def forget_pictures(tables: Sequence[dict[str, Any]], output: Path) -> None:
    """Delete those of finished tables; after an error, or at another level, they stay for the next run."""
    for table in tables:
        if table["level"] == "pipeline" and not table["note"]:
            shutil.rmtree(partial_folder(output) / table["case"], ignore_errors=True)
    with suppress(OSError):  # not empty, or not there
        partial_folder(output).rmdir()


def run_job(job: Job) -> dict[str, Any]:
    """Run one job; an error is recorded in its `note`."""
    table = {"level": job.level, "case": job.case, "mode": job.mode, "note": ""}
    start = time.monotonic()
    try:
        table |= _as_dict(job.run())
    except Exception as error:
        table |= {"rows": [], "note": describe(error)}
    _free_memory()
    return table | {"took": time.monotonic() - start}


def _as_dict(result: Any) -> dict[str, Any]:
    if isinstance(result, dict):
        return result
    return {"rows": [row.to_dict() if isinstance(row, Row) else row for row in result]}


def _free_memory() -> None:
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def draw_scatter(table: dict[str, Any], output: Path) -> None:
    """Draw speed-up against fidelity, where it was measured, to a picture for each case beside `output`."""
    if table["level"] == "pipeline" and not table["note"]:
        with whole_file(output.with_name(f"{output.stem}-{table['case']}.png")) as part:
            scatter(table).savefig(part, dpi=110)


def write_report(report: dict[str, Any], output: Path) -> None:
    """Replace the file in one step, so that an interrupted command keeps what it has measured."""
    with whole_file(output) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
