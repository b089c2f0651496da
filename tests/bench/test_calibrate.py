"""`catome calibrate`: its figures, its table, and the scope that it marks."""

import json
from typing import Any

import pytest
from torchmetrics.functional.image import peak_signal_noise_ratio
from typer.testing import CliRunner

from catome_adapters import MergeRecipe, attach, find_sites
from catome_bench.cli import app
from catome_bench.commands import calibrate as command
from catome_bench.commands.calibrate import PARTS, SCOPES, best_scopes
from catome_bench.models.artist import Artist
from catome_core import AdaptiveMerge
from zoo.class_pipelines import tiny_shipped


@pytest.mark.parametrize("arch", ["unet", "dit"])
def test_calibrate_holds_every_block_part_and_scope_against_the_unmerged_run(tmp_path, monkeypatch, arch):
    monkeypatch.setattr(command, "load_shipped", tiny_shipped)
    file = tmp_path / "calibration.json"
    arguments = [
        "--arch",
        arch,
        "--steps",
        "3",
        "--images",
        "1",
        "--size",
        "16",
        "--floor",
        "45",
        "--output",
        str(file),
    ]
    result = CliRunner().invoke(app, ["calibrate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(file.read_text())
    assert list(report["psnr"]) == list(report["best"]) == [site.name for site in find_sites(tiny_shipped(arch))]
    for site, parts in report["psnr"].items():
        assert {part: set(scopes) for part, scopes in parts.items()} == {part: set(SCOPES) for part in PARTS}
        assert report["best"][site] == best_scopes(parts, 45)
    for site, parts in report["best"].items():
        marked = [f"{report['psnr'][site][part][best]:.1f}*" for part, best in parts.items() if best]
        assert all(cell in result.output for cell in marked)
    assert result.output.count("*") == 1 + sum(
        best is not None for part in report["best"].values() for best in part.values()
    )
    assert_is_the_damage_of(find_sites(tiny_shipped(arch))[0].name, "late", "keys", report["psnr"], arch)


def assert_is_the_damage_of(name: str, part: str, scope: Any, psnr: dict[str, Any], arch: Any) -> None:
    """One of its figures, measured anew."""
    artist = Artist(tiny_shipped(arch), 3, 16)
    (site,) = [site for site in find_sites(artist.pipeline) if site.name == name]
    policy = AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill")
    unmerged = artist.draw("cat", 0, "").picture
    with attach(artist.pipeline, MergeRecipe(policy, scope=scope, during=(2 / 3, 1), levels="all"), sites=[site]):
        merged = artist.draw("cat", 0, "").picture
    wanted = peak_signal_noise_ratio(merged, unmerged, data_range=1.0).item()
    assert psnr[name][part][scope] == pytest.approx(wanted)


def test_the_best_scope_saves_most_of_those_above_the_floor():
    parts = {"early": {"keys": 50.0, "attention": 42.0, "block": 39.9}, "late": {"keys": 39.0, "block": 40.0}}
    assert best_scopes(parts, 40) == {"early": "attention", "late": "block"}
    assert best_scopes(parts, 60) == {"early": None, "late": None}
