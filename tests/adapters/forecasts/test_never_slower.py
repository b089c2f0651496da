"""What follows from a prediction: the levels that are attached, the warning, calls that are left whole, the report."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.prediction import rates
from catome_adapters.prediction.levels import predict_levels, winning_levels
from catome_adapters.prediction.rates import DeviceRates
from catome_adapters.prediction.seconds import predict
from catome_adapters.prediction.worth import Worth
from catome_adapters.sites.weights import count_weights
from catome_core import AdaptiveMerge, CheckpointSchedule, TokenGrid
from probes import anatomy
from zoo.noise import noise
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import predict as run
from zoo.unets import sd_unet, sdxl_unet, shallow_unet

FREE = DeviceRates(flops=1.0, attention_flops=1.0, bandwidth=float("inf"), launch=0.0)
HALF = MergeRecipe(AdaptiveMerge(-1, capacity=0.25, spare="fill"))


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Overrides the fixture of conftest.py: here merging has a cost."""


def on(monkeypatch, machine: DeviceRates) -> None:
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", machine)


def test_auto_takes_the_winning_levels_and_says_what_the_others_would_do(monkeypatch):
    """Level 2 of this network has nearly all of its work."""
    network = sd_unet(block_out_channels=(8, 256, 16))
    on(monkeypatch, FREE)
    gains = predict_levels(find_sites(network), HALF)
    assert winning_levels(gains) == [2]
    with attach(network, HALF) as session:
        assert {site.level for site in session.sites} == {2}
        assert f"level 1 is not chosen (levels='auto'): {gains[1]}" in session.report()
        assert "less than a quarter" in session.report()


@pytest.mark.parametrize("levels", ["top", "all", (2,)])
def test_named_levels_are_taken_without_a_word(levels):
    expected = {"top": {1}, "all": {1, 2, 4}, (2,): {2}}[levels]
    with attach(sd_unet(), replace(HALF, levels=levels)) as session:
        assert {site.level for site in session.sites} == expected


def test_attach_that_cannot_win_warns_with_the_numbers_and_the_remedy():
    network = sd_unet()
    before, gains = anatomy(network), predict_levels(find_sites(network), HALF)
    pattern = r"lose time.*level 1, 3 sites of 16 x 16 tokens, saves .* ms, costs .* ms.*levels=\"all\""
    with pytest.warns(UserWarning, match=pattern) as caught:
        session = attach(network, HALF)
    assert str(gains[1]) in str(caught[0].message) and caught[0].filename == __file__
    assert {site.level for site in session.sites} == {1}
    session.detach()
    assert anatomy(network) == before


def test_network_without_a_default_size_is_taken_at_the_top_without_a_word():
    with attach(sd_unet(sample_size=None), HALF) as session:
        assert {site.level for site in session.sites} == {1}
        assert "?" in session.report()


def between(small: TokenGrid, large: TokenGrid, network: nn.Module) -> DeviceRates:
    """A machine whose launches cost more than merging saves on the small grid, and less than on the large one."""
    work, machine = count_weights(find_sites(network)[0]), DeviceRates(1e12, 1e12, 1e15, 0.0)

    def break_even(grid: TokenGrid) -> float:
        """Gain falls by the same for every second that a launch takes."""
        cheap, dear = (predict(work, grid, 2, HALF, replace(machine, launch=launch)).gain for launch in (0.0, 1.0))
        return cheap / (cheap - dear)

    return replace(machine, launch=(break_even(small) + break_even(large)) / 2)


@torch.no_grad()
def test_call_too_small_to_gain_is_the_unpatched_one_and_a_larger_one_merges(monkeypatch):
    network = sd_unet()
    on(monkeypatch, between(TokenGrid((8, 8)), TokenGrid((16, 16)), network))
    unpatched = run(network, noise(2, 4, 8, 8))
    with attach(network, HALF) as session:
        session.begin_step(0, 50)
        assert torch.equal(run(network, noise(2, 4, 8, 8)), unpatched)
        assert session.summary().merged_fraction == 0
        assert "attached, but left unmerged in the last call" in session.report()
        session.begin_step(0, 50)
        run(network, noise(2, 4, 16, 16))
        assert session.summary().merged_fraction == 0.5
        assert "attached, figures of the last call" in session.report()


@torch.no_grad()
def test_report_after_a_run_says_what_became_of_its_last_call(monkeypatch):
    """Whatever would be decided for a run of another length."""
    network = sd_unet()
    on(monkeypatch, FREE)
    monkeypatch.setattr(Worth, "at_size", lambda self, weights, key, total, **_: total is None)
    with attach(network, HALF) as session:
        session.begin_step(0, 2)
        run(network, noise(2, 4, 16, 16))
        during = session.report()
        session.reset()
        assert session.report() == during
    assert "left unmerged in the last call" in during


@torch.no_grad()
@pytest.mark.parametrize(("levels", "merged"), [((1,), 0.5), ("all", 0.5), ("top", 0.0)])
def test_levels_by_number_merge_at_any_size_and_the_top_where_it_gains(monkeypatch, levels, merged):
    network = sd_unet()
    on(monkeypatch, between(TokenGrid((8, 8)), TokenGrid((16, 16)), network))
    with attach(network, replace(HALF, levels=levels)) as session:
        session.begin_step(0, 50)
        run(network, noise(2, 4, 8, 8))
        assert session.summary().merged_fraction == merged


@torch.no_grad()
def test_small_call_between_large_ones_leaves_their_pairs_alone(monkeypatch):
    network, large, small = sd_unet(), noise(2, 4, 16, 16), noise(2, 4, 8, 8)
    on(monkeypatch, between(TokenGrid((8, 8)), TokenGrid((16, 16)), network))
    slots = []
    with attach(network, replace(HALF, schedule=CheckpointSchedule((0,), of=3))) as session:
        for step, sample in enumerate((large, small, large)):
            session.begin_step(step, 3)
            run(network, sample)
            slots.append([plan.slot for plan in session.plans().values()])
        rows = session.summary().rows
        assert 1 not in session.summary().checkpoints
    assert {(row.step, row.tokens, row.merged_fraction) for row in rows} == {(0, 256, 0.5), (1, 64, 0.0), (2, 256, 0.5)}
    assert all(torch.equal(before, after) for before, after in zip(slots[0], slots[2], strict=True))


@torch.no_grad()
def test_small_call_at_a_checkpoint_leaves_it_to_the_next_large_one(monkeypatch):
    network = sd_unet()
    on(monkeypatch, between(TokenGrid((8, 8)), TokenGrid((16, 16)), network))
    slots = []
    with attach(network, replace(HALF, schedule=CheckpointSchedule((0, 1), of=50))) as session:
        for step, side in enumerate((16, 8, 16, 16)):
            session.begin_step(step, 50)
            run(network, noise(2, 4, side, side, seed=step))
            slots.append(torch.stack([plan.slot for plan in session.plans().values()]))
    assert not torch.equal(slots[0], slots[2])
    assert torch.equal(slots[2], slots[3])


@torch.no_grad()
@pytest.mark.thorough
def test_decision_is_a_constant_to_the_compiler(monkeypatch):
    network, graphs = shallow_unet(), []
    on(monkeypatch, DeviceRates(1e9, 1e9, 1e12, 1.0))
    with pytest.warns(UserWarning, match="predicted to lose"):
        session = attach(network, HALF)
    compiled = torch.compile(network, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for step in range(4):
        session.begin_step(step, 4)
        run(compiled, noise(2, 4, 16, 16, seed=step))
    session.detach()
    assert len(graphs) == 1


def test_report_before_and_after_a_call_has_the_size_at_hand(monkeypatch):
    on(monkeypatch, FREE)
    pipe = class_pipeline()
    with attach(pipe, HALF) as session:
        assert "not run yet: figures of the model's default size" in session.report()
        assert row(session, "down_blocks.0.attentions.0")[2:6] == ["256", "16", "x", "16"]
        draw(pipe, size=16)
        assert "not run yet" not in session.report()
        assert row(session, "down_blocks.0.attentions.0")[2:6] == ["64", "8", "x", "8"]


def row(session, name: str) -> list[str]:
    return next(line.split() for line in session.report().splitlines() if line.strip().startswith(name))


def test_report_counts_the_blocks_of_a_transformer(monkeypatch):
    on(monkeypatch, FREE)
    with attach(sdxl_unet(), replace(HALF, levels="all")) as session:
        assert row(session, "down_blocks.1.attentions.0")[1:4] == ["x", "2", "2"]
        assert max(map(len, session.report().splitlines()[1:])) < 120
