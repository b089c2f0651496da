"""The `catome` command, also as `python -m catome_bench`."""

from __future__ import annotations

import sys

NEEDS_BENCH = 'catome: the command needs {}, which is not installed: pip install "catome[bench]"'


def main() -> None:
    """Run the command, or say what it needs."""
    try:
        from catome_bench.cli import app
    except ModuleNotFoundError as error:
        sys.exit(NEEDS_BENCH.format(error.name))
    except KeyboardInterrupt:
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
