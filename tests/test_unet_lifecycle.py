"""One life-cycle, the same for every model, scope and policy: attach, run, reuse, fail, detach."""

from itertools import product

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from torch import Tensor, nn

from catome_adapters import MergeRecipe, attach, find_sites
from catome_core import AdaptiveMerge, CheckpointSchedule, MergePlan, gather_anchors, merge, unmerge
from models import SUBJECTS, CountingMerge, anatomy, noise, predict, sd_unet

SCOPES = ("attention", "keys", "block")
SPARES = ("pad", "fill")
EVERY_OTHER = CheckpointSchedule((0, 2), of=3)  # of three steps the second reuses
OTHER_SIZE = (12, 20)  # 3 x 5 at the coarsest level: partial cells
Variant = tuple[str, str, bool]


def make_recipe(variant: Variant, policy: type[AdaptiveMerge] = AdaptiveMerge, **policy_options) -> MergeRecipe:
    scope, spare, proportional = variant
    options = {"threshold": 0.7, "spare": spare} | policy_options
    return MergeRecipe(policy(**options), EVERY_OTHER, scope=scope, proportional=proportional, levels="all")


@pytest.fixture(params=SUBJECTS)
def subject(request):
    return SUBJECTS[request.param]()


@pytest.fixture(
    params=product(SCOPES, SPARES, (True, False)),
    ids=lambda variant: f"{variant[0]}-{variant[1]}-{'proportional' if variant[2] else 'plain'}",
)
def variant(request) -> Variant:
    return request.param


@pytest.fixture
def recipe(variant) -> MergeRecipe:
    return make_recipe(variant)


def test_report_names_every_block_attached_or_not(subject):
    blocks = {name for name, module in subject.network.named_modules() if isinstance(module, BasicTransformerBlock)}
    with attach(subject.source) as session:
        attached, _, left_out = session.report().partition("not attached, level")
        names = {site.name for site in session.sites}
        assert set() < names < blocks
        assert hosts(attached) == hosts(names) and hosts(left_out) == hosts(blocks - names)
        assert "is not chosen (levels='auto')" in left_out
        assert "attached, not run yet" in attached
        subject.run(session)
        assert "figures of the last call" in session.report() and "not run yet" not in session.report()


def hosts(names: str | set[str]) -> set[str]:
    """The transformers that hold the named blocks, or that a text names."""
    words = names.split() if isinstance(names, str) else names
    return {word.partition(".transformer_blocks")[0] for word in words if ".attentions." in word}


def test_threshold_one_is_the_unpatched_model_bit_by_bit(subject, variant):
    unpatched = subject.run()
    with attach(subject.source, make_recipe(variant, threshold=1.0)) as session:
        assert torch.equal(subject.run(session), unpatched)
        assert session.summary().merged_fraction == 0


def test_merging_changes_the_output_and_keeps_it_finite(subject, recipe):
    unpatched = subject.run()
    with attach(subject.source, recipe) as session:
        merged = subject.run(session)
        assert session.summary().merged_fraction > 0.05
    assert merged.isfinite().all()
    assert not torch.equal(merged, unpatched)


def test_state_dict_is_the_same_while_attached(subject, recipe):
    names = list(subject.network.state_dict())
    with attach(subject.source, recipe) as session:
        subject.run(session)
        assert list(subject.network.state_dict()) == names
        assert not any("catome" in name or "cache" in name for name, _ in subject.network.named_modules())


def test_detach_restores_exactly(subject, recipe):
    before, unpatched = anatomy(subject.network), subject.run()
    session = attach(subject.source, recipe)
    assert anatomy(subject.network) != before
    subject.run(session)
    session.detach()
    session.detach()
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)


def test_attached_again_is_the_same_as_the_first_time(subject, recipe):
    with attach(subject.source, recipe) as session:
        first = subject.run(session)
    with attach(subject.source, recipe) as session:
        assert torch.equal(subject.run(session), first)


def test_second_session_is_refused_and_leaves_the_first_alone(subject):
    with attach(subject.source):
        before = anatomy(subject.network)
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(subject.source, MergeRecipe(scope="block"))
        assert anatomy(subject.network) == before


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("spare", "capacity"), [("pad", None), ("pad", 0.25), ("fill", 0.25)])
def test_reuse_equals_recompute_on_the_same_input(subject, scope, spare, capacity):
    recipe = make_recipe((scope, spare, True), CountingMerge, capacity=capacity)
    with attach(subject.source, recipe) as session:
        recipe.policy.watch(subject.network)
        computed, reused = (call(session, subject.network, step) for step in (0, 1))
    assert recipe.policy.recomputed == [0]
    # The ladder drops empty places after the first step, and with them the order of the sums.
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if capacity is None else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(reused, computed, **tolerance)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("spare", SPARES)
def test_sample_does_not_depend_on_its_batch_mates(subject, scope, spare):
    with attach(subject.source, make_recipe((scope, spare, True), capacity=0.25)) as session:
        together, alone = (call(session, subject.network, 0, batch=batch) for batch in (3, 1))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_another_batch_and_size_between_two_runs_change_nothing(subject, recipe):
    with attach(subject.source, recipe) as session:
        first = subject.run(session)
        assert subject.run(session, batch=1, size=OTHER_SIZE).isfinite().all()
        assert torch.equal(subject.run(session), first)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("other", [{"batch": 1}, {"size": OTHER_SIZE}], ids=["batch", "size"])
def test_another_batch_or_size_within_a_run_is_computed_anew(subject, scope, other):
    recipe = make_recipe((scope, "pad", True))
    with attach(subject.source, recipe) as session:
        fresh = call(session, subject.network, 0, **other), call(session, subject.network, 0)
        assert torch.equal(call(session, subject.network, 1, total=100, **other), fresh[0])
        assert torch.equal(call(session, subject.network, 2, total=100), fresh[1])


@pytest.mark.parametrize("step", [0, 1], ids=["at a checkpoint", "at a reuse"])
def test_failed_run_leaves_nothing_behind(subject, recipe, step):
    with attach(subject.source, recipe) as session:
        expected = subject.run(session)
    before, unpatched = anatomy(subject.network), subject.run()
    with attach(subject.source, recipe) as session:
        with failing(session.sites[1].attention, step), pytest.raises(Interrupted):
            subject.run(session, size=OTHER_SIZE)
        assert torch.equal(subject.run(session), expected)
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)


def test_with_block_detaches_when_the_run_fails(subject, recipe):
    before, unpatched = anatomy(subject.network), subject.run()
    with pytest.raises(Interrupted), attach(subject.source, recipe) as session, failing(session.sites[1].attention, 1):
        subject.run(session)
    assert anatomy(subject.network) == before
    assert torch.equal(subject.run(), unpatched)


class Interrupted(Exception):
    """What a test throws into a forward pass."""


class failing:
    """Within this block a module fails in the midst of a call; `step` counts its calls from 0."""

    def __init__(self, attention: nn.Module, step: int) -> None:
        self.left = step
        self.handle = attention.to_out[0].register_forward_pre_hook(self._fail)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _fail(self, *_: object) -> None:
        if self.left == 0:
            raise Interrupted
        self.left -= 1


@torch.no_grad()
def call(session, network: nn.Module, step: int, total: int = 3, batch: int = 2, size=(16, 16)) -> Tensor:
    """One call of the network at a step, the same samples however many; of a hundred steps 0 and 66 are checkpoints."""
    session.begin_step(step, total)
    sample = torch.stack([noise(network.config.in_channels, *size, seed=index) for index in range(batch)])
    return predict(network, sample)


@torch.no_grad()
def test_block_computes_what_its_scope_says(variant):
    """The whole block, written out with softmax attention."""
    unet, seen = sd_unet(), {}
    site, text = find_sites(unet)[0], noise(2, 3, unet.config.cross_attention_dim)
    site.block.register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0]))
    with attach(unet, make_recipe(variant, capacity=0.25), sites=[site]) as session:
        site.block.register_forward_hook(lambda _, args, output: seen.update(output=output))
        session.begin_step(0, 3)
        predict(unet, noise(2, 4, 16, 16), encoder_hidden_states=text)
        plan = session.plans()[site.name]
    scope, _, proportional = variant
    bias = plan.size.log() if proportional else (plan.size > 0).log()
    expected = block_by_hand(site.block, seen["tokens"], text, plan, scope, bias[:, None, None])
    torch.testing.assert_close(seen["output"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen["output"], plain_block(site.block, seen["tokens"], text), rtol=1e-2, atol=1e-3)


def block_by_hand(block: nn.Module, tokens: Tensor, text: Tensor, plan: MergePlan, scope: str, bias: Tensor) -> Tensor:
    if scope == "block":
        short = merge(tokens, plan)
        normed = block.norm1(short)
        return tokens + unmerge(rest(block, short, attend(block.attn1, normed, normed, bias), text) - short, plan)
    normed = block.norm1(tokens)
    short = merge(normed, plan)
    if scope == "keys":
        anchors = gather_anchors(normed, plan)
        return rest(block, tokens, attend(block.attn1, normed, short, bias, keys=anchors), text)
    return rest(block, tokens, unmerge(attend(block.attn1, short, short, bias), plan), text)


def plain_block(block: nn.Module, tokens: Tensor, text: Tensor) -> Tensor:
    normed = block.norm1(tokens)
    return rest(block, tokens, attend(block.attn1, normed, normed, torch.zeros(())), text)


def attend(attention: nn.Module, queries: Tensor, values: Tensor, bias: Tensor, keys: Tensor | None = None) -> Tensor:
    projected = attention.to_q(queries), attention.to_k(values if keys is None else keys), attention.to_v(values)
    query, key, value = (rearrange(part, "b n (h d) -> b h n d", h=attention.heads) for part in projected)
    weights = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)
    return attention.to_out[0](rearrange(weights @ value, "b h n d -> b n (h d)"))


def rest(block: nn.Module, tokens: Tensor, attended: Tensor, text: Tensor) -> Tensor:
    tokens = tokens + attended
    tokens = tokens + attend(block.attn2, block.norm2(tokens), text, torch.zeros(()))
    return tokens + block.ff(block.norm3(tokens))
