"""What is matched, how many blocks share a merge, and in which steps: every combination of a recipe's options."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import MergeSite, attach, find_sites
from catome_core import MergePlan, TokenGrid, attention_bias, merge, unmerge
from models import CountingMerge, anatomy, conditions, predict
from scopes import (
    METRICS,
    SCOPES,
    TOTAL,
    VARIANTS,
    Variant,
    call,
    deep_unet,
    differing,
    make_recipe,
    run,
    sample_of,
    spell,
    unpatched,
)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def unet() -> nn.Module:
    return deep_unet()


@pytest.fixture(params=VARIANTS, ids=spell)
def variant(request) -> Variant:
    return request.param


# Life-cycle


def test_merging_changes_every_step_but_those_that_match_outputs(unet, variant):
    plain = unpatched(unet)
    with attach(unet, make_recipe(variant)) as session:
        merged = run(session, unet)
        assert session.summary().checkpoints == (0, 3)
    assert all(output.isfinite().all() for output in merged)
    assert differing(merged, plain) == ([0, 1, 2, 3, 4, 5] if variant[1] == "input" else [1, 2, 4, 5])


@pytest.mark.parametrize("capacity", [0.25, None], ids=["fixed", "ladder"])
def test_reuse_equals_recompute_on_the_same_input(unet, variant, capacity):
    """Matched on outputs, the first step is unmerged: there the two steps that reuse are compared."""
    recipe = make_recipe(variant, CountingMerge, capacity=capacity)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        outputs = [call(session, unet, step, seed=0) for step in range(3)]
    assert recipe.policy.recomputed == [0]
    first = 0 if variant[1] == "input" else 1
    # The ladder drops empty places after the first step, and with them the order of the sums.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if capacity is None else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(outputs[2], outputs[first], **tolerance)


def test_threshold_one_is_the_unpatched_model_bit_by_bit(unet, variant):
    plain = unpatched(unet)
    with attach(unet, make_recipe(variant, threshold=1.0, capacity=None)) as session:
        assert differing(run(session, unet), plain) == []


def test_every_run_is_the_first_one_again(unet, variant):
    recipe = make_recipe(variant, capacity=None, destination="random")
    with attach(unet, recipe) as session:
        first = run(session, unet)
        assert differing(run(session, unet), first) == []
        call(session, unet, 0)
        session.reset()
        assert differing(run(session, unet), first) == []


def test_detach_restores_exactly(unet, variant):
    before, plain = anatomy(unet), unpatched(unet)
    session = attach(unet, make_recipe(variant))
    assert anatomy(unet) != before
    run(session, unet)
    session.detach()
    assert anatomy(unet) == before
    assert differing(unpatched(unet), plain) == []


class Interrupted(Exception):
    """What a test throws into a forward pass."""


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise Interrupted

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("step", [0, 1], ids=["at a checkpoint", "at a reuse"])
def test_call_that_fails_within_a_segment_leaves_nothing_behind(unet, variant, step):
    before, plain = anatomy(unet), unpatched(unet)
    with attach(unet, make_recipe(variant)) as session:
        expected = run(session, unet)
        for earlier in range(step):
            call(session, unet, earlier)
        with failing(session.sites[1].block.ff), pytest.raises(Interrupted):
            call(session, unet, step)
        assert differing(run(session, unet), expected) == []
    assert anatomy(unet) == before
    assert differing(unpatched(unet), plain) == []


def test_outputs_that_a_failed_checkpoint_did_not_match_are_matched_at_the_next_step(unet, variant):
    """An input is matched before anything can fail."""
    recipe = make_recipe(variant, CountingMerge, levels="auto")
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        call(session, unet, 0)
        with failing(session.sites[-1].attention.to_out[0]), pytest.raises(Interrupted):
            call(session, unet, 3)
        call(session, unet, 4)
    assert recipe.policy.calls[-1] == (variant[1] == "output")


# What is computed


def level_two(network: nn.Module) -> list[MergeSite]:
    """The three sites of the first transformer."""
    return find_sites(network)[:3]


class Watcher:
    """What goes into the first block and what every block and its self-attention return, before and after the merge."""

    def __init__(self, sites: list[MergeSite]) -> None:
        self.sites, self.outputs, self.attended = sites, {}, {}
        sites[0].block.register_forward_pre_hook(self._see_input)

    def watch_outputs(self) -> None:
        """Call it once the session is attached: hooks run in the order in which they came."""
        for index, site in enumerate(self.sites):
            site.block.register_forward_hook(lambda _, args, out, index=index: self.outputs.update({index: out}))
            site.attention.register_forward_hook(lambda _, args, out, index=index: self.attended.update({index: out}))

    def _see_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.tokens = args[0]


GROUPS = {1: [[0], [1], [2]], 2: [[0, 1], [2]], 3: [[0, 1, 2]]}


def segment_by_hand(blocks: list[nn.Module], tokens: Tensor, text: Tensor, plan: MergePlan, bias: Tensor) -> Tensor:
    short = merged = merge(tokens, plan)
    for block in blocks:
        short = block(short, attention_mask=bias, encoder_hidden_states=text)
    return tokens + unmerge(short - merged, plan)


@pytest.mark.parametrize("segment", GROUPS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("spare", "proportional"), [("pad", True), ("pad", False), ("fill", True), ("fill", False)])
def test_segment_computes_its_formula(unet, segment, metric, spare, proportional):
    recipe = make_recipe(("block", metric, segment), spare=spare, proportional=proportional)
    network, grid = copy.deepcopy(unet), TokenGrid((8, 8))
    blocks, watcher = [site.block for site in level_two(unet)], Watcher(level_two(network))
    text = conditions(network, 2)["encoder_hidden_states"]
    with attach(network, recipe, sites=watcher.sites) as session:
        watcher.watch_outputs()
        call(session, network, 0)
        # With metric="input" a segment's input is what the one before it returned.
        fed = {0: watcher.tokens} | {index + 1: output for index, output in watcher.outputs.items()}
        matched = [fed[group[0]] if metric == "input" else fed[group[-1] + 1] for group in GROUPS[segment]]
        call(session, network, 1)
    expected = watcher.tokens
    for group, tokens in zip(GROUPS[segment], matched, strict=True):
        plan, members = recipe.policy(tokens, grid), [blocks[index] for index in group]
        bias = attention_bias(plan, dtype=tokens.dtype, proportional=proportional)[:, 0]
        expected = segment_by_hand(members, expected, text, plan, bias)
    torch.testing.assert_close(watcher.outputs[2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scope", ["attention", "keys"])
def test_output_of_self_attention_is_matched(unet, scope):
    recipe = make_recipe((scope, "output", 1))
    watcher = Watcher(level_two(unet))
    with attach(unet, recipe, sites=watcher.sites) as session:
        watcher.watch_outputs()
        call(session, unet, 0)
        plans = list(session.plans().values())
    for index, plan in enumerate(plans):
        assert torch.equal(plan.slot, recipe.policy(watcher.attended[index], TokenGrid((8, 8))).slot)
    assert not torch.equal(plans[0].slot, recipe.policy(watcher.tokens, TokenGrid((8, 8))).slot)


def test_segment_merges_once_and_every_block_in_it_is_short(unet):
    lengths = []
    for site in level_two(unet):
        site.block.ff.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    policy = {"threshold": -1, "capacity": 0.25, "spare": "fill"}
    with attach(unet, make_recipe(("block", "input", 2), **policy), sites=level_two(unet)) as session:
        call(session, unet, 0)
        assert [hooks.cache.filled for hooks in session._hooks] == [True, True]
    assert lengths == [32, 32, 32]


# Which blocks share a segment


def names_of(session) -> list[str]:
    return [row.site for row in session.summary().rows]


def test_segments_do_not_leave_their_transformer(unet):
    hosts = [len(list(group)) for _, group in groupby(find_sites(unet), key=lambda site: id(site.host))]
    with attach(unet, make_recipe(("block", "input", 2))) as session:
        call(session, unet, 0)
        assert len(names_of(session)) == sum((blocks + 1) // 2 for blocks in hosts)
        first = "down_blocks.1.attentions.0.transformer_blocks"
        assert names_of(session)[:2] == [f"{first}.0 to 1", f"{first}.2"]
        assert "  down_blocks.1.attentions.0 x 3 " in session.report()
        assert set(session.plans()) == set(names_of(session))


@pytest.mark.parametrize(("chosen", "segments"), [([0, 2], 2), ([0, 1], 1), ([1, 0], 2), ([0, 1, 2], 1)])
def test_gap_between_the_chosen_blocks_ends_a_segment(unet, chosen, segments):
    sites = [level_two(unet)[index] for index in chosen]
    with attach(unet, make_recipe(("block", "input", 3)), sites=sites) as session:
        call(session, unet, 0)
        assert len(names_of(session)) == segments


def test_block_within_a_segment_is_taken(unet):
    with (
        attach(unet, make_recipe(("block", "input", 3))),
        pytest.raises(RuntimeError, match=r"call its detach\(\) first"),
    ):
        attach(unet, sites=[level_two(unet)[1]])


@torch.enable_grad()
def test_segment_refuses_gradient_checkpointing_and_the_remedy_works(unet):
    unet.train().enable_gradient_checkpointing()
    with attach(unet, make_recipe(("block", "input", 2))) as session:
        with pytest.raises(
            ValueError, match=r"transformer_blocks\.0 to 1 is a segment.*disable_gradient_checkpointing"
        ):
            call(session, unet, 0)
        unet.disable_gradient_checkpointing()
        call(session, unet, 0).sum().backward()


# Matching on outputs


@pytest.mark.parametrize("scope", SCOPES)
def test_outputs_without_steps_are_matched_at_every_call_and_nothing_merges(unet, scope):
    plain = unpatched(unet)
    recipe = make_recipe((scope, "output", 1), CountingMerge)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        with pytest.warns(UserWarning, match=r"session\.begin_step\(step, total\)"):
            outputs = unpatched(unet)
    assert differing(outputs, plain) == []
    assert recipe.policy.calls == [len(session.sites)] * TOTAL


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("other", [{"batch": 1}, {"size": (12, 20)}], ids=["batch", "size"])
def test_another_batch_or_size_within_a_run_is_matched_anew(unet, scope, other):
    plain = predict(unet, sample_of(1, **({"batch": 2, "size": (16, 16)} | other)))
    with attach(unet, make_recipe((scope, "output", 1))) as session:
        call(session, unet, 0)
        assert torch.equal(call(session, unet, 1, **other), plain)
        assert not torch.equal(call(session, unet, 2, seed=1, **other), plain)


@pytest.mark.parametrize("scope", SCOPES)
def test_plan_of_an_output_in_another_dtype_is_found_again(unet, scope):
    """Autocast makes self-attention return bfloat16 where the blocks pass on float32."""
    for site in find_sites(unet):
        site.block.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))
    with torch.autocast("cpu", torch.bfloat16):
        plain = unpatched(unet)
        with attach(unet, make_recipe((scope, "output", 1))) as session:
            assert differing(run(session, unet), plain) == [1, 2, 4, 5]


def test_summary_counts_a_step_that_matches_outputs_as_unmerged(unet):
    policy = {"threshold": -1, "spare": "fill", "capacity": 0.25}
    with attach(unet, make_recipe(("attention", "output", 1), **policy)) as session:
        run(session, unet)
        rows = session.summary().rows
    assert {row.step: row.merged_fraction for row in rows} == {0: 0, 1: 0.5, 2: 0.5, 3: 0, 4: 0.5, 5: 0.5}
    assert all((row.slots == row.tokens) == row.checkpoint for row in rows)
    assert {row.mergeable_fraction for row in rows} == {0.75}


# During a part of the run

PARTS = {(0.0, 1.0): range(6), (0.0, 0.5): range(3), (0.5, 1.0): range(3, 6), (0.2, 0.7): range(2, 5)}


@pytest.mark.parametrize(("during", "merged"), PARTS.items(), ids=map(str, PARTS))
@pytest.mark.parametrize("variant", [("attention", "input", 1), ("block", "input", 2)], ids=["attention", "block"])
def test_outside_its_part_of_the_run_nothing_merges_or_is_matched(unet, variant, during, merged):
    plain, recipe = unpatched(unet), make_recipe(variant, CountingMerge, capacity=None, during=during)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        assert differing(run(session, unet), plain) == list(merged)
        rows = session.summary().rows
        checkpoints = session.summary().checkpoints
    assert recipe.policy.recomputed == sorted({merged[0], *({3} & set(merged))}) == list(checkpoints)
    assert {row.step for row in rows} == set(range(6))
    assert {row.step for row in rows if row.merged_fraction > 0} == set(merged)
    assert all(row.slots == row.tokens and row.overflow == 0 for row in rows if row.step not in merged)


def test_first_merged_step_recomputes_in_every_run(unet):
    recipe = make_recipe(("attention", "input", 1), CountingMerge, during=(0.2, 0.5))
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for _ in range(2):
            run(session, unet)
    assert recipe.policy.recomputed == [2, 8]


def test_outputs_are_matched_in_the_first_step_of_their_part(unet):
    plain = unpatched(unet)
    with attach(unet, make_recipe(("attention", "output", 1), during=(0.2, 1.0))) as session:
        assert differing(run(session, unet), plain) == [4, 5]


@pytest.mark.filterwarnings("ignore:nobody tells the session")
def test_without_steps_everything_merges(unet):
    plain = unpatched(unet)
    with attach(unet, make_recipe(("attention", "input", 1), during=(0.5, 1.0))) as session:
        assert differing(unpatched(unet), plain) == list(range(TOTAL))
        assert torch.equal(call(session, unet, 0), plain[0])
        session.reset()
        assert differing(unpatched(unet), plain) == list(range(TOTAL))
