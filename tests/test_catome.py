"""The face of the distribution: every name is that of its package, and costs nothing before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import catome

SCRIPT = """
import sys, catome
print(set(catome.__all__) <= set(dir(catome)))
print(*[name for name in ("torch", "catome_core", "catome_adapters", "catome_bench") if name in sys.modules])
print(catome.MergedBlock.__name__)
print(*[name for name in ("torch", "catome_adapters", "diffusers") if name in sys.modules])
"""


def test_every_name_is_the_object_of_its_package():
    assert sorted(catome._HOMES) == sorted(catome.__all__)
    for name, package in catome._HOMES.items():
        assert getattr(catome, name) is getattr(import_module(package), name)
        assert name in import_module(package).__all__


def test_types_are_those_of_the_same_packages():
    tree = ast.parse(Path(catome.__file__).read_text())
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and "catome" in str(node.module)]
    assert {alias.name: node.module for node in froms for alias in node.names} == catome._HOMES


def test_star_import_brings_every_name():
    names: dict[str, object] = {}
    exec("from catome import *", names)
    assert {name: names[name] for name in catome.__all__} == {name: getattr(catome, name) for name in catome.__all__}


def test_dir_lists_what_is_not_imported_yet():
    assert {*catome.__all__, "__version__", "__doc__"} <= set(dir(catome))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'catome' has no attribute 'atach'"):
        _ = catome.atach
    assert not hasattr(catome, "__wrapped__")


def test_import_is_free_and_a_name_imports_its_package_alone():
    paths = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=paths, check=True)
    assert result.stdout.splitlines() == ["True", "", "MergedBlock", "torch"]
