"""The `catome` command, run in this process."""

from typing import Any

from typer.testing import CliRunner

from catome_bench.cli import app


def invoke(*arguments: object) -> Any:
    """What comes of these arguments; an error of Python goes on."""
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


def refusal(result: Any) -> str:
    """The one line on stderr after the bars, of a command that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    line = result.stderr.replace("\r", "\n").splitlines()[-1]
    assert line.startswith("catome: ")
    return line
