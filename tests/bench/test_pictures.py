"""Whole pictures side by side: the rows, the table and the plot of fidelity and time."""

import io
import json
from itertools import combinations
from typing import Any

import pytest
import torch
from rich.console import Console
from torchmetrics.functional.image import peak_signal_noise_ratio

from catome_bench.models import load_shipped
from catome_bench.models.artist import Artist, Drawing
from catome_bench.races import peers
from catome_bench.races.drawings import measure_drawings
from catome_bench.races.pictures import run_pictures
from catome_bench.races.variants import variants
from catome_bench.views.scatter import scatter
from catome_bench.views.tables import render_pictures
from zoo.noise import noise

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def pipeline():
    return load_shipped()


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Every subject, one small picture of three steps."""
    return run_pictures(steps=(3,), images=1, size=16)


def rows(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["subject"]: row for row in results["rows"]}


def test_every_subject_has_one_row_that_json_takes(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(rows(results)) == list(variants(3))
    assert {"tomesd", "ca-tome", "ToDo", "2 steps", "balanced", "adaptive", "50 %"} <= set(rows(results))
    assert {"DeepCache 2", "DeepCache 2 + balanced"} <= set(rows(results))


def test_the_dit_joins_its_blocks_and_counts_its_own_tokens():
    """A quarter as many as the UNet has; joined blocks are merged once."""
    only = ["50 %", "50 % block", "50 % block, joined", "ToDo"]
    drawn = rows(run_pictures(arch="dit", steps=(3,), images=1, size=32, only=only))
    assert list(drawn) == ["unmerged", *only]
    assert [drawn[name]["removed"] for name in drawn] == [0, 0.5, 0.5, 0.5, 0.75]
    assert len({drawn[name]["psnr"]["median"] for name in drawn}) == 5
    assert "50 % block, joined" not in variants(3, "unet")


def test_the_unmerged_run_is_the_reference(results):
    row = rows(results)["unmerged"]
    assert [row[name]["median"] for name in ("speedup", "psnr", "ssim")] == [1, None, 1]
    assert row["removed"] == 0
    assert row["frechet"] == pytest.approx(0, abs=1e-9)


def test_the_share_of_spared_keys_is_what_was_asked_for(results):
    wanted = {"25 %": 0.25, "50 %": 0.5, "75 %": 0.75, "50 % keys": 0.5, "50 % block": 0.5, "ToDo": 0.75, "2 steps": 0}
    assert {name: rows(results)[name]["removed"] for name in wanted} == wanted


def test_the_more_is_merged_the_less_is_faithful(results):
    for measure in ("psnr", "ssim"):
        quarter, half, most = (rows(results)[name][measure]["median"] for name in ("25 %", "50 %", "75 %"))
        assert quarter > half > most


def test_fewer_steps_are_held_against_the_full_run(results, pipeline):
    artist = Artist(pipeline, 3, 16), Artist(pipeline, 2, 16)
    full, fewer = (one.draw("cat", 0, "").picture for one in artist)
    assert rows(results)["2 steps"]["psnr"]["median"] == pytest.approx(
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


def test_an_error_of_the_unmerged_run_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch):
    def out_of_memory(*args: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Artist, "draw_batch", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_pictures(steps=(2,), images=1, size=16, only=["ToDo"])


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"'tome'.*'tomesd'"):
        run_pictures(steps=(2,), only=["tome"])
    with pytest.raises(ValueError, match="images is 0"):
        run_pictures(images=0)
    with pytest.raises(ValueError, match="batch is 0"):
        run_pictures(batch=0)


@pytest.mark.parametrize("arch", ["unet", "dit"])
def test_pictures_of_one_call_are_those_of_several(arch):
    """Three, of which two are drawn together."""
    options = {"arch": arch, "steps": (3,), "images": 3, "size": 32, "only": ["ToDo", "1/4 lattice", "2 steps"]}
    alone, together = (rows(run_pictures(**options, batch=batch)) for batch in (1, 2))
    assert list(alone) == list(together)
    for name, row in alone.items():
        assert together[name]["removed"] == row["removed"]
        for measure in ("psnr", "ssim"):
            expected = [row[measure][which] for which in ("median", "worst")]
            assert [together[name][measure][which] for which in ("median", "worst")] == pytest.approx(
                expected, abs=0.01
            ), name


def test_features_of_a_given_network_say_how_far_pictures_are_apart(tmp_path):
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        model = timm.create_model("test_resnet", num_classes=5)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    results = run_pictures(steps=(2,), images=1, size=32, only=["1 steps", "balanced"], features=tmp_path)
    far, near, same = (rows(results)[name]["distance"]["median"] for name in ("1 steps", "balanced", "unmerged"))
    assert results["features"] == "test_resnet" and far > near >= same == pytest.approx(0, abs=1e-6)
    assert f"{far:.3g}" in printed(render_pictures(results)) and "test_resnet" in printed(render_pictures(results))


def row(subject: str, speedup: float, psnr: float | None = 40.0, **changes: Any) -> dict[str, Any]:
    measures = {"speedup": spread(speedup), "psnr": spread(psnr), "ssim": spread(0.9)}
    rest = {"seconds": 1.0, "undisturbed": speedup, "steps": 10, "family": "ours", "frechet": 0.5, "removed": 0.5}
    return {"subject": subject} | measures | rest | changes


def spread(value: float | None) -> dict[str, Any]:
    return {"median": value, "worst": value, "interval": [value, value]}


def printed(table: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_the_table_is_sorted_by_speed_within_each_number_of_steps():
    made = [row("slow", 1.1), row("fast", 1.9), row("other", 1.5, steps=50), row("same", 1.2, None)]
    text = printed(render_pictures({"images": 1, "size": 32, "rows": made}))
    order = [text.index(name) for name in ("fast", "same ", "slow", "other")]
    assert order == sorted(order)


def test_results_of_before_undisturbed_was_measured_have_a_table():
    older = {name: value for name, value in row("ours", 1.23).items() if name != "undisturbed"}
    text, today = (
        printed(render_pictures({"images": 1, "size": 32, "rows": [one]})) for one in (older, row("ours", 1))
    )
    assert "1.23x" in text and "undisturbed" not in text and "undisturbed" in today


def test_the_speed_up_is_the_median_over_the_pictures():
    picture = noise(3, 16, 16).sigmoid()
    times = [(0.5, 1.0), (1.0, 1.0), (2.0, 8.0)]
    ours = [Drawing(picture, [seconds], beside=[unmerged]) for seconds, unmerged in times]
    measured = measure_drawings(ours, ours)
    assert measured["speedup"] == {"median": 2, "worst": 1, "interval": [1, 4]}


def test_undisturbed_takes_every_step_from_the_picture_where_it_was_fastest():
    picture = noise(3, 16, 16).sigmoid()
    ours = [Drawing(picture, [2.0], beside=[2.0, 8.0]), Drawing(picture, [2.5], beside=[7.0, 3.0])]
    assert measure_drawings(ours, ours)["undisturbed"] == (2.0 + 3.0) / 2.0


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
