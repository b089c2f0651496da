"""`catome bench`: us, the peers and the unpatched network in one process, as tables and one JSON file."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from catome_bench.blocks import CASES
from catome_bench.comparing import Row, describe
from catome_bench.demo import machine
from catome_bench.jobs import LEVELS, SUITES, Job, Setting, plan_jobs
from catome_bench.networks import NETWORKS
from catome_bench.pipeline import PIPELINES
from catome_bench.tables import render_checks, render_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NARROWEST = 120
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
    setting = Setting(chosen, device, repeats or chosen.repeats)
    jobs = plan_jobs(setting, level or chosen.levels, case or [])
    if not jobs:
        raise typer.BadParameter(f"no measurement of {case} at {level}; leave one of the two out", param_hint="--case")
    report = {"machine": describe_machine(device), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    report |= {"suite": suite, "repeats": setting.repeats, "tables": [], "not_begun": []}
    run_jobs(jobs, report, output, chosen.seconds)


def _expect(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}; expected one of {', '.join(known)}", param_hint=option)


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were measured on, with the versions of everything that was measured."""
    return machine(device) | {name: _version(name) for name in ("tomesd", "ca-tome", "triton")}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_jobs(jobs: Sequence[Job], report: dict[str, Any], output: Path, seconds: float) -> None:
    """Measure one table after the other, show it, and write the report; none begins after `seconds`."""
    # Graph breaks are counted in the tables.
    torch._logging.set_logs(all=logging.ERROR)
    # Where there is no terminal, as in a log, rich would squeeze the columns.
    console, start = Console(width=max(Console().width, NARROWEST)), time.monotonic()
    for job in jobs:
        if time.monotonic() - start >= seconds:
            report["not_begun"].append(job.title)
        else:
            report["tables"].append(measure(job))
            console.print(render(report["tables"][-1], job.title))
            draw(report["tables"][-1], output)
        write(report, output)
    if report["not_begun"]:
        console.print(f"no time left for: {'; '.join(report['not_begun'])}")
    console.print(f"written to {output}")


def measure(job: Job) -> dict[str, Any]:
    """Run one job; what it raises is its note."""
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


def render(table: dict[str, Any], title: str) -> Table | str:
    """A table as this level shows it."""
    if table["note"]:
        return f"{title}: {table['note']}"
    if table["level"] == "pipeline":
        from catome_bench.pictures import render_pictures

        return render_pictures(table)
    return (render_checks if table["level"] == "check" else render_rows)(title, table["rows"])


def draw(table: dict[str, Any], output: Path) -> None:
    """Speed-up against fidelity, where fidelity was measured, to a picture for each case beside `output`."""
    if table["level"] == "pipeline" and not table["note"]:
        from catome_bench.scatter import scatter

        scatter(table).savefig(output.with_name(f"{output.stem}-{table['case']}.png"), dpi=110)


def write(report: dict[str, Any], output: Path) -> None:
    """Replace the file as a whole: who stops the command keeps what was measured."""
    part = output.with_name(output.name + ".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(output)
