"""`catome compare`: pipelines that `save_pretrained` saved, what it refuses, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catome_adapters import MergeRecipe
from catome_bench import open as opening
from catome_bench.commands import compare as command
from catome_bench.open import open_pipeline, shipped_arch
from catome_core import Lattice
from commands import invoke, refusal
from tiers import tiered
from zoo.class_pipelines import tiny_shipped
from zoo.texted_pipelines import TEXTED
from zoo.transformer_pipelines import dit

SIZES = {"Wan": ["--height", 32, "--width", 32, "--frames", 5]}


def run(*arguments: object) -> Any:
    return invoke("compare", "--device", "cpu", "--steps", 2, "--seeds", 1, *arguments)


def refused(*arguments: object) -> str:
    """The one line on stderr; nothing is written."""
    return refusal(run(*arguments))


@pytest.fixture
def shipped(monkeypatch, tmp_path) -> None:
    """Tiny networks in the place of the shipped ones; what is written without --output is in a new folder."""
    monkeypatch.setattr(opening, "load_shipped", tiny_shipped)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", tiered(TEXTED, ["SDXL"]))
def test_a_saved_pipeline_is_opened_drawn_and_compared(tmp_path, name):
    TEXTED[name]().save_pretrained(tmp_path / "model")
    sizes = SIZES.get(name, ["--height", 32, "--width", 32])
    recipes = ["--recipe", "todo", "--recipe", "tomesd"]
    result = run(tmp_path / "model", "--prompt", "a cat", *sizes, *recipes, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["unmerged", "todo", "tomesd"]
    assert found["settings"]["calls"][0]["prompt"] == "a cat"
    assert found["settings"]["calls"][0]["num_inference_steps"] == 2
    assert all(row["merged"] >= 0.5 and row["psnr"]["median"] > 10 for row in found["rows"][1:])
    assert all(verdict in result.output for verdict in found["verdicts"].values())


def test_every_prompt_of_the_line_and_of_the_file_is_drawn(shipped):
    # With a byte order mark.
    Path("prompts.txt").write_text("cat\n\n  rocket \n", encoding="utf-8-sig")
    assert run("dit", "--prompt", "temple", "--prompts", "prompts.txt", "--height", 16, "--seeds", 2).exit_code == 0
    found = json.loads(Path("catome-compare/comparison.json").read_text())
    classes = [call["classes"] for call in found["settings"]["calls"]]
    assert classes == [["temple"], ["cat"], ["rocket"]]
    assert found["settings"]["seeds"] == [0, 1]
    assert len(found["rows"][1]["pictures"]) == 6


def test_a_recipe_from_a_file_is_compared(shipped):
    recipe = MergeRecipe(Lattice(), scope="keys", stride=4)
    recipe.save("mine.json")
    assert run("unet", "--prompt", "cat", "--height", 16, "--recipe", "mine.json").exit_code == 0
    row = json.loads(Path("catome-compare/comparison.json").read_text())["rows"][1]
    assert row["name"] == "mine.json"
    assert MergeRecipe.from_json(json.dumps(row["recipe"])) == recipe


@pytest.mark.parametrize(("gate", "code"), [(["psnr=-99", "ssim=-1"], 0), (["psnr=-99", "ssim=1.1"], 1)])
def test_the_exit_code_says_whether_the_gate_is_passed(shipped, gate, code):
    options = [part for floor in gate for part in ("--gate", floor)]
    result = run("unet", "--prompt", "cat", "--height", 16, *options)
    assert result.exit_code == code
    assert ("drop, since SSIM" in result.stdout) is bool(code)
    assert json.loads(Path("catome-compare/comparison.json").read_text())["gate"]["psnr"] == -99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("unet", 'none is given; pass --prompt "a cat", or a file with a prompt a line'),
        ("unet --prompts missing.txt", "missing.txt cannot be read: "),
        ("unet --prompts empty.txt", "empty.txt has no line with one; pass --prompt"),
        ("unet --prompts bytes.txt", "bytes.txt cannot be read: "),
        ("unet --prompt cat --recipe best", "'best'; expected one of default"),
        ("unet --prompt cat --recipe empty.txt", "empty.txt: "),
        ("unet --prompt cat --recipe five.json", "five.json: "),
        (
            "unet --prompt cat --recipe tome",
            "transformer_blocks.0: cannot merge in scope='progressive': it merges for good",
        ),
        (
            "unet --prompt cat --gate psnr",
            "string to float: ''; expected numbers, as in psnr=30",
        ),
        ("unet --prompt cat --gate fid=3", "gate is fid=3.0; expected a number for psnr or ssim"),
        ("unet --prompt dog", "expected at least one of ['astronaut', 'cat'"),
        ("unet --prompt cat --height 16 --width 24", "draw single squares: pass --height alone"),
        ("unet --prompt cat --frames 5", "draw single squares: pass --height alone"),
        ("unet --prompt cat --height 17", "size is 17; expected a multiple of 8"),
        ("unet --prompt cat --device quantum", "'quantum' here; expected a device of this machine"),
        ("unet --prompt cat --dtype int8", "'int8' is not one of"),
        ("unet --prompt cat --output empty.txt/in/a/file", "cannot write empty.txt/in/a/file"),
        ("folder --prompt cat", "folder has no model_index.json; pass a folder that save_pretrained"),
        (
            "/no/such/model --prompt cat",
            "is no folder, none of ('unet', 'dit', 'dit-patch1'), and neither on the hub",
        ),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_leaves_nothing(shipped, arguments, message):
    Path("empty.txt").touch()
    Path("five.json").write_text("5")
    Path("bytes.txt").write_bytes(b"\xff")
    Path("folder").mkdir()
    before = sorted(Path().rglob("*"))
    assert message in refused(*arguments.split())
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == [path for path in before if path.is_file()]


def test_an_output_that_cannot_be_written_is_found_before_the_work(shipped, monkeypatch):
    def work(*args: object, **options: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr(command, "compare", work)
    Path("file").touch()
    assert "cannot write file/out" in refused("unet", "--prompt", "cat", "--output", "file/out")


def test_pickled_weights_are_not_opened(tmp_path):
    TEXTED["SD1.5"]().save_pretrained(tmp_path, safe_serialization=False)
    message = refused(tmp_path, "--prompt", "a cat", "--output", tmp_path / "out")
    assert "cannot be opened: " in message and "safetensors" in message


def test_values_that_are_not_finite_are_found_although_a_picture_would_be_black(tmp_path):
    pipe = TEXTED["SD1.5"]()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    pipe.save_pretrained(tmp_path)
    message = refused(tmp_path, "--prompt", "a cat", "--height", 32, "--width", 32, "--output", tmp_path / "out")
    assert "unmerged, seed 0: a value of the pictures is not finite; draw in another dtype" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_options_that_a_pipeline_does_not_take_are_refused():
    with pytest.raises(ValueError, match="DiTPipeline takes no prompt: compare it in Python"):
        command.arguments_for(dit(), "a cat", {})
    with pytest.raises(ValueError, match="FluxPipeline takes no num_frames: leave --frames out"):
        command.arguments_for(TEXTED["Flux"](), "a cat", {"frames": 5, "height": None})


def test_a_model_is_opened_in_the_dtype_that_is_asked_for(tmp_path):
    TEXTED["SD1.5"]().save_pretrained(tmp_path)
    pipe = open_pipeline(str(tmp_path), dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


def test_shipped_models_have_short_and_long_names():
    names = ["unet", "dit", "shipped", "shipped/unet", "shipped/dit", "./unet", "timm:vit", ""]
    assert [shipped_arch(name) for name in names] == ["unet", "dit", "unet", "unet", "dit", None, None, None]
