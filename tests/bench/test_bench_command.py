"""`catome bench`: what it measures and writes. Never how long anything took."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from catome_bench.cli import app
from catome_bench.commands import jobs
from catome_bench.commands.setting import Setting
from catome_bench.commands.suites import HEADLINES, SUITES
from catome_bench.races import blocks, networks, never_slower, pictures
from catome_core import TokenGrid
from zoo.tiny_blocks import TINY, TINY_NETWORK, UNET, contenders_of

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")


@pytest.fixture
def small_suite(monkeypatch):
    """Everything that the command measures, small and eager."""
    monkeypatch.setattr(blocks, "CASES", {"sd15-512": UNET, "wan-480p": TINY["wan"]})
    monkeypatch.setattr(networks, "NETWORKS", {"sd15-512": TINY_NETWORK})
    monkeypatch.setattr(jobs, "GRID", TokenGrid((8, 8)))
    monkeypatch.setattr(jobs, "SHAPES", {"flat": (8, 8)})
    monkeypatch.setattr(jobs, "HEAD_SIZES", (8,))
    for name, suite in SUITES.items():
        small = {"modes": ("eager",), "networks": ("eager",), "cases": ("sd15-512", "wan-480p"), "repeats": 1}
        monkeypatch.setitem(SUITES, name, replace(suite, **small, models=("sd15-512",)))


def run_command(*arguments, output):
    result = CliRunner().invoke(app, ["bench", *arguments, "--output", str(output), "--device", "cpu"])
    return result, json.loads(output.read_text()) if output.exists() else None


@pytest.mark.thorough
def test_the_command_writes_every_row(small_suite, tmp_path):
    """The suite "gpu" has all that "cpu" has."""
    result, report = run_command("--suite", "gpu", output=tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    done = {(table["level"], table["case"]) for table in report["tables"]}
    wanted = {("block", "sd15-512"), ("block", "wan-480p"), ("check", "sd15-512"), ("ladder", "sd15-512")}
    wanted |= {("kernels", "head size 8"), ("operations", "64 tokens of 320 channels, batch 2")}
    wanted |= {("operations", "windowed match, 320 channels")}
    assert done == wanted | {("model", "sd15-512")}
    assert report["not_begun"] == []
    assert report["suite"] == "gpu"
    assert {"torch", "diffusers", "tomesd", "device", "threads"} <= set(report["machine"])
    assert all(table["rows"] and not table["note"] for table in report["tables"])
    block = next(table for table in report["tables"] if table["level"] == "block")
    (unpatched,) = (row for row in block["rows"] if row["subject"] == "unpatched")
    assert unpatched["speedup"] == 1.0
    assert unpatched["low"] <= unpatched["median"] <= unpatched["high"]
    assert "attention, proportional" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_levels_and_cases_choose(small_suite, tmp_path):
    _, report = run_command("--level", "block", "--case", "wan-480p", output=tmp_path / "out.json")
    assert [(table["level"], table["case"]) for table in report["tables"]] == [("block", "wan-480p")]


def test_nothing_begins_after_the_time_is_up(small_suite, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "gpu", replace(SUITES["gpu"], seconds=0.0))
    result, report = run_command("--suite", "gpu", "--level", "block", output=tmp_path / "out.json")
    assert report["tables"] == []
    assert report["not_begun"] == ["block, sd15-512, eager", "block, wan-480p, eager"]
    assert "no time left" in result.output


def test_a_measurement_that_fails_loses_no_other(small_suite, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(jobs, "race_kernels", fail)
    result, report = run_command("--level", "kernels", "--level", "operations", output=tmp_path / "out.json")
    assert result.exit_code == 1 and "failed, for the reason in its table: kernels" in result.output
    notes = {table["level"]: table["note"] for table in report["tables"]}
    assert notes == {"kernels": "RuntimeError: no such kernel", "operations": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "blocks"], "'blocks'"),
        (["--case", "sd3"], "'sd3'"),
        (["--suite", "tpu"], "'tpu'"),
        (["--level", "model", "--case", "wan-480p"], "wan-480p"),
        (["--case", "unet"], "no measurement of unet at the levels block,"),
        (["--level", "ladder", "--case", "wan-480p"], "no measurement of wan-480p at the levels ladder"),
        (["--level", "kernels", "--case", "sd15-512"], "no measurement of sd15-512 at the levels kernels"),
        (["--level", "pipeline", "--subject", "balansed"], "subject is 'balansed'; expected one of"),
        (["--level", "never-slower", "--subject", "balanced"], "leave out the subject 'balanced'"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(small_suite, tmp_path, arguments, message):
    result, report = run_command(*arguments, output=tmp_path / "out.json")
    assert result.exit_code == 2
    assert message in result.output
    assert report is None


def test_only_the_subjects_that_are_asked_for_run_beside_the_unpatched(small_suite, tmp_path):
    chosen = "--level", "block", "--case", "sd15-512", "--subject", "lattice"
    _, report = run_command(*chosen, output=tmp_path / "out.json")
    assert {row["subject"] for row in report["tables"][0]["rows"]} == {"unpatched", "lattice"}
    result, report = run_command(*chosen, "--subject", "lattices", output=tmp_path / "out.json")
    assert result.exit_code == 1
    assert "'lattices'; expected one of ['unpatched'" in report["tables"][0]["note"]


@pytest.mark.parametrize(
    ("cases", "drawn_by"), [((), ["unet"]), (("--case", "dit", "--case", "unet"), ["unet", "dit"])], ids=["unet", "all"]
)
@pytest.mark.thorough
def test_pictures_are_drawn_as_asked_for(small_suite, tmp_path, cases, drawn_by):
    few = ["--steps", "2", "--images", "1", "--size", "16", "--subject", "ToDo"]
    result, report = run_command("--level", "pipeline", *few, *cases, output=tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert [(table["case"], table["note"]) for table in report["tables"]] == [(arch, "") for arch in drawn_by]
    assert all({row["subject"] for row in table["rows"]} == {"unmerged", "ToDo"} for table in report["tables"])
    assert {(row["steps"], table["images"], table["size"]) for table in report["tables"] for row in table["rows"]} == {
        (2, 1, 16)
    }
    assert {file.name for file in tmp_path.iterdir()} == {"out.json", *(f"out-{arch}.png" for arch in drawn_by)}


@pytest.mark.parametrize(
    ("arguments", "asked"), [(["--size", "16", "--steps", "2"], [(16, [2])]), ([], [(32, None), (64, None)])]
)
def test_never_slower_draws_as_asked_for(small_suite, tmp_path, monkeypatch, arguments, asked):
    drawn = []

    def draw(*, size, steps, **given):
        drawn.append((size, steps))
        return {"size": size, "rows": []}

    monkeypatch.setattr(never_slower, "STEPS_BY_SIZE", {32: (6,), 64: (6,)})
    monkeypatch.setattr(never_slower, "run_never_slower", draw)
    run_command("--level", "never-slower", "--case", "dit", *arguments, output=tmp_path / "out.json")
    assert drawn == asked


def test_the_gpu_suite_compiles_only_its_headlines():
    setting = Setting(suite=SUITES["gpu"], device="cpu", repeats=1)
    everybody = set(contenders_of("unet"))
    assert set(HEADLINES) < everybody
    order = [job.mode for job in jobs.plan_jobs(setting, SUITES["gpu"].levels, ())]
    assert order == sorted(order, key=jobs.ORDER.index)
    assert {"eager", "compiled", "cuda graphs", "regional"} == set(order)


def test_the_ladder_of_the_gpu_suite_is_that_of_a_block_that_takes_an_image():
    setting = Setting(suite=SUITES["gpu"], device="cpu", repeats=1)
    assert {job.case for job in jobs.plan_jobs(setting, ["ladder"], ())} == {"sdxl-1024-deep"}


@pytest.mark.thorough
def test_pictures_survive_an_error_and_the_next_run_goes_on_with_them(small_suite, tmp_path, monkeypatch):
    few = ["--level", "pipeline", "--steps", "2", "--images", "1", "--size", "16", "--subject", "ToDo"]
    compared = pictures.frechet_distance

    def fail(*args):
        raise RuntimeError("no such decomposition")

    monkeypatch.setattr(pictures, "frechet_distance", fail)
    _, report = run_command(*few, output=tmp_path / "out.json")
    assert report["tables"][0]["note"] == "RuntimeError: no such decomposition"
    kept = sorted(file.stem for file in (tmp_path / "out.json.partial").rglob("*.pt"))
    assert kept == ["0", "0"]
    run_command("--level", "block", "--case", "wan-480p", output=tmp_path / "out.json")
    assert sorted(file.stem for file in (tmp_path / "out.json.partial").rglob("*.pt")) == kept
    monkeypatch.setattr(pictures, "frechet_distance", compared)
    _, report = run_command(*few, output=tmp_path / "out.json")
    assert report["tables"][0]["note"] == ""
    assert {file.name for file in tmp_path.iterdir()} == {"out.json", "out-unet.png"}
