"""Where the shipped models come from: a checkout, the distribution of their weights, or nowhere."""

import logging
import sys
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch
from typer.testing import CliRunner

from catome_bench.cli import app
from catome_bench.models import load_shipped, weights
from catome_bench.models.pipeline import PIPELINES
from catome_bench.open import open_pipeline

CHECKOUT = weights.SHIPPED


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """What the wheel has of the shipped models."""
    folder = copytree(CHECKOUT, tmp_path / "shipped", ignore=ignore_patterns("*.safetensors"))
    monkeypatch.setattr(weights, "SHIPPED", folder)
    monkeypatch.setitem(sys.modules, "catome_weights", None)
    return folder


@pytest.fixture
def distribution(tmp_path, monkeypatch) -> Path:
    """The other distribution, installed; its folders are links to those of the checkout."""
    package = tmp_path / "catome_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    for arch in PIPELINES:
        (package / arch).symlink_to(CHECKOUT / arch)
    monkeypatch.delitem(sys.modules, "catome_weights", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return package


@pytest.mark.parametrize("arch", PIPELINES)
def test_checkout_has_the_weights(arch, distribution):
    assert weights.find_weights(arch) == CHECKOUT / arch


def test_wheel_without_weights_says_how_to_get_them(wheel):
    with pytest.raises(
        FileNotFoundError, match=r"shipped dit are not installed: pip install catome-weights, or .* checkout"
    ):
        load_shipped("dit")
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "catome: the weights of the shipped unet are not installed" in result.stderr


@pytest.mark.parametrize("arch", PIPELINES)
def test_wheel_finds_the_weights_of_the_other_distribution(arch, wheel, distribution):
    assert weights.find_weights(arch) == distribution / arch
    assert load_shipped(arch).network.dtype.is_floating_point


def test_both_have_the_configurations(wheel):
    assert {path.name for path in wheel.rglob("*.json")} >= {"model_index.json", "config.json"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_that_of_the_call_without_a_warning_of_diffusers(dtype, caplog, monkeypatch):
    """It warns of a cast behind `from_pretrained`, whatever the network, and users would read that first."""
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    assert {parameter.dtype for parameter in open_pipeline("unet", dtype=dtype).network.parameters()} == {dtype}
    assert not caplog.messages
