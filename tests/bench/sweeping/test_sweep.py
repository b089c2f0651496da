"""`sweep`: what is drawn and measured, on several processes, after an end of any kind; and what is refused."""

import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from catome_adapters import RECIPES, attach, sessions
from catome_bench.comparison.drawing import draw
from catome_bench.files import whole_file
from catome_bench.measure.fidelity import psnr, ssim
from catome_bench.measure.frechet import frechet_distance
from catome_bench.races import peers
from catome_bench.races.peers import PEERS
from catome_bench.sweep import Swept, measure_sweep
from catome_bench.sweeping import sweep as drawing
from catome_bench.sweeping.store import Store
from catome_bench.sweeping.takes import Take, all_takes
from catome_bench.views.comparison import to_bytes
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet
from zoo.texted_pipelines import TEXTED

ROWS = ["unmerged", "tomesd", "ca-tome", "config_3", "balanced", "1-steps"]
TAKES = all_takes(2, 1)
EVERY = sorted((row, take) for row in ROWS for take in TAKES)


@pytest.fixture
def saved(monkeypatch) -> list[tuple[str, Take]]:
    """Every picture that is saved, in order."""
    log: list[tuple[str, Take]] = []
    save = Store.save

    def logged(store: Store, row: str, take: Take, picture: Any) -> None:
        save(store, row, take, picture)
        log.append((row, take))

    monkeypatch.setattr(Store, "save", logged)
    return log


def process(monkeypatch, rank: int, world: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_draw_one_picture_after_the_other_and_every_take_has_its_own_noise(sweep, saved, tmp_path):
    swept = sweep()
    assert saved == [(row, take) for take in TAKES for row in ROWS]
    assert [take.seed for take in TAKES] == [0, 1]
    assert sorted(files(tmp_path / "sweep")) == sorted(
        ["sweep.json", "results.json", *(f"{row}/{take.file}" for row, take in EVERY)]
    )
    assert [row.name for row in swept.rows] == ROWS
    assert (swept.takes, swept.missing) == (2, 0)
    assert json.loads((tmp_path / "sweep" / "results.json").read_text()) == json.loads(swept.to_json())


def test_two_processes_give_the_tables_of_one(sweep, saved, tmp_path, monkeypatch):
    sweep("one")
    del saved[:]
    process(monkeypatch, 0, 2)
    first = sweep("two")
    assert first.rows == () and first.missing == len(EVERY) / 2
    assert "6 pictures are still to be drawn" in str(first)
    assert not (tmp_path / "two" / "results.json").exists()
    process(monkeypatch, 1, 2)
    second = sweep("two")
    assert saved == [(row, take) for rank in (0, 1) for take in TAKES[rank::2] for row in ROWS]
    assert second.rows and files(tmp_path / "two") == files(tmp_path / "one")


@pytest.mark.parametrize("end", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_a_sweep_that_ended_goes_on_and_draws_nothing_twice(sweep, saved, tmp_path, monkeypatch, end):
    sweep("whole")
    del saved[:]
    write, after = Image.Image.save, iter([False] * 5 + [True])

    def interrupted(image: Image.Image, path: Path, **options: Any) -> None:
        if next(after):
            path.write_bytes(b"\x89PNG, and so far")
            raise end
        write(image, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupted)
        with pytest.raises(type(end)):
            sweep()
    assert len(saved) == 5
    drawn = files(tmp_path / "sweep")
    assert len(drawn) == 1 + 5
    # What a process that was killed in the middle of writing leaves.
    part = tmp_path / "sweep" / "config_3" / "1-1.99.part.png"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"\x89PNG, and so far")
    sweep()
    part.unlink()
    assert sorted(saved) == EVERY
    assert files(tmp_path / "sweep") == files(tmp_path / "whole")
    assert drawn.items() <= files(tmp_path / "sweep").items()


def test_a_sweep_that_is_whole_is_only_measured_again(sweep, saved, tmp_path, monkeypatch):
    swept = sweep()
    del saved[:]
    monkeypatch.setattr(drawing.Sweep, "_draw", lambda run, name, *_: None if name == "unmerged" else pytest.fail(name))
    assert str(sweep()) == str(swept) and saved == []
    (tmp_path / "sweep" / "results.json").unlink()
    assert str(measure_sweep(tmp_path / "sweep", progress=False)) == str(swept)
    assert (tmp_path / "sweep" / "results.json").exists()


def test_what_is_there_is_measured_while_others_still_draw(sweep, tmp_path, monkeypatch):
    whole = sweep("one", prompts=["cat"])
    process(monkeypatch, 0, 2)
    sweep("two")
    partial = measure_sweep(tmp_path / "two", progress=False)
    assert (partial.takes, partial.missing) == (1, 6)
    assert "1 picture of each row" in str(partial) and "6 pictures are still to be drawn" in str(partial)
    assert partial.rows[0].seconds == whole.rows[0].seconds


def by_hand(pipe: Any, name: str, take: Take, steps: int = 2) -> torch.Tensor:
    call = {"classes": [["cat", "rocket"][take.prompt]], "size": 16, "num_inference_steps": steps}
    if name in PEERS:
        with PEERS[name](pipe):
            if name == "ca-tome":
                before = TAKES[TAKES.index(take) - 1]
                draw(pipe, call | {"classes": [["cat", "rocket"][before.prompt]]}, before.seed)
            return draw(pipe, call, take.seed).pictures[0]
    if name in ("config_3", "balanced"):
        with attach(pipe, replace(RECIPES["paper"], levels=(1,)) if name == "config_3" else name):
            return draw(pipe, call, take.seed).pictures[0]
    return draw(pipe, call | {"num_inference_steps": 1 if name == "1-steps" else steps}, take.seed).pictures[0]


def test_pictures_and_figures_are_those_of_pictures_drawn_by_hand(sweep, pixels, tmp_path):
    pipe = quiet(tiny_shipped())
    swept = sweep(pipe=pipe)
    store, drawn = Store(tmp_path / "sweep"), {}
    for name, take in EVERY:
        drawn[name, take] = to_bytes(by_hand(pipe, name, take)).float() / 255
        assert torch.equal(store.load(name, take).values, drawn[name, take]), (name, take)
    base = [drawn["unmerged", take] for take in TAKES]
    for row in swept.rows:
        pictures = [drawn[row.name, take] for take in TAKES]
        # Every step reads the clock twice, and so does the call.
        assert row.seconds == 1 + 2 * (1 if row.name == "1-steps" else 2)
        assert row.speedup.median == 5 / row.seconds
        if row.name == "unmerged":
            assert row.psnr is row.ssim is row.distance is None
            continue
        assert row.psnr.median == pytest.approx(median(map(psnr, pictures, base)), rel=1e-6)
        assert row.ssim.median == pytest.approx(median(map(ssim, pictures, base)), rel=1e-6)
        samples = [torch.cat([pixels.measure(one) for one in some]) for some in (pictures, base)]
        assert row.distance == pytest.approx(frechet_distance(*samples), rel=1e-6)
        assert (row.merged is not None) == (row.family == "ours")


def test_the_distance_to_real_pictures_is_that_of_all_rows(sweep, pixels, tmp_path):
    real = torch.rand(3, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    (tmp_path / "real" / "inner").mkdir(parents=True)
    for number, picture in enumerate(real):
        Image.fromarray(to_bytes(picture).permute(1, 2, 0).numpy()).save(tmp_path / "real" / "inner" / f"{number}.PNG")
    (tmp_path / "real" / "notes.txt").touch()
    swept = sweep(real=tmp_path / "real", prompts=["cat"])
    goal = torch.cat([pixels.measure(to_bytes(picture) / 255) for picture in real])
    for row in swept.rows:
        picture = Store(tmp_path / "sweep").load(row.name, Take(0, 0)).values
        assert row.distance == pytest.approx(frechet_distance(pixels.measure(picture), goal), rel=1e-6)
    assert f"Frechet distance (features: pixels) to {tmp_path / 'real'}" in str(swept)


def test_a_peer_that_does_not_fit_is_left_out_with_the_reason(sweep, monkeypatch):
    monkeypatch.setattr(peers, "SUPPORTED_NORMS", ())
    swept = sweep(prompts=["cat"])
    assert [row.name for row in swept.rows] == ["unmerged", "config_3", "balanced", "1-steps"]
    assert "tomesd is left out: ValueError: norm_type is 'ada_norm_zero'; the peer's" in str(swept)


def test_a_peer_that_fails_again_with_other_words_is_left_out_again(sweep, monkeypatch):
    """As where memory runs out: the error says how much is free."""
    monkeypatch.setattr(peers, "SUPPORTED_NORMS", ())
    for free in (1.5, 1.6):
        monkeypatch.setattr(drawing, "describe", Mock(return_value=f"OutOfMemoryError: {free} GiB are free"))
        swept = sweep(prompts=["cat"])
    assert "tomesd is left out: OutOfMemoryError: 1.5 GiB are free" in str(swept)


def test_other_pipelines_draw_what_they_can(sweep):
    call = {"height": 32, "width": 32}
    swept = sweep(pipe=TEXTED["Flux"](), prompts=["a cat"], steps=1, options=call)
    assert [row.name for row in swept.rows] == ["unmerged", "config_3", "balanced"]
    assert "tomesd is left out: ValueError: FluxTransformer2DModel has no BasicTransformerBlock" in str(swept)


def test_every_recipe_is_set_beside_the_fewer_steps_that_take_as_long(sweep):
    lines = str(sweep(prompts=["cat"])).splitlines()
    assert any(
        line.startswith("balanced: 1.00x faster, ") and "; 1-steps, the nearest in time: 1.67x" in line
        for line in lines
    )


def test_every_row_makes_a_short_call_that_does_not_count_before_its_first_picture(sweep, saved, pipe):
    log: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: log.append(len(saved)))
    sweep(tables=["comparison"], prompts=["cat"], steps=5)
    hook.remove()
    # Each once to see whether it can be drawn at all, unmerged and peers; then all rows, ca-tome after another picture.
    rows = {"unmerged": 1, "tomesd": 1, "ca-tome": 2, "config_3": 1, "balanced": 1, "4-steps": 1}
    assert log.count(0) == 2 * (3 + sum(rows.values())) + 5


def test_pictures_of_several_machines_are_noted(sweep, monkeypatch):
    process(monkeypatch, 0, 2)
    sweep()
    process(monkeypatch, 1, 2)
    monkeypatch.setattr(drawing, "device_name", lambda device: "another")
    assert re.search("several machines, whose seconds are not comparable: .+, another\n", str(sweep()))


def test_a_call_that_draws_several_pictures_is_refused(sweep):
    call = {"height": 32, "width": 32, "num_frames": 5}
    with pytest.raises(ValueError, match="a call drew 5 pictures; expected one"):
        sweep(pipe=TEXTED["Wan"](), prompts=["a cat"], options=call)


def test_processes_that_write_one_file_do_not_meet(tmp_path, monkeypatch):
    with whole_file(tmp_path / "results.json") as first:
        first.write_text("first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with whole_file(tmp_path / "results.json") as second:
                second.write_text("second")
    assert files(tmp_path) == {"results.json": b"first"}


def test_the_order_of_the_tables_is_no_other_setting(sweep, monkeypatch):
    monkeypatch.setattr(drawing.Sweep, "draw_shard", lambda *given: None)
    for tables in (["comparison", "configurations"], ["configurations", "comparison", "comparison"]):
        assert sweep(tables=tables).settings["tables"] == ["configurations", "comparison"]


def test_a_table_of_data_needs_no_picture(sweep, saved):
    swept = sweep(tables=["configurations"])
    assert saved == [] and swept.rows == () and swept.missing == 0
    assert "0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49" in str(swept)


def test_other_settings_are_refused_and_nothing_changes(sweep, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing.Sweep, "draw_shard", lambda *given: None)
    sweep()
    before = files(tmp_path / "sweep")
    for changes, message in [
        ({"steps": 4}, "steps was 2, and is 4 now"),
        ({"seeds": 3}, "seeds was 1, and is 3 now"),
        ({"tables": ["configurations"]}, r'tables was \["comparison"\], and is \["configurations"\] now'),
        ({"options": {"size": 24}}, r'options was {"size": 16}, and is {"size": 24} now'),
        ({"prompts": ["cat"]}, "sha256 was "),
        ({"pipe": quiet(tiny_shipped())}, "model was "),
    ]:
        with pytest.raises(ValueError, match=rf"was begun with other settings: {message}.*choose another folder"):
            sweep(**changes)
    with monkeypatch.context() as patch:
        patch.setattr("catome_bench.sweep.installed_version", lambda name: "1.0")
        with pytest.raises(ValueError, match="versions was "):
            sweep()
    torch.nn.init.ones_(pipe.transformer.proj_out_2.bias)
    with pytest.raises(ValueError, match="model was "):
        sweep()
    assert files(tmp_path / "sweep") == before


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": []}, ValueError, r"prompts is \[\]"),
        ({"prompts": "cat"}, ValueError, "prompts is 'cat'"),
        ({"seeds": 0}, ValueError, "seeds 0 and steps 2; expected a list"),
        ({"tables": ["table 1"]}, ValueError, "tables is .'table 1'.; expected at least one of thresholds"),
        ({"tables": []}, ValueError, r"tables is \[\]"),
        ({"options": {"generator": 1}}, ValueError, "options has generator"),
        ({"options": {"size": {16}}}, TypeError, "expected plain values"),
        ({"options": {"size": 17}}, ValueError, "unmerged, prompt 0, seed 0: size is 17"),
        ({"prompts": ["dog"]}, ValueError, "unmerged, prompt 0, seed 0: classes is .'dog'."),
        ({"real": "nowhere"}, ValueError, "nowhere has no pictures; pass a folder with files of .png"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(sweep, pipe, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        sweep(**changes)
    assert files(tmp_path) == {} and sessions(pipe) == []


def test_a_pipeline_without_blocks_that_merge_is_refused(sweep):
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    with pytest.raises(ValueError, match="DDPMPipeline has no blocks whose tokens can merge; expected a UNet"):
        sweep(pipe=DDPMPipeline(unet, DDPMScheduler()))


def test_a_session_a_compiled_pipeline_and_odd_processes_are_refused(sweep, pipe, monkeypatch):
    whole = replace(RECIPES["balanced"], levels="all")
    with attach(pipe, whole), pytest.raises(RuntimeError, match=r"call catome_adapters.detach\(pipe\)"):
        sweep()
    process(monkeypatch, 2, 2)
    with pytest.raises(ValueError, match="RANK is '2' and WORLD_SIZE '2'; expected a number from 0 and a larger one"):
        sweep()
    pipe.transformer.compile()
    with pytest.raises(ValueError, match="the pipeline is compiled"):
        sweep()


def test_pictures_that_are_not_finite_end_the_sweep_and_those_before_stay(sweep, saved, pipe, monkeypatch):
    step, calls = pipe.scheduler.step, iter([False] * 40 + [True] * 99)

    def broken(noise: torch.Tensor, *args: Any, **options: Any) -> Any:
        return step(noise * float("nan") if next(calls) else noise, *args, **options)

    monkeypatch.setattr(pipe.scheduler, "step", broken)
    with pytest.raises(ValueError, match=r"prompt ., seed .: a value of the pictures is not finite; draw in another"):
        sweep()
    before = list(saved)
    assert before and sessions(pipe) == []
    monkeypatch.setattr(pipe.scheduler, "step", step)
    assert isinstance(sweep(), Swept)
    assert sorted(saved) == EVERY and saved[: len(before)] == before


def test_a_damaged_picture_is_named(sweep, tmp_path):
    sweep(prompts=["cat"])
    file = tmp_path / "sweep" / "balanced" / "0-0.png"
    for damage in (b"", file.read_bytes()[:99], b"no picture"):
        file.write_bytes(damage)
        with pytest.raises(ValueError, match=r"balanced/0-0.png is no picture of a sweep .*; delete it and draw again"):
            measure_sweep(tmp_path / "sweep", progress=False)
    Image.new("RGB", (16, 16)).save(file)
    with pytest.raises(ValueError, match="KeyError: 'catome'"):
        measure_sweep(tmp_path / "sweep", progress=False)
    file.unlink()
    assert sweep(prompts=["cat"]).missing == 0


def test_a_folder_that_is_no_sweep_is_refused(sweep, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"sweep.json cannot be read .*pass the folder of a sweep"):
        measure_sweep(tmp_path, progress=False)
    monkeypatch.setattr(drawing.Sweep, "draw_shard", lambda *given: None)
    sweep()
    with pytest.raises(ValueError, match="no picture has been drawn by every row"):
        measure_sweep(tmp_path / "sweep", progress=False)
