"""Whole pictures side by side: the Frechet distance, the table of fidelity and time, the calibration."""

import io
import json
import math
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio
from typer.testing import CliRunner

from catome_adapters import MergeRecipe, attach, find_sites
from catome_bench import peers, pictures
from catome_bench.calibrate import PARTS, SCOPES, best_scopes
from catome_bench.cli import app
from catome_bench.demo import Artist
from catome_bench.frechet import frechet_distance, picture_features
from catome_bench.pictures import Draft, render_pictures, run_pictures, subjects
from catome_bench.pipeline import load_shipped
from catome_bench.scatter import scatter
from catome_core import AdaptiveMerge
from models import noise


@pytest.fixture(scope="module")
def pipeline():
    return load_shipped()


def gaussian(samples: int, mean: Tensor, root: Tensor) -> Tensor:
    """Samples whose mean and covariance `root root^T` are exactly these."""
    raw = noise(samples, len(mean)).double()
    white = torch.linalg.qr(raw - raw.mean(0)).Q * (samples - 1) ** 0.5
    return white @ root.mT + mean


def matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.clamp(min=0).sqrt().diag() @ vectors.mT


def test_the_distance_of_gaussians_is_the_closed_form():
    mean_1, mean_2 = noise(2, 5).double()
    root_1, root_2 = noise(2, 5, 5, seed=1).double()
    cov_1, cov_2 = root_1 @ root_1.mT, root_2 @ root_2.mT
    half = matrix_root(cov_1)
    wanted = (mean_1 - mean_2).square().sum() + (cov_1 + cov_2 - 2 * matrix_root(half @ cov_2 @ half)).trace()
    first, second = gaussian(40, mean_1, root_1), gaussian(60, mean_2, root_2)
    assert frechet_distance(first, second) == pytest.approx(wanted.item(), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(wanted.item(), rel=1e-9)


def test_the_distance_of_gaussians_along_a_line():
    """|m1 - m2|^2 + (s1 - s2)^2."""
    first, second = (gaussian(9, torch.tensor([m]).double(), torch.tensor([[s]]).double()) for m, s in ((1, 2), (4, 7)))
    assert frechet_distance(first, second) == pytest.approx(9 + 25)


@pytest.mark.parametrize("samples", [3, 50], ids="{} samples of 8 channels".format)
def test_equal_sets_have_no_distance(samples: int):
    features = noise(samples, 8)
    assert frechet_distance(features, features.flip(0)) == pytest.approx(0, abs=1e-12)


def test_the_distance_agrees_with_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=Passing(6))
    first, second = noise(30, 6), 0.5 * noise(40, 6, seed=1) + 1
    fid.update(first, real=True)
    fid.update(second, real=False)
    assert frechet_distance(first, second) == pytest.approx(fid.compute().item(), rel=1e-5)


class Passing(torch.nn.Identity):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((1, 3), (4, 3)), ((4,), (4,))])
def test_sets_that_have_no_distance_are_refused(shapes):
    with pytest.raises(ValueError, match=r"expected \(n, channels\)"):
        frechet_distance(*(torch.zeros(shape) for shape in shapes))


def test_the_more_a_picture_is_damaged_the_farther_it_is(pipeline):
    pictures = pipeline(["cat", "rocket"], size=32, num_inference_steps=3, generator=torch.Generator().manual_seed(0))
    features = picture_features(pipeline, pictures)
    damage = noise(*pictures.shape)
    distances = [
        frechet_distance(features, picture_features(pipeline, (pictures + strength * damage).clamp(0, 1)))
        for strength in (0, 0.02, 0.08, 0.3)
    ]
    assert distances[0] == pytest.approx(0, abs=1e-9 * features.square().sum(1).mean().item())
    assert all(near < far for near, far in pairwise(distances)), distances
    assert features.shape == (2 * 4 * 4, 192) and math.isfinite(distances[-1])


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Every subject, one small picture of three steps."""
    return run_pictures(steps=(3,), images=1, size=32)


def rows(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["subject"]: row for row in results["rows"]}


def test_every_subject_has_one_row_that_json_takes(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(rows(results)) == list(subjects(3))
    assert {"tomesd", "ca-tome", "ToDo", "2 steps", "default", "50 %"} <= set(rows(results))


def test_the_dit_joins_its_blocks_and_counts_its_own_tokens():
    """A quarter as many as the UNet has; joined blocks are merged once."""
    only = ["50 %", "50 % block", "50 % block, joined", "ToDo"]
    drawn = rows(run_pictures(arch="dit", steps=(3,), images=1, size=32, only=only))
    assert list(drawn) == ["unmerged", *only]
    assert [drawn[name]["removed"] for name in drawn] == [0, 0.5, 0.5, 0.5, 0.75]
    assert len({drawn[name]["psnr"] for name in drawn}) == 5
    assert "50 % block, joined" not in subjects(3, "unet")


def test_the_unmerged_run_is_the_reference(results):
    row = rows(results)["unmerged"]
    assert (row["speedup"], row["psnr"], row["ssim"], row["frechet"], row["removed"]) == (1, None, 1, 0, 0)


def test_the_share_of_spared_keys_is_what_was_asked_for(results):
    wanted = {"25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "50 % keys": 0.5, "50 % block": 0.5, "ToDo": 0.75, "2 steps": 0}
    assert {name: rows(results)[name]["removed"] for name in wanted} == wanted


def test_the_more_is_merged_the_less_is_faithful(results):
    for measure in ("psnr", "ssim"):
        quarter, half, most = (rows(results)[name][measure] for name in ("25 %", "50 %", "75 %"))
        assert quarter > half > most


def test_fewer_steps_are_held_against_the_full_run(results, pipeline):
    artist = Artist(pipeline, 3, 32), Artist(pipeline, 2, 32)
    full, fewer = (one.draw("cat", 0, "").picture for one in artist)
    assert rows(results)["2 steps"]["psnr"] == pytest.approx(
        peak_signal_noise_ratio(fewer, full, data_range=1.0).item()
    )


def test_a_peer_that_is_not_installed_keeps_its_row(monkeypatch: pytest.MonkeyPatch):
    def absent(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(peers, "import_module", absent)
    results = run_pictures(steps=(2,), images=1, size=32, only=["ca-tome", "ToDo"])
    assert rows(results)["ca-tome"]["note"] == "not installed: pip install --no-deps ca-tome==0.1.3"
    assert "psnr" in rows(results)["ToDo"]
    assert "--no-deps ca-tome==0.1.3" in printed(render_pictures(results))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"'tome'.*'tomesd'"):
        run_pictures(steps=(2,), only=["tome"])
    with pytest.raises(ValueError, match="images is 0"):
        run_pictures(images=0)


def row(subject: str, speedup: float, psnr: float | None = 40.0, **changes: Any) -> dict[str, Any]:
    measures = {"seconds": 1.0, "speedup": speedup, "speedup_range": [1.0, 2.0], "psnr": psnr}
    rest = {"steps": 10, "family": "ours", "ssim": 0.9, "frechet": 0.5, "removed": 0.5}
    return {"subject": subject} | measures | rest | changes


def printed(table: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_is_sorted_by_speed_within_each_number_of_steps():
    made = [row("slow", 1.1), row("fast", 1.9), row("other", 1.5, steps=50), row("same", 1.2, None)]
    text = printed(render_pictures({"images": 1, "size": 32, "rows": made}))
    order = [text.index(name) for name in ("fast", "same ", "slow", "other")]
    assert order == sorted(order)


def test_the_speed_up_is_the_median_over_the_pictures():
    picture = noise(3, 16, 16).sigmoid()
    base = [Draft(picture, seconds, 0) for seconds in (1.0, 1.0, 8.0)]
    ours = [Draft(picture, seconds, 0) for seconds in (0.5, 1.0, 2.0)]
    measured = pictures._measure(ours, base)
    assert measured["speedup"] == 2
    assert measured["speedup_range"] == [1, 4]


def test_the_scatter_plot_labels_every_subject_legibly():
    made = [row(name, 1.3 + 0.001 * index) for index, name in enumerate(["50 %", "50 % keys", "tomesd", "ToDo"])]
    made += [row("identical", 1.1, None), row("9 steps", 1.2, family="fewer steps", steps=50)]
    made += [{"steps": 50, "subject": "absent", "family": "peer", "note": "not installed"}]
    figure = scatter({"images": 1, "size": 32, "rows": made})
    labels = [[text for text in axis.texts if text.get_text()] for axis in figure.axes]
    assert [[text.get_text() for text in panel] for panel in labels] == [
        ["50 %", "50 % keys", "tomesd", "ToDo"],
        ["9 steps"],
    ]
    boxes = [text.get_window_extent() for text in labels[0]]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("arch", ["unet", "dit"])
def test_calibrate_holds_every_block_part_and_scope_against_the_unmerged_run(tmp_path, arch):
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
    assert list(report["psnr"]) == list(report["best"]) == [site.name for site in find_sites(load_shipped(arch))]
    for site, parts in report["psnr"].items():
        assert {part: set(scopes) for part, scopes in parts.items()} == {part: set(SCOPES) for part in PARTS}
        assert report["best"][site] == best_scopes(parts, 45)
    for site, parts in report["best"].items():
        marked = [f"{report['psnr'][site][part][best]:.1f}*" for part, best in parts.items() if best]
        assert all(cell in result.output for cell in marked)
    assert result.output.count("*") == 1 + sum(
        best is not None for part in report["best"].values() for best in part.values()
    )
    assert_is_the_damage_of(find_sites(load_shipped(arch))[0].name, "late", "keys", report["psnr"], arch)


def assert_is_the_damage_of(name: str, part: str, scope: Any, psnr: dict[str, Any], arch: Any) -> None:
    """One of its figures, measured anew."""
    artist = Artist(load_shipped(arch), 3, 16)
    (site,) = [site for site in find_sites(artist.pipeline) if site.name == name]
    policy = AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill")
    unmerged = artist.draw("cat", 0, "").picture
    with attach(artist.pipeline, MergeRecipe(policy, scope=scope, during=(2 / 3, 1)), sites=[site]):
        merged = artist.draw("cat", 0, "").picture
    wanted = peak_signal_noise_ratio(merged, unmerged, data_range=1.0).item()
    assert psnr[name][part][scope] == pytest.approx(wanted)


def test_the_best_scope_saves_most_of_those_above_the_floor():
    parts = {"early": {"keys": 50.0, "attention": 42.0, "block": 39.9}, "late": {"keys": 39.0, "block": 40.0}}
    assert best_scopes(parts, 40) == {"early": "attention", "late": "block"}
    assert best_scopes(parts, 60) == {"early": None, "late": None}
