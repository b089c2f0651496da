"""What a package exports, what the reference lists and what the pages import are the same names."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("catome", "catome_core", "catome_adapters")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

INSIDE = {
    # The page shows how to add a row to this very file.
    "catome_adapters.architectures.blocks": {"docs/architectures.md"},
    "catome_adapters.architectures.facts": {"docs/architectures.md"},
    # The page prints the rates to explain a prediction; they are no argument of anything.
    "catome_adapters.prediction.rates": {"docs/planning.md"},
}
"""Modules behind the faces, and the pages that may import from them."""

IMPORT = re.compile(
    r"^(?:>>> |\.\.\. )?\s*from (catome(?:_(?:core|adapters)\S*)?) import (\([^)]*\)|.*)$", re.MULTILINE
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def documented(package: str) -> list[str]:
    """The paths that a package's page in the reference shows, or links to."""
    page = (ROOT / "docs" / "api" / f"{package}.md").read_text()
    return re.findall(r"^(?:::: |- .*\]\(catome_\w+\.md#)([\w.]+)", page, re.MULTILINE)


def imports(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules that a page imports from, and the names."""
    for module, names in IMPORT.findall(page.read_text()):
        yield module, re.findall(r"\w+", re.sub(r"#.*| as \w+", "", names))


@pytest.mark.parametrize("package", PACKAGES)
def test_exports_are_sorted_and_exist(package):
    face = importlib.import_module(package)
    # As ruff sorts: constants, classes, functions.
    kinds = {name: (not name.isupper(), not name[0].isupper(), name) for name in face.__all__}
    assert face.__all__ == sorted(face.__all__, key=kinds.__getitem__)
    assert len(kinds) == len(face.__all__)
    assert [name for name in face.__all__ if not hasattr(face, name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_lists_the_exports(package):
    names = [path.rpartition(".")[2] for path in documented(package)]
    assert sorted(names) == sorted(importlib.import_module(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_reference_shows_the_exported_objects(package):
    face = importlib.import_module(package)
    for path in documented(package):
        module, _, name = path.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(face, name), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_imports_exports_only(page):
    for module, names in imports(page):
        if module in PACKAGES:
            assert set(names) <= set(importlib.import_module(module).__all__), module
        else:
            assert name_of(page) in INSIDE.get(module, set()), f"{module} is neither a face nor in INSIDE"


def test_every_exception_is_used():
    used = {(module, name_of(page)) for page in PAGES for module, _ in imports(page)}
    assert {(module, page) for module, pages in INSIDE.items() for page in pages} <= used
