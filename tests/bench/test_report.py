"""`catome report`: one page, whole by itself, of whatever results a folder holds; what it refuses and escapes."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from catome_adapters import MergeRecipe
from catome_bench import compare as comparing
from catome_bench.cli import app
from catome_bench.commands import demo
from catome_bench.models.artist import unmerged_is_fine
from catome_bench.report.html import plot
from catome_bench.report.results import KINDS
from catome_bench.views.scatter import draw_front
from catome_core import AdaptiveMerge
from zoo.class_pipelines import tiny_shipped

EVIL = "<script>alert('$title & ${body}')</script>\" onload=\"x"
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text; every element is closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [one for _, one in self.elements if name in (one.get("class") or "").split()]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def spread(value: float | None) -> dict[str, Any]:
    return {"median": value, "worst": value, "interval": [value, value]}


def drawn(subject: str, speedup: float, psnr: float | None, **changes: Any) -> dict[str, Any]:
    figures = {"speedup": spread(speedup), "psnr": spread(psnr), "ssim": spread(0.9), "seconds": 1.0}
    return {"subject": subject, "family": "ours", "steps": 10, "frechet": 0.5, "removed": 0.5} | figures | changes


def write_bench(folder: Path) -> None:
    rows = [drawn("close", 1.2, 60.0), drawn(EVIL, 1.5, 45.0), drawn("far", 1.9, 20.0), drawn("same", 1.1, None)]
    pictures = {"level": "pipeline", "case": "unet", "mode": "", "note": "", "images": 1, "size": 32, "rows": rows}
    failed = {"level": "block", "case": "sd15-512", "mode": "eager", "note": f"RuntimeError: {EVIL}", "rows": []}
    found = {"tables": [pictures, failed], "suite": "cpu", "machine": {"device": "CPU"}}
    (folder / "benchmark.json").write_text(json.dumps(found))


def write_comparison(folder: Path) -> None:
    recipes = {"half": MergeRecipe(AdaptiveMerge(capacity=0.5, spare="fill"), levels="all"), "todo": "todo"}
    calls = [{"classes": [name], "size": 16, "num_inference_steps": 2} for name in ("cat", "rocket")]
    compared = comparing.compare(tiny_shipped(), recipes, calls, seeds=[3], progress=False)
    file = compared.save(folder)
    found = json.loads(file.read_text())
    found["settings"]["calls"] = [{"prompt": EVIL}, {"classes": ["\ud800", "rocket"]}]
    for row, name in zip(found["rows"][1:], (EVIL, "$x_$"), strict=True):
        found["verdicts"][name] = found["verdicts"].pop(row["name"])
        found["kept"] = [name if kept == row["name"] else kept for kept in found["kept"]]
        row["name"] = name
    file.write_text(json.dumps(found))


def write_demo(folder: Path) -> None:
    # Fixtures of one test, as the one by which merging costs nothing, are not at work yet.
    with pytest.MonkeyPatch.context() as patch, unmerged_is_fine():
        patch.setattr(demo, "load_shipped", tiny_shipped)
        patch.setattr(demo, "check_recipe", lambda *args: None)
        demo.run_demo("unet", "paper", steps=3, images=2, size=16, output=folder, device="cpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A folder that all commands have written to."""
    folder = tmp_path_factory.mktemp("<b>results")
    for write in (write_bench, write_comparison, write_demo):
        write(folder)
    return folder


@pytest.fixture(scope="module")
def page(written, tmp_path_factory) -> Page:
    """The page of all of it."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    assert report(written, "--output", output).exit_code == 0
    return Page(output.read_text(encoding="utf-8"))


@pytest.fixture
def results(tmp_path, written) -> Path:
    return Path(shutil.copytree(written, tmp_path / "results"))


def report(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)


def page_of(folder: Path) -> Page:
    result = report(folder)
    assert result.exit_code == 0, result.output
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_whole_by_itself(page):
    sources = [one[name] for _, one in page.elements for name in ("src", "href", "xlink:href", "data") if name in one]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not {"link", "iframe", "object", "base"} & {name for name, _ in page.elements}
    assert "@import" not in page.text and "url(" not in page.text.replace("url(#", "")
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_pictures_plots_and_sliders_have_names_for_those_who_do_not_see_them(page):
    assert all(image["alt"] for image in page.all("img"))
    assert all(one["aria-label"] for one in page.of_class("plot") + page.all("select"))
    names = [one.get("aria-label") for one in page.all("input") if one["type"] == "range"]
    # The slider of the merge maps lies in its label.
    assert [name for name in names if name is None] == [None]
    assert all(one["tabindex"] == "0" for one in page.of_class("scroll") if "plot" not in one["class"])


def test_what_was_typed_is_text_and_nothing_else(page):
    # The page has a single script of its own.
    assert len(page.all("script")) == 1
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.all("title") and not page.all("b")
    assert page.text.count(EVIL) >= 6
    assert f"{EVIL}, seed 3, unmerged" in [image["alt"] for image in page.all("img")]
    assert "$x_$" in page.texts
    assert any(image["alt"].startswith("\ufffd rocket, seed 3") for image in page.all("img"))
    assert any("<b>results" in text for text in page.texts)


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("demo", "results.json", "The shipped unet in 3 steps draws "),
        (
            "bench",
            "benchmark.json",
            f"unet, 10 steps: {EVIL} draws 1.50x faster, at 45.0 dB from the unmerged",
        ),
        ("compare", "comparison.json", "No recipe is worth keeping here: "),
    ],
)
def test_the_conclusion_comes_first_whichever_results_are_there(results, kind, file, said):
    for other in results.glob("*.json"):
        if other.name != file:
            other.unlink()
    if kind == "compare":
        found = json.loads((results / file).read_text())
        found |= {"verdicts": dict.fromkeys(found["verdicts"], "it is slower: drop"), "kept": []}
        (results / file).write_text(json.dumps(found))
    page = page_of(results)
    assert len(page.of_class("conclusion")) == len(page.all("section")) == 1
    order = [page.text.index(text) for text in (said, f"catome {kind}", "Settings", "Machine")]
    assert order == sorted(order)


def test_of_recipes_that_are_kept_the_fastest_one_is_the_conclusion(results):
    (results / "results.json").unlink()
    (results / "benchmark.json").unlink()
    found = json.loads((results / "comparison.json").read_text())
    found |= {"verdicts": {EVIL: "slow: keep", "$x_$": "fast: keep; it is one call"}, "kept": [EVIL, "$x_$"]}
    for row, speedup in zip(found["rows"][1:], (1.1, 1.2), strict=True):
        row["speedup"] = spread(speedup)
    (results / "comparison.json").write_text(json.dumps(found))
    assert "fast: keep; it is one call." in page_of(results).texts


def test_a_recipe_that_draws_the_same_pictures_keeps_any_floor(results):
    for other in ("results.json", "comparison.json"):
        (results / other).unlink()
    found = json.loads((results / "benchmark.json").read_text())
    for row in found["tables"][0]["rows"]:
        row["psnr"] = {"median": None, "worst": None, "interval": [None, None]}
    (results / "benchmark.json").write_text(json.dumps(found))
    text = page_of(results).text
    assert "with the same pictures" in text and "no recipe keeps" not in text


def test_every_picture_is_there_once_for_each_way_to_draw_it(page):
    assert len(page.of_class("before-after")) == 4
    sides = [image["alt"].removeprefix(f"{EVIL}, seed 3, ") for image in page.all("img") if "seed 3" in image["alt"]]
    assert sides[:3] == ["unmerged", EVIL, "$x_$"]
    assert ["hidden" in image for image in page.of_class("above")] == [False, True] * 2 + [False] * 2


def test_the_maps_of_all_layers_have_one_slider_with_every_step(page, written):
    layers = json.loads((written / "results.json").read_text())["merge_maps"]
    strips = page.of_class("strip")
    assert [strip["alt"] for strip in strips] == [f"merge map of {site}: merged tokens are dark" for site in layers]
    assert [one["max"] for one in page.all("input") if one.get("max") == "2"] == ["2"]
    assert any(one.get("style") == "--at: 0; --last: 2" for one in page.of_class("live"))


def test_only_some_pictures_of_many_are_in_the_page(results):
    found = json.loads((results / "comparison.json").read_text())
    found["settings"]["seeds"] = list(range(10))
    for row in found["rows"]:
        row["pictures"] = row["pictures"][:1] * 20
    (results / "comparison.json").write_text(json.dumps(found))
    (results / "results.json").unlink()
    page = page_of(results)
    assert len(page.of_class("before-after")) == 8
    assert "Pictures, 8 of 20; the others are in the folder" in page.texts


def test_a_name_in_a_plot_is_no_formula_and_may_be_long_and_no_ink_is_black():
    html = plot(
        "a plot", lambda: draw_front([drawn("$\\frac$", 1.2, 40.0), drawn("-->" + 300 * "x", 1.3, 30.0)], "<i>")
    )
    assert "<!--" not in html and "#000000" not in html
    page = Page(html)
    assert not page.all("i") and page.of_class("plot")[0]["aria-label"] == "a plot"


def refused(folder: Path, *others: object) -> str:
    """The one line on stderr; nothing is written."""
    before = sorted(folder.parent.rglob("*"))
    result = report(folder, *others)
    assert result.exit_code == 2, result.output
    assert sorted(folder.parent.rglob("*")) == before
    (line,) = result.stderr.splitlines()
    return line


def test_a_folder_without_results_is_refused(tmp_path):
    assert "gone is no folder" in refused(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "other.json").write_text("[1]")
    message = refused(tmp_path / "empty")
    assert all(f"catome {command}" in message for command in KINDS)


@pytest.mark.parametrize("text", ["{", "", "\udcff", "[" * 100_000])
def test_broken_json_is_refused(results, text):
    (results / "results.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "results.json is no JSON that can be read: " in refused(results)


@pytest.mark.parametrize("field", ["results", "pictures", "machine"])
def test_results_of_another_version_are_refused(results, field):
    found = json.loads((results / "results.json").read_text())
    (results / "results.json").write_text(json.dumps(found | {field: [1]}))
    assert "results.json is not as this version of catome demo writes it (" in refused(results)


@pytest.mark.thorough
def test_only_pictures_of_the_folder_are_shown(results):
    name = json.loads((results / "comparison.json").read_text())["rows"][0]["pictures"][0]
    whole = (results / name).read_bytes()
    for broken in (b"no picture", whole[: len(whole) // 2]):
        (results / name).write_bytes(broken)
        assert f"{Path(name).name} is missing or no PNG; draw the pictures again" in refused(results)
    (results / name).unlink()
    assert f"{Path(name).name} is missing or no PNG; draw the pictures again" in refused(results)
    Image.new("L", (2, 2)).save(results.parent / "secret.png")
    (results / name).symlink_to(results.parent / "secret.png")
    assert "names a picture outside of it" in refused(results)


@pytest.mark.thorough
def test_the_page_can_be_written_elsewhere_or_not_at_all(results, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write" in refused(results, "--output", tmp_path / "file" / "page.html")
    assert report(results, "--output", tmp_path / "new" / "page.html").exit_code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert not (results / "report.html").exists()
