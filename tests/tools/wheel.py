"""What is wrong with built wheels: `python -m tools.wheel dist/*.whl` says it, file by file, and fails.

A wheel has the packages that its pyproject.toml names, and nothing else: no tests, and no weights in that of the code.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
LIMITS = {"catome": 2_000_000, "catome_weights": 100_000_000}
"""Bytes of a wheel: ours, and what PyPI takes."""

FOLDERS = {"catome": ROOT, "catome_weights": ROOT / "weights"}
UNWANTED = re.compile(r"^catome(_core|_adapters|_bench)?/.*\.safetensors$|(^|/)(tests|docs|examples|benchmarks)/")


def contents(name: str) -> dict[str, Path]:
    """The files of a distribution: their paths in the wheel, and where they are here."""
    wheel = tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    roots = {Path(package).name: FOLDERS[name] / package for package in wheel["packages"]}
    pairs = [*roots.items(), *((to, FOLDERS[name] / source) for source, to in wheel.get("force-include", {}).items())]
    files = {f"{to}/{path.relative_to(root).as_posix()}": path for to, root in pairs for path in _files(root)}
    left_out = wheel.get("exclude", [])
    return {to: path for to, path in files.items() if not any(path.match(pattern) for pattern in left_out)}


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)


def faults(wheel: Path) -> list[str]:
    """What is wrong with it, one line for each; nothing if it is fine."""
    name = wheel.name.partition("-")[0]
    with ZipFile(wheel) as archive:
        present = {path for path in archive.namelist() if not path.endswith("/")}
    present, expected = {path for path in present if ".dist-info/" not in path}, set(contents(name))
    typed = {f"{path.partition('/')[0]}/py.typed" for path in present} if name == "catome" else set()
    size = wheel.stat().st_size
    return [
        *(f"{path} is missing" for path in sorted((expected | typed) - present)),
        *(f"{path} is not one of its files" for path in sorted(present - expected)),
        *(f"{path} does not belong into a wheel" for path in sorted(present) if UNWANTED.search(path)),
        *([f"it has {size} bytes; expected less than {LIMITS[name]}"] if size >= LIMITS[name] else []),
    ]


def main(wheels: list[str]) -> int:
    found = [f"{wheel}: {fault}" for wheel in wheels for fault in faults(Path(wheel))]
    print(*found or (f"{wheel}: {Path(wheel).stat().st_size / 1e6:.2f} MB, fine" for wheel in wheels), sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
