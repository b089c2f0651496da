"""Where a session attaches, what it says when it cannot, and what it reports of what it did."""

from collections import defaultdict
from functools import partial
from math import isqrt

import pytest
import torch
from diffusers import (
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from catome_adapters import MergeRecipe, MergeSite, attach, find_sites
from catome_adapters.unets import LAYOUT
from catome_core import AdaptiveMerge, CheckpointSchedule, TokenGrid, count_overflow, match_tokens, summarize
from catome_core.ladder import LADDER
from models import anatomy, class_pipeline, controlnet, draw, noise, predict, sd_pipeline, sd_unet, sdxl_unet

ONCE = CheckpointSchedule((0,), of=10)
TWICE = CheckpointSchedule((0, 2), of=4)


def names(sites) -> list[str]:
    return [site.name for site in sites]


@torch.no_grad()
def told(session, unet, steps: int, seeds=(0,), batch: int = 2) -> None:
    """Run a bare network for some steps of ten."""
    for step in range(steps):
        session.begin_step(step, 10)
        predict(unet, noise(batch, 4, 16, 16, seed=seeds[step % len(seeds)]))


# Nothing to attach to.


def plain_unet() -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(block_out_channels=(8, 8), norm_num_groups=4, **blocks)


def unet_without_transformers():
    """DeepFloyd's blocks: attention with text and image in one, without a transformer around it."""
    blocks = {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
    }
    return sd_unet(block_out_channels=(8, 8), **blocks)


def unet_of_text_attention():
    return sd_unet(only_cross_attention=True, mid_block_type=None)


class Gridless(nn.Module):
    """Blocks that diffusers knows, in a network whose call tells no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(8, 2, 4)])


class Foreign(nn.Module):
    """Blocks that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.Linear(8, 8)])


@pytest.mark.parametrize(
    "model", [lambda: nn.Linear(2, 2), plain_unet, unet_without_transformers, unet_of_text_attention]
)
def test_model_without_a_site_is_refused_with_a_remedy(model):
    network = model()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf"(?s)no place to merge tokens in {type(network).__name__}.*sites=\["):
        attach(network)
    assert find_sites(network) == [] and anatomy(network) == before


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (unet_of_text_attention, "attends to text"),
        (Gridless, "the call of Gridless tells no grid: looked for img_ids"),
        (Foreign, "Linear is not among the blocks whose arguments diffusers tells"),
    ],
)
def test_refusal_names_what_looks_like_a_site_and_why_it_is_none(model, reason):
    with pytest.raises(ValueError, match=rf"transformer_blocks\.0: .*{reason}"):
        attach(model())


@pytest.mark.parametrize("nonsense", [None, "unet", object()])
def test_what_is_no_model_is_refused(nonsense):
    with pytest.raises(TypeError, match=f"{type(nonsense).__name__} is neither a torch.nn.Module nor a pipeline"):
        attach(nonsense)


@pytest.mark.parametrize("recipe", ["paper", AdaptiveMerge(), None])
def test_what_is_no_recipe_is_refused(recipe):
    with pytest.raises(TypeError, match=r"such as one of RECIPES: \['default', 'keys', 'paper'"):
        attach(sd_unet(), recipe)


@pytest.mark.parametrize("levels", [(3,), (1, 8), ()])
def test_level_without_a_site_is_refused_and_the_levels_are_named(levels):
    unet = sd_unet()
    before = anatomy(unet)
    with pytest.raises(ValueError, match=r"levels is \(.*this model has self-attention at levels \[1, 2, 4\]"):
        attach(unet, MergeRecipe(levels=levels))
    assert anatomy(unet) == before


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match=r"scope is 'mlp'; expected one of \('attention', 'keys', 'block'\)"):
        attach(sd_unet(), MergeRecipe(scope="mlp"))


# Where it attaches.


@pytest.mark.parametrize(
    ("model", "levels", "expected"),
    [
        (sd_unet, "auto", {1}),
        (sd_unet, "top", {1}),
        (sd_unet, "all", {1, 2, 4}),
        (sd_unet, (2,), {2}),
        (sd_unet, (4, 1), {1, 4}),
        (sdxl_unet, "auto", {2}),
        (sdxl_unet, "top", {2}),
        (sdxl_unet, "all", {2, 4}),
    ],
)
def test_levels_choose_the_sites(model, levels, expected):
    network = model()
    with attach(network, MergeRecipe(levels=levels)) as session:
        chosen = [site.name for site in find_sites(network) if site.level in expected]
        assert names(session.sites) == chosen and {site.level for site in session.sites} == expected


@pytest.mark.parametrize("model", [sd_unet, sdxl_unet], ids=["sd1", "sdxl"])
def test_level_is_how_much_coarser_the_image_is(model):
    network, seen = model(), {}
    sites = find_sites(network)
    for site in sites:
        site.host.register_forward_pre_hook(
            lambda _, args, kwargs, name=site.name: seen.update({name: args[0].shape[-1]}), with_kwargs=True
        )
    with torch.no_grad():
        predict(network, noise(1, 4, 16, 16))
    assert {site.name: 16 // site.level for site in sites} == seen


def test_sites_of_a_pipeline_are_its_networks():
    pipe = sd_pipeline()
    assert names(find_sites(pipe)) == names(find_sites(pipe.unet))
    assert len(find_sites(controlnet(pipe.unet))) == 3


def test_attention_to_text_is_left_out_and_reported():
    with attach(sd_unet(only_cross_attention=(True, False, False)), MergeRecipe(levels="all")) as session:
        assert {site.level for site in session.sites} == {2, 4}
        heading, *left_out = session.report().partition("not attached, its `attn1` attends to text")[2].splitlines()
        assert heading == " (only_cross_attention):" and len(left_out) == 3


VIDEO = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4}


def animate_diff() -> nn.Module:
    blocks = {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
    }
    return UNetMotionModel(**VIDEO, **blocks, num_attention_heads=2, motion_num_attention_heads=2)


def text_to_video() -> nn.Module:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return UNet3DConditionModel(**VIDEO, **blocks, attention_head_dim=2)


def stable_video() -> nn.Module:
    return UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        num_attention_heads=2,
        cross_attention_dim=8,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )


def call_video(network: nn.Module, frames: int = 3) -> Tensor:
    if isinstance(network, UNetSpatioTemporalConditionModel):
        return network(noise(1, frames, 8, 16, 16), 1, noise(1, 1, 8), torch.ones(1, 3), return_dict=False)[0]
    texts = noise(frames if isinstance(network, UNetMotionModel) else 1, 3, 8)
    return network(noise(1, 4, frames, 16, 16), 1, texts, return_dict=False)[0]


@pytest.mark.parametrize("model", [animate_diff, text_to_video, stable_video])
@torch.no_grad()
def test_attention_over_frames_is_no_site_and_attention_within_them_is(model):
    network = model().eval()
    unpatched = call_video(network)
    with attach(network, MergeRecipe(levels="all")) as session:
        assert session.sites and not any("motion" in name or "temp" in name for name in names(session.sites))
        session.begin_step(0, 10)
        merged = call_video(network)
        session.begin_step(1, 10)
        assert session.summary().merged_fraction > 0
    assert merged.isfinite().all() and not torch.equal(merged, unpatched)


# Sites by hand.


def test_sessions_may_share_a_network_but_no_site():
    """Settings for each module: every level by a recipe of its own."""
    unet = sd_unet()
    before = anatomy(unet)
    finest = attach(unet, MergeRecipe(levels=(1,)))
    middle = attach(unet, MergeRecipe(AdaptiveMerge(0.5), scope="block", levels=(2,)))
    with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
        attach(unet, MergeRecipe(levels="all"))
    for session in (finest, middle):
        session.begin_step(0, 10)
    with torch.no_grad():
        predict(unet, noise(1, 4, 16, 16))
    for session in (finest, middle):
        session.begin_step(1, 10)
        assert {row.site for row in session.summary().rows} == set(names(session.sites))
        assert session.summary().merged_fraction > 0
        session.detach()
    assert anatomy(unet) == before


def test_given_sites_are_exactly_the_attached_ones():
    unet = sd_unet()
    chosen = find_sites(unet)[1:3]
    with attach(unet, sites=chosen) as session:
        assert session.sites == tuple(chosen)


def test_same_site_twice_is_refused():
    unet = sd_unet()
    with pytest.raises((ValueError, RuntimeError), match=r"down_blocks\.0\.attentions\.0\.transformer_blocks\.0"):
        attach(unet, sites=find_sites(unet) + find_sites(unet))


@pytest.mark.parametrize("sites", [[], ["down_blocks.0"]])
def test_sites_that_are_none_are_refused(sites):
    with pytest.raises((ValueError, TypeError), match="MergeSite"):
        attach(sd_unet(), sites=sites)


# The ladder and the summary.


@pytest.mark.parametrize("spare", ["pad", "fill"])
def test_capacity_moves_after_a_checkpoint_to_the_smallest_rung_that_is_large_enough(spare):
    unet, demands = sd_unet(), defaultdict(int)
    with attach(unet, MergeRecipe(AdaptiveMerge(0.7, spare=spare), ONCE, levels="all")) as session:
        handles = [site.block.register_forward_pre_hook(partial(note_demand, demands)) for site in session.sites]
        told(session, unet, 1)
        for handle in handles:
            handle.remove()
        told(session, unet, 4)
        rows = session.summary().rows
    for row in rows:
        grid = square(row.tokens)
        places = min(room for rung in (*LADDER, 1) if (room := raised(grid, rung)) >= demands[row.tokens])
        assert row.capacity == (0.75 if row.step == 0 else places / grid.area)
        assert row.slots == grid.destinations + grid.places(row.capacity)
        assert row.overflow == 0 and row.checkpoint == (row.step == 0)
    assert len({row.capacity for row in rows}) > 1


def raised(grid: TokenGrid, rung: float) -> int:
    """Places of a rung when it is raised to the next multiple of 8 slots that the grid can fill."""
    slots = grid.destinations + grid.places(rung)
    while slots % 8 and slots < grid.tokens:
        slots += 1
    return slots - grid.destinations


def note_demand(demands: dict[int, int], block: nn.Module, args: tuple[Tensor, ...]) -> None:
    """By number of tokens, the most sources that any sample wants to keep at any site."""
    grid = square(args[0].shape[1])
    wanted = int(count_overflow(match_tokens(args[0], grid), grid, threshold=0.7, capacity=0).max())
    demands[grid.tokens] = max(demands[grid.tokens], wanted)


def square(tokens: int) -> TokenGrid:
    return TokenGrid((isqrt(tokens),) * 2)


def test_sites_of_a_level_share_their_capacity_at_every_step():
    unet = sd_unet()
    with attach(unet, MergeRecipe(AdaptiveMerge(0.8), CheckpointSchedule((0, 3, 6), 10), levels="all")) as session:
        told(session, unet, 9, seeds=range(9))
        capacities = defaultdict(set)
        for row in session.summary().rows:
            capacities[row.step, row.tokens].add(row.capacity)
    assert all(len(found) == 1 for found in capacities.values())


def test_capacity_given_as_a_number_stays():
    pipe = class_pipeline()
    with attach(pipe, MergeRecipe(AdaptiveMerge(0.7, capacity=0.25), TWICE)) as session:
        draw(pipe, steps=4)
        rows = session.summary().rows
    assert {row.capacity for row in rows} == {0.25} and {row.slots for row in rows} == {32}


def test_next_run_begins_with_the_policys_capacity_again():
    pipe = class_pipeline()
    with attach(pipe, MergeRecipe(AdaptiveMerge(0.7), ONCE)) as session:
        draw(pipe)
        first = session.summary()
        draw(pipe)
        assert session.summary() == first
    assert {row.slots for row in first.rows if row.step == 0} == {64}
    assert max(row.slots for row in first.rows if row.step > 0) < 64


@pytest.mark.parametrize("capacity", [None, 0, 0.125, 0.25])
@pytest.mark.parametrize("spare", ["pad", "fill"])
def test_summary_agrees_with_the_plans(capacity, spare):
    unet = sd_unet()
    recipe = MergeRecipe(AdaptiveMerge(0.7, capacity, spare=spare), TWICE, levels="all")
    with attach(unet, recipe) as session, torch.no_grad():
        plans = []
        for step in range(4):
            session.begin_step(step, 4)
            predict(unet, noise(2, 4, 16, 16, seed=step))
            plans.append(session.plans())
        session.end_step(3, 4)
        rows = session.summary().rows
    assert len(rows) == 4 * len(session.sites)
    for row in rows:
        figures = summarize(plans[row.step][row.site])
        assert (row.tokens, row.slots) == (figures.tokens, figures.slots)
        assert row.merged_fraction == pytest.approx(float(figures.merged_fraction.mean()), abs=1e-6)
        assert spare == "pad" or int(figures.real.min()) == row.slots


def test_summary_counts_every_overflow():
    unet = sd_unet()
    inputs = {}
    policy = AdaptiveMerge(0.9, capacity=0.125)
    with attach(unet, MergeRecipe(policy, ONCE, levels="all")) as session, torch.no_grad():
        for site in session.sites:
            site.block.register_forward_pre_hook(lambda _, args, name=site.name: inputs.update({name: args[0]}))
        session.begin_step(0, 10)
        predict(unet, noise(3, 4, 16, 16))
        session.begin_step(1, 10)
        summary = session.summary()
    for row in summary.rows:
        grid = square(row.tokens)
        match = match_tokens(inputs[row.site], grid)
        assert row.overflow == int(count_overflow(match, grid, threshold=0.9, capacity=0.125).sum())
    assert summary.overflow == sum(row.overflow for row in summary.rows) > 0


def test_summary_of_told_steps_has_the_last_one_too():
    unet = sd_unet()
    with attach(unet, MergeRecipe(schedule=TWICE)) as session, torch.no_grad():
        for step in range(4):
            session.begin_step(step, 4)
            predict(unet, noise(1, 4, 16, 16))
    assert {row.step for row in session.summary().rows} == {0, 1, 2, 3}


def test_summary_before_any_run_is_empty():
    with attach(class_pipeline()) as session:
        summary = session.summary()
    assert (summary.rows, summary.checkpoints, summary.merged_fraction, summary.overflow) == ((), (), 0, 0)
    assert str(summary) == "no step has been run yet"


def test_summary_is_a_line_a_site():
    pipe = class_pipeline()
    with attach(pipe, MergeRecipe(schedule=TWICE)) as session:
        draw(pipe, steps=4)
        lines = str(session.summary()).splitlines()
        assert len(lines) == 1 + len(session.sites)
        for site, line in zip(sorted(names(session.sites)), lines[1:], strict=True):
            assert line.split()[:4] == [site, "4", "2", "64"]


def test_site_whose_block_the_model_never_calls_is_found_out():
    unet = sd_unet()
    stranger = sd_unet().down_blocks[0].attentions[0].transformer_blocks[0]
    host = unet.down_blocks[0].attentions[0]
    site = MergeSite("stranger", stranger, stranger.attn1, host, layout=LAYOUT)
    recipe = MergeRecipe(AdaptiveMerge(), ONCE, levels="all")
    message = r"stranger is attached and its host was called, but its block never was"
    with attach(unet, recipe, sites=[*find_sites(unet), site]) as session, pytest.warns(UserWarning, match=message):
        told(session, unet, 2)


def test_step_that_failed_before_its_blocks_is_no_reason_to_warn():
    unet = sd_unet()
    with attach(unet, MergeRecipe(AdaptiveMerge(), ONCE, levels="all")) as session:
        session.begin_step(0, 10)
        with pytest.raises(RuntimeError):
            predict(unet, noise(2, 3, 16, 16))
        told(session, unet, 2)
