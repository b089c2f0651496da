"""The lowest versions that pyproject.toml allows, as constraints for pip: `python -m tools.lowest`."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOWEST = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?.*?(?:>=|==)\s*([\w.]+)")


def constraints(project: dict) -> Iterator[str]:
    """One line for each dependency that has a lowest version, of the project and of all its extras."""
    extras = project["optional-dependencies"].values()
    stated = dict.fromkeys([*project["dependencies"], *(one for extra in extras for one in extra)])
    for requirement in stated:
        if match := LOWEST.match(requirement):
            yield f"{match[1]}=={match[2]}"


if __name__ == "__main__":
    print(*constraints(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]), sep="\n")
