"""`catome sweep`: saved pipelines and shipped ones, what to draw, its refusals and exit codes."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from PIL import Image

from catome_bench import open as opening
from catome_bench.commands import sweep as command
from catome_bench.names import CLASS_TEMPLATE
from catome_bench.sweeping.prompts import imagenet_classes
from commands import invoke, refusal
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import ddim
from zoo.texted_pipelines import TEXTED

SMALL = ["--device", "cpu", "--steps", 2, "--seeds", 1, "--table", "comparison"]
ONE = ["--height", 16, "--prompts", "one.txt"]


def run(*arguments: object) -> Any:
    return invoke("sweep", *arguments)


def drawn(*arguments: object) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    """The one line on stderr."""
    return refusal(run(*arguments))


@pytest.fixture
def shipped(monkeypatch, tmp_path, pixels) -> None:
    """Tiny networks in the place of the shipped ones; what is written without --output is in a new folder."""
    monkeypatch.setattr(opening, "load_shipped", tiny_shipped)
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("cat")


def settings(folder: str = "catome-sweep") -> dict[str, Any]:
    return json.loads(Path(folder, "sweep.json").read_text())


@pytest.mark.thorough
def test_a_saved_pipeline_draws_a_prompt_for_each_class(tmp_path, pixels):
    TEXTED["SD1.5"]().save_pretrained(tmp_path / "model")
    (tmp_path / "classes.txt").write_text("cat\n\n dog \n")
    sizes = ["--height", 32, "--width", 32, "--guidance", 7.5, "--sampler", "plms"]
    given = [tmp_path / "model", *SMALL, *sizes, "--classes", tmp_path / "classes.txt", "--output", tmp_path / "out"]
    printed = drawn(*given)
    found = settings(tmp_path / "out")
    assert found["prompts"] == [f"A high-quality photograph of a {name}" for name in ("cat", "dog")]
    assert found["options"] == {"guidance_scale": 7.5, "height": 32, "width": 32}
    assert found["model"]["scheduler"]["_class_name"] == "PNDMScheduler"
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["unmerged", "tomesd", "ca-tome", "config_3", "balanced", "1-steps"]
    assert all(row["psnr"]["median"] > 5 for row in rows[1:])
    assert "Table IV" in printed and f"written to {tmp_path / 'out'}: results.json" in printed


def test_shipped_models_draw_their_own_classes(shipped):
    assert "Table II " in drawn("dit", "--table", "configurations", "--device", "cpu", "--height", 16)
    assert settings()["prompts"] == ["astronaut", "cat", "coffee", "flower", "rocket", "temple"]
    assert (settings()["seeds"], settings()["steps"]) == (2, 50)


def test_the_same_command_goes_on_and_draws_nothing_twice(shipped):
    printed = drawn("dit", *SMALL, *ONE)
    before = {path: path.stat().st_mtime_ns for path in Path("catome-sweep").rglob("*.png")}
    assert len(before) == 6
    assert drawn("dit", *SMALL, *ONE) == printed
    assert drawn("dit", "--tables-only", "--device", "cpu") == printed
    assert {path: path.stat().st_mtime_ns for path in Path("catome-sweep").rglob("*.png")} == before


def test_a_process_that_is_not_the_last_says_so(shipped, monkeypatch):
    Path("one.txt").write_text("cat\nrocket")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = drawn("dit", *SMALL, *ONE)
    assert "6 pictures are still to be drawn" in printed and "written" not in printed
    assert "1 picture of each row" in drawn("dit", "--tables-only", "--device", "cpu")


@pytest.mark.parametrize("table", ["thresholds", "caching"])
@pytest.mark.thorough
def test_every_table_is_drawn(shipped, table):
    printed = drawn("unet", *SMALL[:-2], *ONE, "--table", table, "--table", "configurations")
    assert all(name in printed for name in settings()["rows"][table]) and "Table II" in printed
    assert len(settings()["recipes"]) == {"thresholds": 7, "caching": 6}[table]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("/no/such/model", "is no folder, none of ('unet', 'dit', 'dit-patch1'), and neither on the hub"),
        ("folder", "folder has no model_index.json; pass a folder that save_pretrained"),
        ("unet --prompts missing.txt", "missing.txt cannot be read: "),
        ("unet --prompts empty.txt", "empty.txt has no line; pass a file with a prompt or a class a line"),
        ("unet --classes bytes.txt", "bytes.txt cannot be read: "),
        ("unet --prompts dog.txt", "classes is ['dog']; expected at least one of ['astronaut'"),
        ("unet --prompts dog.txt --classes dog.txt", "all say what to draw; pass one of them"),
        ("unet --preset parti", "nothing says what to draw; pass --prompts FILE with the prompts of parti"),
        ("unet --preset parti --prompts dog.txt", "parti has 1632 prompts, and these are 1: pass the whole list"),
        ("unet --preset coco", "'coco'; expected one of imagenet-2k, drawbench, parti, coco5k"),
        ("unet --table one", "'one'; expected one of thresholds, configurations, caching, comparison"),
        ("unet --real folder", "folder has no pictures; pass a folder with files of .png"),
        ("unet --features folder", "folder has no model.safetensors"),
        ("unet --height 16 --width 24", "draw single squares: pass --height alone"),
        ("unet --output empty.txt/in/a/file", "cannot write empty.txt/in/a/file"),
        ("unet --tables-only", "sweep.json cannot be read"),
    ],
)
def test_bad_input_is_one_line_with_the_remedy_and_leaves_nothing(shipped, arguments, message):
    Path("empty.txt").touch()
    Path("bytes.txt").write_bytes(b"\xff")
    Path("dog.txt").write_text("dog")
    Path("folder").mkdir()
    before = [path for path in sorted(Path().rglob("*")) if path.is_file()]
    assert message in refused(*arguments.split(), "--device", "cpu", "--steps", 2)
    assert [path for path in sorted(Path().rglob("*")) if path.is_file()] == before


def test_other_settings_are_refused_with_the_remedy(shipped):
    drawn("dit", *SMALL, *ONE)
    line = refused("dit", *SMALL, *ONE, "--height", 24)
    assert 'options was {"size": 16}, and is {"size": 24} now' in line and "or choose another folder" in line


def test_a_full_disk_is_one_line_with_the_remedy_and_what_is_drawn_stays(shipped, monkeypatch):
    write, after = Image.Image.save, iter([False] * 3 + [True])

    def full(image: Image.Image, path: Path, **options: Any) -> None:
        if next(after):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        line = refused("dit", *SMALL, *ONE)
    assert "No space left on device; what is drawn stays: make room, and start it again" in line
    assert len(list(Path("catome-sweep").rglob("*.png"))) == 3
    drawn("dit", *SMALL, *ONE)


def test_values_that_are_not_finite_are_one_line_with_the_remedy(tmp_path, pixels):
    pipe = TEXTED["SD1.5"]()
    torch.nn.init.constant_(pipe.unet.conv_out.bias, float("nan"))
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a cat")
    given = [tmp_path / "model", *SMALL, "--height", 32, "--width", 32, "--prompts", tmp_path / "prompts.txt"]
    message = refused(*given, "--output", tmp_path / "out")
    assert "unmerged, prompt 0, seed 0: a value of the pictures is not finite; draw in another dtype" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_imagenet_classes_fill_the_template_and_need_no_file():
    pytest.importorskip("timm")
    none: dict[str, Any] = {"prompts": None, "classes": None}
    chosen = command.choose_prompts(object(), preset="imagenet-2k", template=CLASS_TEMPLATE, **none)
    assert chosen[1] == f"A high-quality photograph of a {imagenet_classes()[1]}"
    with pytest.raises(ValueError, match="pass --preset imagenet-2k, --classes or --prompts"):
        command.choose_prompts(object(), preset=None, template="", **none)


@pytest.mark.parametrize("scheduler", [ddim(), DPMSolverMultistepScheduler(beta_schedule="scaled_linear")])
def test_plms_has_the_noise_of_the_scheduler_that_it_replaces(scheduler):
    plms = command.to_plms(scheduler)
    assert isinstance(plms, PNDMScheduler) and plms.config.skip_prk_steps
    torch.testing.assert_close(plms.alphas_cumprod, scheduler.alphas_cumprod)
    plms.set_timesteps(50)
    assert len(plms.timesteps) == 51


def test_plms_is_refused_where_noise_is_of_another_kind():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no noise schedule that PLMS knows"):
        command.to_plms(FlowMatchEulerDiscreteScheduler())


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(command, "choose_device", lambda name: name)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [command.own_device(name) for name in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    assert command.own_device("cuda") == "cuda"
