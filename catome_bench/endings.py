"""How a command ends: in one line where the user can do something about it, in a traceback where only we can."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

UsageError: Any = typer.BadParameter.__base__
"""Everything that is wrong with the arguments. Typer exports no name for it, and older versions have it from click."""

INTERRUPTED = 130
EXTRAS = {"timm": "timm", "sklearn": "train", "skimage": "train", "torchvision": "train"}
EXTRAS |= dict.fromkeys(("diffusers", "transformers", "accelerate", "safetensors", "einops", "rich", "tqdm"), "bench")
EXTRAS |= dict.fromkeys(("matplotlib", "torchmetrics", "PIL", "numpy"), "bench")
"""The extra that installs a package."""


class CommandGroup(TyperGroup):
    """Commands that end in one line on stderr and an exit code: 2 for usage, 130 for Ctrl-C, 1 for all else."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:
        """Run a command and leave the process; without arguments, show the help."""
        given = sys.argv[1:] if args is None else list(args)
        options |= {"standalone_mode": False}
        try:
            code = super().main(given or ["--help"], *others, **options)
            sys.stdout.flush()
        except UsageError as error:
            code = end(error.format_message(), 2)
        except typer.Abort:
            code = INTERRUPTED
        except ModuleNotFoundError as error:
            code = end(_missing(error), 1)
        except OSError as error:
            code = 1 if error.errno == errno.EPIPE else end(_without_number(error), 1)
        if code == INTERRUPTED:
            end("interrupted", code)
        sys.exit(code or 0)


def end(message: str, code: int) -> int:
    """Print one line on stderr; returns the exit code."""
    typer.echo(f"catome: {' '.join(message.split())}", err=True)
    return code


def _missing(error: ModuleNotFoundError) -> str:
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        raise error
    return f'this needs {package}, which is not installed: pip install "catome[{EXTRAS[package]}]"'


def _without_number(error: OSError) -> str:
    name = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{name}"
