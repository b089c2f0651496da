"""The `catome` command as typed: what it imports, what it refuses, and what it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from catome_adapters import RECIPES, MergeRecipe
from catome_bench import cli, names
from catome_bench.cli import app
from catome_bench.commands import bench, demo, options, train, vits
from catome_bench.commands.suites import SUITES
from catome_bench.files import whole_file
from catome_bench.measure import versions
from catome_bench.measure.environment import describe_environment
from catome_bench.models.artist import Artist
from catome_bench.models.pipeline import PIPELINES
from catome_bench.races.blocks import CASES
from catome_bench.races.networks import NETWORKS

COMMANDS = ("demo", "plan", "compare", "bench", "report", "calibrate", "vits", "train")


def refused(*arguments: object, code: int = 2) -> str:
    """The one line that a command ends with."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    *progress, line = result.stderr.replace("\r", "\n").splitlines()
    assert line.startswith("catome: ")
    # On a slow machine a bar has seconds for each item.
    assert all(bar.endswith(("it/s]", "s/it]")) or not bar.strip() for bar in map(str.strip, progress))
    return line


def run_alone(program: str, **options: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which has imported nothing yet."""
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", program], env=os.environ | path, text=True, check=False, **options)


def test_a_gpu_that_is_named_is_the_current_one(monkeypatch):
    """Events and memory are those of the current one."""
    chosen: list[str] = []
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [options.choose_device(name) for name in ("cuda:1", "cuda", "cpu")] == ["cuda:1", "cuda", "cpu"]
    assert chosen == ["cuda:1"]


HELP = f"""
import sys
from catome_bench.cli import app
for arguments in [["--help"], [], ["--version"], ["demo", "--size", "17"], *([name, "--help"] for name in {COMMANDS})]:
    try:
        app(arguments)
    except SystemExit as end:
        assert end.code == (2 if "17" in arguments else 0), arguments
heavy = {{"torch", "diffusers", "timm", "numpy", "matplotlib", "catome_adapters", "catome_core"}}
print("IMPORTED", sorted(heavy & set(sys.modules)))
"""


def test_help_version_and_usage_errors_import_no_torch():
    done = run_alone(HELP, capture_output=True)
    assert done.stdout.splitlines()[-1] == "IMPORTED []", done.stderr
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert done.stderr == "catome: Invalid value for '--size': 17; expected a multiple of 8, such as 16\n"


def test_without_typer_the_command_says_what_it_needs():
    done = run_alone(
        "import sys; sys.modules['typer'] = None; from catome_bench.__main__ import main; main()", capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr == 'catome: the command needs typer, which is not installed: pip install "catome[bench]"\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_stdout_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = run_alone("from catome_bench.cli import app; app(['--help'])", stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "catome: No space left on device\n")


@pytest.mark.parametrize(
    ("package", "extra"),
    [("diffusers.models", "bench"), ("sklearn", "train"), ("torchvision", "train"), ("timm", "timm")],
)
def test_a_missing_extra_is_named(monkeypatch, package, extra):
    def missing():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(vits, "load_digits", missing)
    assert refused("vits", code=1).endswith(f'which is not installed: pip install "catome[{extra}]"')


def test_a_missing_module_of_ours_is_a_bug(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'catome_gone'", name="catome_gone")

    monkeypatch.setattr(vits, "load_digits", missing)
    assert isinstance(CliRunner().invoke(app, ["vits"]).exception, ModuleNotFoundError)


def test_an_interrupted_command_ends_in_one_line(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(vits, "load_digits", interrupt)
    assert refused("vits", code=130) == "catome: interrupted"


def test_names_that_options_list_are_those_that_exist():
    assert tuple(RECIPES) == names.RECIPE_NAMES
    assert tuple(SUITES) == names.SUITE_NAMES
    assert tuple(PIPELINES) == names.ARCHS
    assert tuple(dict.fromkeys([*CASES, *NETWORKS, *PIPELINES])) == names.CASE_NAMES


def test_the_version_is_that_of_the_package_or_of_a_checkout(monkeypatch):
    def missing(package):
        raise versions.PackageNotFoundError(package)

    monkeypatch.setattr(cli, "installed_version", lambda package: "1.2")
    assert CliRunner().invoke(app, ["--version"]).output == "1.2\n"
    monkeypatch.undo()
    monkeypatch.setattr(versions, "version", missing)
    assert CliRunner().invoke(app, ["--version"]).output == "unknown (running from a checkout)\n"
    assert describe_environment("cpu")["catome"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing", "No such command 'nothing'"),
        ("--nothing", "No such option: --nothing"),
        ("demo --steps few", "--steps"),
        ("demo --steps 1001", "--steps"),
        ("demo --size 17", "17; expected a multiple of 8, such as 16"),
        ("demo --size 8", "--size"),
        ("demo --size 1000000", "--size"),
        ("demo --images 0", "--images"),
        ("demo --recipe best", "'best'; expected one of default"),
        ("demo --device quantum", "'quantum' here; expected a device of this machine"),
        ("demo --device meta", "'meta' here; expected a device"),
        ("bench --size 17", "17; expected a multiple of 8"),
        ("calibrate unet --prompt cat --device cuda:77", "'cuda:77' here; expected a device"),
        ("calibrate unet --floor-psnr high", "--floor-psnr"),
        ("train --device quantum", "'quantum' here; expected a device"),
        ("train --seed -1", "--seed"),
        ("bench --device quantum", "'quantum' here; expected a device"),
        ("plan shipped --device quantum", "'quantum' is not one of 'cpu', 'cuda'"),
        ("plan shipped --height 100000", "--height"),
    ],
)
def test_usage_errors_are_one_line(arguments, message):
    assert message in refused(*arguments.split())


@pytest.mark.parametrize("text", ["{}", "[]", "no JSON", '{"policy": null, "schedule": {}}'])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    assert "mine.json: " in refused("plan", "shipped", "--recipe", tmp_path / "mine.json")


def test_a_recipe_from_a_file_is_the_one_that_was_written(tmp_path):
    recipe = MergeRecipe(scope="keys")
    (tmp_path / "mine.json").write_text(recipe.to_json())
    result = CliRunner().invoke(app, ["plan", "shipped", "--recipe", str(tmp_path / "mine.json"), "--device", "cpu"])
    assert "mine.json', if half of the keys merge; attach at level" in result.stdout


def test_a_recipe_that_does_not_fit_the_network_is_refused_and_leaves_nothing(tmp_path):
    message = refused("demo", "--recipe", "tome", "--device", "cpu", "--output", tmp_path / "demo")
    assert "cannot merge in scope='progressive'" in message
    assert not (tmp_path / "demo").exists()


@pytest.fixture
def no_work(monkeypatch):
    """Nothing is drawn, measured or trained."""

    def work(*args, **kwargs):
        raise AssertionError("it began to work")

    monkeypatch.setattr(Artist, "draw", work)
    monkeypatch.setattr(bench, "run_jobs", work)
    monkeypatch.setattr(train, "run", work)
    monkeypatch.setattr(demo, "check_recipe", lambda *args: None)


@pytest.mark.parametrize(
    "command",
    ["demo --output", "bench --output", "calibrate unet --prompt cat --output", "train --output", "train --checkpoint"],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(no_work, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert "cannot write file/in/a/file" in refused(*command.split(), "file/in/a/file", "--device", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["bench --output", "calibrate unet --prompt cat --output", "train --checkpoint"])
def test_a_folder_or_device_is_no_file_to_write(no_work, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    assert "is not a regular file" in refused(*command.split(), os.devnull, "--device", "cpu")
    Path("folder").mkdir()
    assert "folder is not a regular file" in refused(*command.split(), "folder", "--device", "cpu")


def test_a_checkpoint_of_something_else_is_refused_and_kept(no_work, tmp_path):
    (tmp_path / "state.pt").write_text("not a checkpoint")
    message = refused("train", "--checkpoint", tmp_path / "state.pt", "--output", tmp_path / "out", "--device", "cpu")
    assert "cannot be resumed" in message
    assert (tmp_path / "state.pt").read_text() == "not a checkpoint"
    assert not (tmp_path / "out").exists()


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "report.json"
    with whole_file(file) as part:
        part.write_text("old")
        assert not file.exists()
    with pytest.raises(UnicodeEncodeError), whole_file(file) as part:
        part.write_text("ne\ud800")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
