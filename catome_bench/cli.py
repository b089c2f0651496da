"""The `catome` command."""

from __future__ import annotations

import typer

from catome_bench.commands.bench import bench
from catome_bench.commands.calibrate import calibrate
from catome_bench.commands.demo import demo
from catome_bench.commands.plan import plan
from catome_bench.commands.train import train
from catome_bench.commands.vits import vits

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Cached adaptive token merging, shown on a model.")
for command in (train, bench, calibrate, plan, demo, vits):
    app.command()(command)
