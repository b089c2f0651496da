"""How the code is laid out: imports go downwards, files and classes stay small, lower floors do not need upper ones."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "catome_core": ROOT / "catome_core",
    "catome_adapters": ROOT / "adapters" / "catome_adapters",
    "catome_bench": ROOT / "catome_bench",
    "catome": ROOT / "catome",
}
FLOORS = {
    "catome_core": (),
    "catome_adapters": ("catome_core",),
    "catome_bench": ("catome_core", "catome_adapters"),
    "catome": ("catome_core", "catome_adapters", "catome_bench"),
}
LONGEST_FILE, MOST_METHODS = 200, 12


def modules(package: str) -> dict[str, Path]:
    root = PACKAGES[package]
    return {_name(package, path.relative_to(root)): path for path in sorted(root.rglob("*.py"))}


def _name(package: str, path: Path) -> str:
    return ".".join((package, *path.with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports anywhere in it, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and _package(node.module) in PACKAGES:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _package(alias.name) in PACKAGES)


def _package(module: str) -> str:
    return module.partition(".")[0]


EVERY = [(package, name, path) for package in PACKAGES for name, path in modules(package).items()]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package):
    known = modules(package)
    # A package's face imports its modules; no module imports the face.
    graph = {name: {one for one in imports(path) if one in known and one != package} for name, path in known.items()}
    assert [*TopologicalSorter(graph).static_order()]


@pytest.mark.parametrize("package", ["catome_adapters", "catome_bench"])
def test_no_circle_of_folders(package):
    """A folder is one room, and so is a file beside the folders."""
    known = modules(package)
    rooms: dict[str, set[str]] = {}
    for name, path in known.items():
        needed = {_room(one) for one in imports(path) if one in known and one != package}
        rooms.setdefault(_room(name), set()).update(needed - {_room(name)})
    del rooms[package]
    assert [*TopologicalSorter(rooms).static_order()]


def _room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def test_nothing_imports_upwards():
    for package, name, path in EVERY:
        foreign = {_package(one) for one in imports(path)} - {package}
        assert foreign <= set(FLOORS[package]), name


def test_other_packages_are_used_by_their_face():
    for name, path in modules("catome_adapters").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("catome_core."), name


def test_examples_need_no_upper_floor():
    for package, name, path in EVERY:
        imported = re.findall(r">>> (?:from|import) (catome\w*)", path.read_text())
        assert set(imported) <= {package, *FLOORS[package]}, name


def test_files_and_classes_stay_small():
    for _, name, path in EVERY:
        text = path.read_text()
        assert text.count("\n") <= LONGEST_FILE, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef) and one.name != "__init__"]
                assert len(methods) <= MOST_METHODS, f"{name}.{node.name} has {len(methods)}"


def test_adapters_have_few_doors():
    root = PACKAGES["catome_adapters"]
    assert len([path for path in root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]) <= 14
