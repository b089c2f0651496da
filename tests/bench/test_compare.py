"""`compare`: the same pictures with and without merging, their figures, and what is left behind."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from catome_adapters import RECIPES, MergeRecipe, attach, sessions
from catome_bench.compare import Compared, compare
from catome_bench.comparison.compared import check_gate
from catome_bench.comparison.drawing import DrawnCall, device_of
from catome_bench.comparison.rows import ComparedSample
from catome_bench.measure.spread import Spread
from catome_bench.views.comparison import to_bytes
from catome_core import Lattice
from running import lattice_recipe
from zoo.class_pipelines import tiny_shipped
from zoo.pipeline_parts import quiet

CALL = {"classes": ["cat"], "size": 16, "num_inference_steps": 2}
SMALL = lattice_recipe()
LARGE = lattice_recipe(stride=4)


@pytest.fixture
def pipe() -> Any:
    return quiet(tiny_shipped())


def of(pipe: Any, recipes: Any, call: Any = CALL, **options: Any) -> Compared:
    return compare(pipe, recipes, call, **{"seeds": [0, 1], "progress": False} | options)


def draw(pipe: Any, seed: int, recipe: MergeRecipe | None = None) -> tuple[Tensor, float]:
    """A picture by hand, and the share that merged."""
    generator = torch.Generator().manual_seed(seed)
    if recipe is None:
        return pipe(**CALL, generator=generator)[0], 0.0
    with attach(pipe, recipe) as session:
        return pipe(**CALL, generator=generator)[0], session.summary().merged_fraction


def test_a_pipeline_whose_weights_are_elsewhere_between_its_calls_is_compared(pipe):
    cpu_offload(pipe.unet, execution_device="cpu")
    assert device_of(pipe) == torch.device("cpu")
    assert of(pipe, {"small": SMALL}, seeds=[0]).recipes[0].psnr is not None


def test_fidelity_and_share_are_those_of_pictures_drawn_by_hand(pipe):
    compared = of(pipe, {"small": SMALL, "large": LARGE}, seeds=[3, 5, 8])
    assert [row.name for row in compared.rows] == ["unmerged", "small", "large"]
    assert compared.rows[0].psnr is None and compared.rows[0].merged == 0
    bases = [draw(pipe, seed)[0] for seed in (3, 5, 8)]
    for row in compared.recipes:
        drawn = [draw(pipe, seed, row.recipe) for seed in (3, 5, 8)]
        pairs = [(picture[None], base[None]) for (picture, _), base in zip(drawn, bases, strict=True)]
        psnr = [peak_signal_noise_ratio(*pair, data_range=1.0).item() for pair in pairs]
        ssim = [structural_similarity_index_measure(*pair, data_range=1.0).item() for pair in pairs]
        assert (row.psnr, row.ssim) == (Spread.of(psnr), Spread.of(ssim))
        assert row.merged == pytest.approx(sum(share for _, share in drawn) / 3)
        for shown, (picture, _) in zip(row.shown, drawn, strict=True):
            assert torch.equal(shown, (picture * 255).round().byte())


@pytest.mark.usefixtures("ticks")
def test_the_denoiser_is_timed_within_the_whole_and_both_count_for_each_picture(pipe):
    compared = of(pipe, "balanced", CALL | {"classes": ["cat", "rocket"], "num_inference_steps": 3})
    for row in compared.rows:
        # Three steps: each reads the clock twice, and the call twice around them.
        assert row.denoiser.median == 3 / 2
        assert row.seconds.median == 7 / 2
        assert row.speedup.median == row.denoiser_speedup.median == 1
        assert (row.warm_up, row.memory) == (0, None)


@pytest.mark.usefixtures("ticks")
def test_what_the_first_call_took_longer_is_apart(pipe):
    steps = iter([9, 9, 2, 2, 2, 2])

    def slow_at_first(pipe: Any, generator: Any) -> Tensor:
        return pipe(**CALL | {"num_inference_steps": next(steps), "classes": ["cat"] * 2}, generator=generator)

    for row in of(pipe, SMALL, slow_at_first).rows:
        assert row.warm_up == 2 * (9 - 2)
        assert row.seconds.median == 5 / 2
        assert row.speedup.median == 1


def test_a_call_that_runs_no_network_has_no_speed_up_of_it(pipe):
    row = of(pipe, SMALL, lambda pipe, generator: torch.rand(1, 3, 16, 16)).recipes[0]
    assert row.denoiser.median == 0 and row.denoiser_speedup is None


def recorded(log: list[tuple[Any, int]]) -> Any:
    def call(pipe: Any, generator: torch.Generator) -> Tensor:
        log.append((next((one.recipe for one in sessions(pipe)), None), generator.initial_seed()))
        return pipe(**CALL, generator=generator)

    return call


def test_all_draw_one_picture_before_any_draws_the_next(pipe):
    log: list[tuple[Any, int]] = []
    of(pipe, [SMALL, LARGE], recorded(log), seeds=[7, 4])
    warm_up, rest = log[:3], log[3:]
    assert warm_up == [(None, 7), (SMALL, 7), (LARGE, 7)]
    assert rest == [(recipe, seed) for seed in (7, 4) for recipe in (None, SMALL, LARGE)]


def test_several_calls_are_drawn_with_every_seed(pipe):
    calls = [CALL, CALL | {"classes": ["rocket"]}]
    compared = of(pipe, SMALL, calls)
    wanted = [pipe(**call, generator=torch.Generator().manual_seed(seed))[0] for call, seed in product(calls, (0, 1))]
    for shown, picture in zip(compared.rows[0].shown, wanted, strict=True):
        assert torch.equal(shown, (picture * 255).round().byte())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.thorough
@pytest.mark.parametrize("whole", [True, False], ids=["compile()", "torch.compile"])
def test_a_compiled_pipeline_draws_recipe_by_recipe_in_unbroken_graphs(whole):
    pipe = quiet(tiny_shipped("dit"))
    eager, log, counter = of(pipe, SMALL), [], CompileCounter()
    if whole:
        pipe.transformer.compile(fullgraph=True, backend=counter)
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend=counter)
    before = vars(pipe.transformer).get("_compiled_call_impl")
    compared = of(pipe, SMALL, recorded(log))
    assert log == [(recipe, seed) for recipe in (None, SMALL) for seed in (0, 0, 1)]
    assert counter.frame_count == 2
    assert vars(pipe.transformer).get("_compiled_call_impl") is before
    assert all(row.denoiser.median > 0 for row in compared.rows)
    assert compared.recipes[0].psnr.median == pytest.approx(eager.recipes[0].psnr.median, abs=0.1)


def test_recipes_are_called_by_their_names(pipe):
    mine = MergeRecipe(Lattice(near=0), scope="keys", stride=(1, 2))
    compared = of(pipe, ["default", RECIPES["fast"], mine, RECIPES["default"]], seeds=[0])
    assert [row.name for row in compared.recipes] == ["default", "fast", "recipe 3", "balanced"]
    assert compared.recipes[2].recipe == mine


def broken(pipe: Any, generator: torch.Generator) -> Tensor:
    pictures = pipe(**CALL, generator=generator)
    return pictures * float("nan") if sessions(pipe) and generator.initial_seed() else pictures


def interrupted(pipe: Any, generator: torch.Generator) -> Tensor:
    pipe(**CALL, generator=generator)
    if sessions(pipe):
        raise KeyboardInterrupt
    return torch.zeros(1, 3, 16, 16)


def sized(pipe: Any, generator: torch.Generator) -> Tensor:
    return pipe(**CALL | {"size": 24 if sessions(pipe) else 16}, generator=generator)


@pytest.mark.parametrize(
    ("recipes", "call", "options", "error", "message"),
    [
        (
            {"mine": SMALL},
            broken,
            {},
            ValueError,
            "mine, seed 1: a value of the pictures is not finite",
        ),
        (SMALL, sized, {}, ValueError, r"drew \(1, 3, 24, 24\), unmerged \(1, 3, 16, 16\)"),
        (SMALL, interrupted, {}, KeyboardInterrupt, None),
        (SMALL, lambda pipe, generator: None, {}, TypeError, "nothing was drawn: NoneType; expected PIL images"),
        (SMALL, CALL | {"generator": None}, {}, ValueError, "has a generator; leave it out"),
        (SMALL, CALL, {"seeds": []}, ValueError, "and 0 calls; expected at least one recipe"),
        (SMALL, [], {}, ValueError, "and 0 calls; expected at least one recipe"),
        ([], CALL, {}, ValueError, "got 0 recipes"),
        ({"unmerged": SMALL}, CALL, {}, ValueError, "none named 'unmerged'"),
        (["close", "tome"], CALL, {}, ValueError, "tome: .*cannot merge in scope='progressive'"),
        ("balnced", CALL, {}, KeyError, "did you mean 'balanced'"),
        (SMALL, CALL, {"gate": {"lpips": 0.1}}, ValueError, "gate is lpips=0.1; expected a number for psnr or ssim"),
        (SMALL, CALL, {"gate": {"psnr": True}}, ValueError, "gate is psnr=True"),
    ],
)
def test_whatever_is_raised_leaves_the_pipeline_as_it_was(pipe, recipes, call, options, error, message):
    state, before = dict(vars(pipe.unet)), draw(pipe, 0)[0]
    with pytest.raises(error, match=message):
        of(pipe, recipes, call, **options)
    assert sessions(pipe) == []
    assert vars(pipe.unet) == state
    assert torch.equal(draw(pipe, 0)[0], before)


def test_a_pipeline_with_a_session_is_refused(pipe):
    with attach(pipe, SMALL) as session:
        with pytest.raises(RuntimeError, match=r"is attached already; call catome_adapters.detach\(pipe\)"):
            of(pipe, LARGE)
        assert sessions(pipe) == [session]


def test_pictures_that_a_seed_does_not_repeat_are_noted(pipe):
    assert len(of(pipe, SMALL, seeds=[0]).notes) == 1
    noise = torch.Generator().manual_seed(0)
    noted = of(pipe, SMALL, lambda pipe, generator: torch.rand(1, 3, 16, 16, generator=noise), seeds=[0])
    assert "one seed drew two pictures" in noted.notes[-1]


def test_numbers_without_a_generator_begin_with_the_seed_and_leave_no_trace(pipe):
    torch.manual_seed(9)
    wanted = torch.rand(())
    torch.manual_seed(9)
    row = of(pipe, SMALL, lambda pipe, generator: torch.rand(1, 3, 16, 16)).recipes[0]
    assert row.psnr.median == float("inf")
    assert torch.rand(()) == wanted
    for seed, shown in enumerate(row.shown):
        torch.manual_seed(seed)
        assert torch.equal(shown, to_bytes(torch.rand(1, 3, 16, 16)[0]))


# What comes of it.


@pytest.fixture(scope="module")
def compared() -> Compared:
    return of(
        quiet(tiny_shipped()),
        {"1/4": SMALL, "same": lattice_recipe(near=8)},
        gate={"ssim": 0},
    )


def changed(compared: Compared, **values: Any) -> Compared:
    """With other medians in the row of the first recipe."""
    medians = {name: Spread(value, value, (value, value)) for name, value in values.items() if name != "merged"}
    first = replace(compared.rows[1], **medians | {"merged": values.get("merged", 0.5)})
    return replace(compared, rows=(compared.rows[0], first), gate={"psnr": 30, "ssim": 0.9})


@pytest.mark.parametrize(
    ("values", "sentence", "passes"),
    [
        ({"speedup": 1.324, "psnr": 41.21, "ssim": 0.99}, "1/4: 1.32x faster at 41.2 dB: keep", True),
        ({"speedup": 1.006, "psnr": 30.0, "ssim": 0.9}, "1/4: 1.01x faster at 30.0 dB: keep", True),
        ({"speedup": 0.996, "psnr": 41.2, "ssim": 0.9}, "1/4: as fast at 41.2 dB: drop, since it is no faster", True),
        (
            {"speedup": 0.8, "psnr": 41.2, "ssim": 0.99},
            "1/4: 1.25x slower at 41.2 dB: drop, since it is no faster",
            True,
        ),
        (
            {"speedup": 0.004, "psnr": 41.2, "ssim": 0.99},
            "1/4: 250.00x slower at 41.2 dB: drop, since it is no faster",
            True,
        ),
        (
            {"speedup": 2.0, "psnr": 29.9, "ssim": 0.8},
            "1/4: 2.00x faster at 29.9 dB: drop, since PSNR 29.9 dB is below 30 dB and SSIM 0.8 is below 0.9",
            False,
        ),
        ({"speedup": 2.0, "psnr": float("inf"), "ssim": 1.0}, "1/4: 2.00x faster with the same pictures: keep", True),
        ({"speedup": 2.0, "psnr": 40.0, "ssim": 1.0, "merged": 0}, "1/4: nothing merges at this size: drop", True),
    ],
)
def test_a_recipe_is_kept_if_it_is_faster_and_passes_the_gate(compared, values, sentence, passes):
    one = changed(compared, **values)
    assert sentence in one.verdicts["1/4"] and sentence in str(one)
    assert one.passes() is passes


@pytest.mark.parametrize(("interval", "doubted"), [((0.9, 1.3), True), ((1.0, 1.3), False), ((0.7, 0.9), False)])
def test_a_speed_up_that_scatters_around_one_is_doubted(compared, interval, doubted):
    row = replace(changed(compared, psnr=40.0, ssim=1.0).rows[1], speedup=Spread(1.1, 0.9, interval))
    sentence = replace(compared, rows=(compared.rows[0], row)).verdicts["1/4"]
    assert ("draw with more seeds" in sentence) is doubted


def test_one_call_is_doubted_and_the_worst_picture_is_not_hidden(compared):
    row = changed(compared, speedup=1.5, psnr=float("inf"), ssim=1.0).rows[1]
    one = replace(row, shown=row.shown[:1])
    assert "it is one call: draw with more seeds" in replace(compared, rows=(compared.rows[0], one)).verdicts["1/4"]
    mostly = replace(row, psnr=Spread(float("inf"), 30.0, (30.0, float("inf"))))
    sentence = replace(compared, rows=(compared.rows[0], mostly)).verdicts["1/4"]
    assert "1.50x faster with mostly the same pictures, the worst at 30.0 dB: keep" in sentence


def test_an_equal_frame_does_not_make_the_others_equal():
    clip = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    other = clip.clone()
    other[1:] = (other[1:] + 0.1).clamp(max=1)
    sample = ComparedSample.of(DrawnCall(other, 1.0, 1.0, None), clip, 0.5)
    assert sample.psnr == pytest.approx(-10 * (other - clip).square().mean().log10().item())


def test_the_name_of_a_picture_is_never_too_long(compared, tmp_path):
    path = "/a/folder/" * 60 + "recipe.json"
    rows = (compared.rows[0], replace(compared.rows[1], name=path))
    assert replace(compared, rows=rows).save(tmp_path).exists()


def test_passes_asks_every_recipe_for_the_floors_it_is_given(compared):
    assert compared.passes() and compared.passes(psnr=0, ssim=-1)
    worst = min(row.psnr.median for row in compared.recipes)
    assert worst < compared.recipes[1].psnr.median == float("inf")
    assert compared.passes(psnr=worst) and not compared.passes(psnr=worst + 0.01)
    with pytest.raises(ValueError, match="gate is lpips=1"):
        compared.passes(lpips=1)
    assert check_gate({"psnr": 30, "ssim": 0.9}) == {"psnr": 30, "ssim": 0.9}


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_what_is_saved_is_what_was_measured(compared, tmp_path):
    file = compared.save(tmp_path / "new" / "folder")
    found = json.loads(file.read_text(), parse_constant=no_constant)
    assert found == json.loads(compared.to_json()) and found["settings"]["seeds"] == [0, 1]
    assert found["settings"]["calls"] == [CALL]
    assert found["verdicts"] == compared.verdicts and found["gate"] == {"ssim": 0}
    assert found["kept"] == [name for name, verdict in compared.verdicts.items() if ": keep" in verdict]
    for row, measured in zip(found["rows"], compared.rows, strict=True):
        assert row["recipe"] == (measured.recipe and json.loads(measured.recipe.to_json()))
        assert row["seconds"]["median"] == measured.seconds.median
        for name, shown in zip(row["pictures"], measured.shown, strict=True):
            with Image.open(file.parent / name) as picture:
                assert picture.tobytes() == bytes(shown.permute(1, 2, 0).flatten().tolist())
    assert found["rows"][1]["pictures"] == ["pictures/0-1-1-4.png", "pictures/1-1-1-4.png"]
    with Image.open(file.parent / "side-by-side.png") as figure:
        assert figure.size[1] > figure.size[0]


def test_saving_again_replaces_the_files_and_leaves_no_parts(compared, tmp_path):
    compared.save(tmp_path)
    names = sorted(path.name for path in tmp_path.rglob("*"))
    compared.save(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    assert not any(".part" in name for name in names)
