"""`catome bench`: ours, the peers and the unpatched network in one process, as tables and one JSON file."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch._logging._internal import set_logs

from catome_bench.commands.jobs import Job, Setting, plan_jobs
from catome_bench.commands.suites import LEVELS, SUITES
from catome_bench.measure.environment import describe_environment
from catome_bench.measure.rows import Row, describe
from catome_bench.models.pipeline import PIPELINES
from catome_bench.races.blocks import CASES
from catome_bench.races.networks import NETWORKS
from catome_bench.views.scatter import scatter
from catome_bench.views.tables import render_checks, render_pictures, render_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIN_COLUMNS = 120
MEASURED_PACKAGES = ("tomesd", "ca-tome", "triton")
NAMES = tuple(dict.fromkeys([*CASES, *NETWORKS, *PIPELINES]))


def bench(
    level: Annotated[list[str] | None, typer.Option(help=f"Any of: {', '.join(LEVELS)}.")] = None,
    case: Annotated[list[str] | None, typer.Option(help=f"Any of: {', '.join(NAMES)}.")] = None,
    suite: Annotated[str, typer.Option(help="cpu or gpu: what to measure, and how.")] = (
        "gpu" if DEVICE == "cuda" else "cpu"
    ),
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed rounds; by default the suite's.")] = None,
    output: Annotated[Path, typer.Option(help="JSON file, written anew after every table.")] = Path("benchmark.json"),
    device: Annotated[str, typer.Option(help="Torch device.")] = DEVICE,
) -> None:
    """Time merging beside the unpatched network and the peers, eager and compiled."""
    _expect("--suite", [suite], tuple(SUITES))
    _expect("--level", level or [], LEVELS)
    _expect("--case", case or [], NAMES)
    chosen = SUITES[suite]
    setting = Setting(suite=chosen, device=device, repeats=repeats or chosen.repeats)
    jobs = plan_jobs(setting, level or chosen.levels, case or [])
    if not jobs:
        raise typer.BadParameter(f"no measurement of {case} at {level}; leave one of the two out", param_hint="--case")
    report = {
        "machine": describe_environment(device, MEASURED_PACKAGES),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "suite": suite,
        "repeats": setting.repeats,
        "tables": [],
        "not_begun": [],
    }
    run_jobs(jobs, report, output, chosen.seconds)


def _expect(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}; expected one of {', '.join(known)}", param_hint=option)


def run_jobs(jobs: Sequence[Job], report: dict[str, Any], output: Path, seconds: float) -> None:
    """Measure one table after the other, print it, and write the report; none starts after `seconds`."""
    # The tables count graph breaks; the log need not list them.
    set_logs(all=logging.ERROR)
    # Without a terminal, as in a log, rich would squeeze the columns.
    console, start = Console(width=max(Console().width, MIN_COLUMNS)), time.monotonic()
    for job in jobs:
        if time.monotonic() - start >= seconds:
            report["not_begun"].append(job.title)
        else:
            report["tables"].append(run_job(job))
            console.print(render_table(report["tables"][-1], job.title))
            draw_scatter(report["tables"][-1], output)
        write_report(report, output)
    if report["not_begun"]:
        console.print(f"no time left for: {'; '.join(report['not_begun'])}")
    console.print(f"written to {output}")


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


def render_table(table: dict[str, Any], title: str) -> Table | str:
    """One measured table, rendered as its level requires."""
    if table["note"]:
        return f"{title}: {table['note']}"
    if table["level"] == "pipeline":
        return render_pictures(table)
    return (render_checks if table["level"] == "check" else render_rows)(title, table["rows"])


def draw_scatter(table: dict[str, Any], output: Path) -> None:
    """Draw speed-up against fidelity, where it was measured, to a picture for each case beside `output`."""
    if table["level"] == "pipeline" and not table["note"]:
        scatter(table).savefig(output.with_name(f"{output.stem}-{table['case']}.png"), dpi=110)


def write_report(report: dict[str, Any], output: Path) -> None:
    """Replace the file in one step, so that an interrupted command keeps what it has measured."""
    part = output.with_name(output.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(output)
