"""What the distributions say about themselves is true."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

import catome

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WEIGHTS = tomllib.loads((ROOT / "weights" / "pyproject.toml").read_text())
SOURCES = sorted(
    path
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for path in (ROOT / package).rglob("*.py")
)
UNSAFE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def modules(path: Path) -> set[str]:
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def option(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(one.value) for one in call.keywords if one.arg == name), None)


def test_version_has_one_source_and_two_that_repeat_it():
    assert ROOT / PROJECT["tool"]["hatch"]["version"]["path"] == Path(catome.__file__)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == catome.__version__
    newest = re.search(r"^## (\S+) - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == catome.__version__


def test_citation_names_the_authors_of_the_readme():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    names = " and ".join(f"{one['given-names']} {one['family-names']}" for one in paper["authors"])
    readme = (ROOT / "README.md").read_text()
    assert f"author={{{names}}}" in readme
    assert f"title={{{paper['title']}}}" in readme
    assert paper["url"] == PROJECT["project"]["urls"]["Paper"]


def test_extra_of_the_weights_is_the_other_distribution():
    assert PROJECT["project"]["optional-dependencies"]["weights"] == [WEIGHTS["project"]["name"]]
    (folder, package), *others = WEIGHTS["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
    assert not others
    assert {path.name for path in (ROOT / "weights" / folder).iterdir()} == {"unet", "dit", "dit-patch1"}
    assert (ROOT / "weights" / package / "__init__.py").is_file()


def test_nothing_is_unpickled_and_no_data_is_executed():
    """As SECURITY.md says."""
    for path in SOURCES:
        assert not modules(path) & UNSAFE, path
        for call in calls(path):
            name = ast.unparse(call.func)
            assert name not in {"eval", "exec"}, path
            assert not name.endswith("torch.load") or option(call, "weights_only") is True, path
            assert not (name.endswith("from_pretrained") and option(call, "use_safetensors") is not True), path
