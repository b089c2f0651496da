"""What would be built and installed: wheels without tests and weights, and the lowest versions of what they need."""

import subprocess
import tomllib
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

import catome
from tools import lowest, wheel

PROJECT = tomllib.loads((wheel.ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A stand-in for the wheel: the files that pyproject.toml names, compressed."""
    path = tmp_path_factory.mktemp("dist") / "catome-0-py3-none-any.whl"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for to, file in wheel.contents("catome").items():
            archive.write(file, to)
        archive.writestr("catome-0.dist-info/METADATA", "")
    return path


def changed(built: Path, folder: Path, *, without: str = "", **more: bytes) -> Path:
    """A copy without a file, or with others."""
    path = folder / built.name
    with ZipFile(built) as old, ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != without:
                new.writestr(name, old.read(name), ZIP_DEFLATED)
        for name, content in more.items():
            new.writestr(name, content)
    return path


def test_wheel_of_the_code_is_small_and_has_no_weights(built):
    assert wheel.faults(built) == []
    assert wheel.main([str(built)]) == 0


def test_wheel_of_the_code_has_every_package_and_the_configurations_of_the_shipped_models():
    files = wheel.contents("catome")
    assert {path.partition("/")[0] for path in files} == {"catome", "catome_core", "catome_adapters", "catome_bench"}
    assert "catome_bench/models/shipped/unet/unet/config.json" in files


def test_wheel_of_the_weights_has_what_load_shipped_looks_for():
    files = wheel.contents("catome_weights")
    names = {path for path in files if not path.endswith(".json")}
    assert names == {
        "catome_weights/__init__.py",
        "catome_weights/dit-patch1/transformer/diffusion_pytorch_model.safetensors",
        "catome_weights/dit/transformer/diffusion_pytorch_model.safetensors",
        "catome_weights/unet/unet/diffusion_pytorch_model.safetensors",
    }
    assert sum(path.stat().st_size for path in files.values()) < wheel.LIMITS["catome_weights"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"without": "catome_core/cache.py"}, "catome_core/cache.py is missing"),
        ({"without": "catome_adapters/py.typed"}, "catome_adapters/py.typed is missing"),
        ({"tests/oracle.py": b""}, "tests/oracle.py is not one of its files"),
        ({"catome_bench/models/shipped/unet/a.safetensors": b""}, "a.safetensors does not belong into a wheel"),
        ({"catome/data": bytes(2_000_000)}, "bytes; expected less than 2000000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_wheel_is_said(built, tmp_path, change, fault, capsys):
    assert wheel.main([str(changed(built, tmp_path, **change))]) == 1
    assert fault in capsys.readouterr().out


def test_publishing_ends_before_the_upload_and_lists_what_is_left():
    lines = subprocess.check_output(["make", "-n", "publish"], cwd=wheel.ROOT, text=True).splitlines()
    left = [line for line in lines if line.startswith("echo")]
    assert any("twine upload dist/catome-*" in line for line in left)
    assert any(f"git tag -s v{catome.__version__} " in line for line in left)
    assert not any("upload" in line or "push" in line for line in lines if line not in left)


def test_lowest_versions_are_those_that_are_stated():
    stated = {
        "dependencies": ["torch>=2.14", "numpy"],
        "optional-dependencies": {"a": ["x[y]>=1.2,<2", "tomesd==0.1.3", "z<2"], "b": ["proj[a]", "torch>=2.14"]},
    }
    assert [*lowest.constraints(stated)] == ["torch==2.14", "x==1.2", "tomesd==0.1.3"]


def test_every_library_that_runs_a_model_has_a_lowest_version():
    pinned = {line.partition("==")[0] for line in lowest.constraints(PROJECT)}
    assert {"torch", "einops", "diffusers", "transformers", "accelerate", "timm"} <= pinned
