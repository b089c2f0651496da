"""`catome calibrate`: pipelines that `save_pretrained` saved, its files, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catome_adapters.recipes.calibrated import CalibratedRecipe
from catome_bench import open as opening
from catome_bench.calibration.measurements import Measurements
from catome_bench.calibration.result import Calibration
from catome_bench.commands import calibrate as command
from commands import invoke, refusal
from tiers import tiered
from zoo.class_pipelines import tiny_shipped
from zoo.texted_pipelines import TEXTED

SQUARE = ["--height", 32, "--width", 32]
SIZES = {"Wan": [*SQUARE, "--frames", 5]}

pytestmark = pytest.mark.usefixtures("saves", "few")


def run(*arguments: object) -> Any:
    return invoke("calibrate", "--device", "cpu", "--steps", 2, "--seeds", 1, *arguments)


def refused(*arguments: object) -> str:
    """The one line on stderr after the bars."""
    return refusal(run(*arguments))


@pytest.fixture
def shipped(monkeypatch, tmp_path) -> None:
    """Tiny networks in the place of the shipped ones; what is written without --output is in a new folder."""
    monkeypatch.setattr(opening, "load_shipped", tiny_shipped)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", tiered(["SD1.5", "SDXL", "Flux", "Wan"], ["Flux"]))
def test_a_saved_pipeline_is_calibrated_and_its_recipe_taken_by_the_other_commands(tmp_path, name):
    TEXTED[name]().save_pretrained(tmp_path / "model")
    sizes = SIZES.get(name, SQUARE)
    out = tmp_path / "out"
    result = run(tmp_path / "model", "--prompt", "a cat", *sizes, "--output", out / "recipe.json")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == [
        "recipe-calibration.json",
        "recipe-measurements.jsonl",
        "recipe.json",
    ]
    recipe = CalibratedRecipe.load(out / "recipe.json")
    assert recipe.recipes and recipe.fit["calls"][0]["prompt"] == "a cat" and recipe.fit["steps"] == 2
    figures = json.loads((out / "recipe-calibration.json").read_text())
    assert figures["fit"] == recipe.fit
    assert "on pictures that were not used to choose it, calibrated is" in result.stdout
    taken = ["--recipe", out / "recipe.json", "--device", "cpu"]
    assert invoke("plan", tmp_path / "model", *taken, *sizes).exit_code == 0
    compare = ["--prompt", "a cat", "--steps", 2, "--seeds", 1, "--output", tmp_path / "compared"]
    compared = invoke("compare", tmp_path / "model", *taken, *sizes, *compare)
    assert compared.exit_code == 0, compared.output
    rows = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    assert rows[1]["recipe"] == json.loads((out / "recipe.json").read_text()) and rows[1]["merged"] > 0
    other = "Flux" if name != "Flux" else "Wan"
    TEXTED[other]().save_pretrained(tmp_path / "other")
    strange = invoke("compare", tmp_path / "other", *taken, *SIZES.get(other, SQUARE), *compare)
    assert strange.exit_code == 2 and "the recipe was calibrated on" in strange.stderr


@pytest.mark.thorough
def test_a_run_that_was_broken_off_goes_on(shipped, monkeypatch):
    arguments = ["dit", "--prompt", "cat", "--height", 16, "--output", "mine.json"]
    with monkeypatch.context() as patch:
        patch.setattr(Calibration, "save", interrupt)
        assert run(*arguments).exit_code == 130
    kept = Path("mine-measurements.jsonl").read_text()
    assert [path.name for path in Path().iterdir()] == ["mine-measurements.jsonl"]
    assert "with seeds=[0], not [0, 1]; delete it, or pass another" in refused(*arguments, "--seeds", 2)
    assert Path("mine-measurements.jsonl").read_text() == kept
    assert run(*arguments).exit_code == 0
    written = ["mine-calibration.json", "mine-measurements.jsonl", "mine.json"]
    assert sorted(path.name for path in Path().iterdir()) == written
    assert Path("mine-measurements.jsonl").read_text() == kept


@pytest.mark.thorough
def test_another_goal_measures_nothing_again(shipped, monkeypatch):
    arguments = ["dit", "--prompt", "cat", "--height", 16, "--output", "mine.json"]
    assert run(*arguments).exit_code == 0
    monkeypatch.setattr(Measurements, "_append", interrupt)
    assert run(*arguments, "--speedup", 1.001).exit_code == 0
    assert json.loads(Path("mine.json").read_text())["fit"]["goal"] == "1.001x"


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("unet", "none is given; pass --prompt"),
        ("unet --prompts missing.txt", "missing.txt cannot be read: "),
        ("unet --prompt dog", "expected at least one of ['astronaut', 'cat'"),
        ("unet --prompt cat --device quantum", "'quantum' here; expected a device of this machine"),
        ("unet --prompt cat --floor-psnr 40 --speedup 1.3", "speedup is 1.3; expected one goal: leave one of them out"),
        ("unet --prompt cat --speedup 0.5", "speedup is 0.5; expected a number above 1"),
        ("/no/such/model --prompt cat", "is no folder, none of ('unet', 'dit', 'dit-patch1'), and neither on the hub"),
        ("unet --prompt cat --height 16 --steps 1", "the run has one step"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_leaves_no_result(shipped, arguments, message):
    assert message in refused(*arguments.split())
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("output", ["file/out.json", "folder"])
def test_an_output_that_cannot_be_written_is_found_before_the_work(shipped, monkeypatch, output):
    monkeypatch.setattr(command, "calibrate", lambda *given, **options: pytest.fail("it began to work"))
    Path("file").touch()
    Path("folder").mkdir()
    assert output.partition("/")[0] in refused("unet", "--prompt", "cat", "--output", output)


def test_values_that_are_not_finite_are_one_line(tmp_path):
    pipe = TEXTED["SD1.5"]()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    pipe.save_pretrained(tmp_path / "model")
    out = tmp_path / "out" / "recipe.json"
    message = refused(tmp_path / "model", "--prompt", "a cat", "--height", 32, "--width", 32, "--output", out)
    assert "seed 0: a value of the pictures is not finite; draw in another dtype" in message
    assert list(out.parent.iterdir()) == []
