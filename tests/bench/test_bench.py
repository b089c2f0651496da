"""The command as a user runs it, the shipped models, and the training that made them."""

import json

import pytest
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from matplotlib.axes import Axes
from safetensors.torch import load_file
from typer.testing import CliRunner

from catome_adapters.prediction import rates
from catome_bench.cli import app
from catome_bench.commands import train as training
from catome_bench.commands.train import STAGES, Stage, Trainer, learning_rate, remaining_stages
from catome_bench.models import load_shipped
from catome_bench.models.photographs import CLASS_NAMES, PHOTOGRAPHS, load_photograph, to_latents, to_pixels
from catome_bench.models.pipeline import PIPELINES
from catome_bench.models.weights import SHIPPED
from tiers import tiered

SIDES = ("baseline", "merged")
MERGING_COSTS = rates.DEVICE_RATES["cpu"]
"""As it is outside of the tests: see conftest.py."""


@pytest.fixture(scope="module", params=tiered(PIPELINES, ["unet"]))
def pipeline(request):
    pipe = load_shipped(request.param)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("arch", PIPELINES)
def test_the_shipped_weights_are_half_precision_and_small(arch):
    files = list((SHIPPED / arch).rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) < 20_000_000
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.float16}


@pytest.mark.thorough
def test_the_shipped_model_draws_what_it_learned(pipeline):
    """Every picture is nearest to its own photograph, colors averaged over an 8 x 8 grid."""
    drawn = pipeline(list(CLASS_NAMES), size=64, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    photographs = [load_photograph(photograph)[None] / 2 + 0.5 for photograph in PHOTOGRAPHS]
    wanted = torch.cat([torch.nn.functional.adaptive_avg_pool2d(photograph, 8) for photograph in photographs])
    distances = torch.cdist(torch.nn.functional.adaptive_avg_pool2d(drawn, 8).flatten(1), wanted.flatten(1))
    assert distances.argmin(1).tolist() == list(range(len(CLASS_NAMES)))


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, PNDMScheduler])
def test_the_shipped_model_takes_other_schedulers(pipeline, scheduler):
    own = pipeline.scheduler
    pipeline.scheduler = scheduler.from_config(own.config)
    try:
        drawn = pipeline(["rocket"], size=32, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    finally:
        pipeline.scheduler = own
    assert drawn.shape == (1, 3, 32, 32)
    assert drawn.isfinite().all()
    assert drawn.std() > 0.05


def test_pipeline_errors_name_the_value_and_the_remedy(pipeline):
    with pytest.raises(ValueError, match=r"\['dog'\].*'cat'"):
        pipeline(["dog"])
    with pytest.raises(ValueError, match=r"size is 30.*multiple of 8"):
        pipeline(["cat"], size=30)


def test_there_is_no_other_shipped_model():
    with pytest.raises(ValueError, match=r"arch is 'vit'.*'unet', 'dit'"):
        load_shipped("vit")


def test_folding_pixels_is_exact():
    pixels = torch.rand(2, 3, 8, 12)
    assert torch.equal(to_pixels(to_latents(pixels)), pixels)


@pytest.mark.filterwarnings("ignore:nothing merged")
@pytest.mark.parametrize(("arch", "sites"), tiered([("unet", 3), ("dit", 7)], [("unet", 3)]))
def test_demo_writes_pictures_curves_and_results(tmp_path, arch, sites):
    output = tmp_path / "demo"
    arguments = [
        "demo",
        "--arch",
        arch,
        "--steps",
        "3",
        "--images",
        "2",
        "--size",
        "32",
        "--output",
        str(output),
        "--recipe",
        "paper",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    figures = {"side-by-side.png", "merge-map.png", "jaccard.png", "similarity.png", "merged-fraction.png"}
    assert {file.name for file in output.iterdir()} == figures | {"results.json", "pictures", "merge-maps"}
    report = json.loads((output / "results.json").read_text())
    assert report["settings"]["arch"] == arch
    assert report["settings"]["recipe"]["policy"]["threshold"] == 0.7
    assert 0 < report["results"]["merged_fraction"] < 0.75
    assert report["results"]["psnr"] > 20
    assert len(report["jaccard"]) == len(report["merge_maps"]) == sites
    assert all([point[0] for point in points] == [0, 1, 2] for points in report["similarity"].values())
    assert [pair["name"] for pair in report["pictures"]] == ["cat", "coffee"]
    written = [*report["merge_maps"].values(), *(pair[side] for pair in report["pictures"] for side in SIDES)]
    assert {str(file.relative_to(output)) for file in output.glob("*/*")} == set(written)
    assert "CA-ToMe" in result.output


@pytest.mark.filterwarnings("ignore:nothing merged")
@pytest.mark.thorough
@pytest.mark.parametrize("recipe", [[], ["--recipe", "fast"], ["--recipe", "todo"]])
def test_demo_of_recipes_without_a_threshold_records_the_pairs_of_another(tmp_path, recipe):
    arguments = ["demo", "--steps", "2", "--images", "1", "--size", "24", "--output", str(tmp_path), *recipe]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "results.json").read_text())["jaccard"]) == 3


@pytest.mark.filterwarnings("ignore:nothing merged")
@pytest.mark.thorough
def test_demo_of_a_picture_too_small_to_merge_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", MERGING_COSTS)
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda axis, title: titles.append(title))
    arguments = ["demo", "--recipe", "adaptive", "--steps", "2", "--images", "1", "--size", "24"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path), "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "results.json").read_text())
    assert (report["results"]["merged_fraction"], report["results"]["psnr"]) == (0, None)
    assert " same " in result.output
    assert titles[-1] == "cat: nothing merged"
    assert (tmp_path / "merged-fraction.png").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("arch", STAGES)
def test_a_resumed_training_is_the_same_training(tmp_path, monkeypatch, arch):
    stages = Stage(2, 16, 16, 2, 1e-3), Stage(2, 32, 32, 2, 1e-3)
    monkeypatch.setitem(training.STAGES, arch, stages)
    whole, first, second = (Trainer(torch.device("cpu"), 3, arch) for _ in range(3))
    for stage in remaining_stages(stages, 0):
        whole.step(stage)
    for stage in list(remaining_stages(stages, 0))[:3]:
        first.step(stage)
    first.save(tmp_path / "state.pt")
    second.load(tmp_path / "state.pt")
    for stage in remaining_stages(stages, second.iteration):
        second.step(stage)
    assert second.iteration == whole.iteration == 4
    for a, b in zip(whole.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_dit_begins_as_the_identity():
    trainer = Trainer(torch.device("cpu"), 0, "dit")
    latents, _, timesteps, labels = trainer.batch(Stage(1, 16, 16, 2, 1e-3))
    tokens = trainer.model.pos_embed(latents)
    with torch.no_grad():
        assert torch.equal(trainer.model.transformer_blocks[0](tokens, timestep=timesteps, class_labels=labels), tokens)
        assert not trainer.model(latents, timesteps, labels).sample.any()


def test_a_checkpoint_of_another_architecture_or_seed_is_refused(tmp_path):
    Trainer(torch.device("cpu"), 0, "unet").save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt trains arch 'unet'; expected 'dit'"):
        Trainer(torch.device("cpu"), 0, "dit").load(tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt trains with seed 0; expected 7: choose another file"):
        Trainer(torch.device("cpu"), 7, "unet").load(tmp_path / "state.pt")


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
def test_learning_rate_warms_up_holds_and_decays_to_zero(stages):
    total = sum(stage.iterations for stage in stages)
    rates = [learning_rate(stages, stage, iteration) for iteration, stage in enumerate(remaining_stages(stages, 0))]
    assert len(rates) == total
    assert rates[0] < rates[50] < rates[150] == max(rates)
    assert 0 < rates[-1] < max(rates) / 100
