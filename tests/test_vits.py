"""timm's vision transformers: every kind, every scope, against the model's own blocks on merged tokens."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from timm import layers
from timm.models.cait import Cait
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from timm.models.xcit import Xcit
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from catome_adapters import RECIPES, MergeRecipe, MergeSession, attach, find_sites
from catome_adapters.prediction import predict_site
from catome_core import AdaptiveMerge, CheckpointSchedule, MergePlan, TokenGrid
from models import anatomy
from scopes import SCOPES
from vits import SIZES, VITS, Vit, images, run_block

SOME = ("ViT", "DINOv3", "RoPE mixed", "BEiT")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(params=VITS)
def vit(request) -> Vit:
    return VITS[request.param]


@pytest.fixture
def network(vit) -> nn.Module:
    return vit.network()


@pytest.fixture(params=SCOPES)
def scope(request) -> str:
    return request.param


def make_recipe(scope: str, *, spare: str = "fill", capacity: float = 0.25, **options: Any) -> MergeRecipe:
    """By default about half of the pairs of tokens are above the threshold, so that padding is real."""
    policy = AdaptiveMerge(options.pop("threshold", 0.3), capacity, spare=spare)
    return MergeRecipe(policy, scope=scope, levels="all", **options)


class Watch:
    """Sees what goes into one module, before a session changes it, and what comes out after."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        module.register_forward_pre_hook(self._see_input)

    def watch_output(self) -> None:
        self.module.register_forward_hook(self._see_output)

    def _see_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.tokens = args[0]

    def _see_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self.merged, self.output = args[0], output


class Kernels(TorchFunctionMode):
    """Counts the keys of every fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[int] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.keys.append((args[1] if len(args) > 1 else kwargs["key"]).shape[-2])
        return func(*args, **(kwargs or {}))


# Sites.


def test_every_block_is_a_site_with_its_grid_and_its_prefix(vit, network):
    sites = find_sites(network)
    assert [site.name for site in sites] == [f"blocks.{index}" for index in range(len(network.blocks))]
    assert {site.shape for site in sites} == {(8, 8)}
    assert {site.prefix for site in sites} == {vit.prefix}
    assert not any(site.stepped for site in sites)


def make_with(block: type[nn.Module]) -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, block_fn=block)


def make_differential() -> VisionTransformer:
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, attn_layer="diff")


def make_talking_heads() -> Cait:
    return Cait(img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5)


def make_unfused() -> VisionTransformer:
    layers.set_fused_attn(False)
    try:
        return VITS["ViT"].network()
    finally:
        layers.set_fused_attn(True)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: make_with(ParallelScalingBlock), "ParallelScalingBlock has no self-attention `attn` over tokens `x`"),
        (lambda: make_with(ParallelThingsBlock), "ParallelThingsBlock has no self-attention `attn`"),
        (lambda: make_with(DiffParallelScalingBlock), "DiffParallelScalingBlock has no self-attention `attn`"),
        (make_differential, "DiffAttention subtracts two attentions"),
        (make_talking_heads, "TalkingHeadAttn does not call scaled_dot_product_attention"),
        (make_unfused, r"Attention does not call scaled_dot.*set its fused_attn = True"),
    ],
)
def test_block_that_cannot_be_told_is_refused_with_the_reason(make, reason):
    network = make()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf"(?s)no place to merge tokens.*blocks\.0: {reason}"):
        attach(network, RECIPES["vit"])
    assert anatomy(network) == before


def test_attention_over_channels_is_no_site():
    network = Xcit(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, cls_attn_layers=1)
    with pytest.raises(ValueError, match="no place to merge tokens in Xcit"):
        attach(network, RECIPES["vit"])


def test_attention_that_stops_being_fused_is_an_error(scope):
    network = VITS["BEiT"].network()
    with attach(network, make_recipe(scope)):
        network.blocks[1].attn.fused_attn = False
        with pytest.raises((ValueError, RuntimeError), match=r"blocks\.1: Attention did not call|must match the size"):
            VITS["BEiT"].call(network)


# Against the model's own blocks.


@pytest.mark.parametrize(("spare", "proportional"), list(product(("pad", "fill"), (True, False))))
def test_block_runs_on_merged_tokens_at_the_positions_of_their_anchors(vit, network, spare, proportional):
    watch = Watch(network.blocks[1])
    with attach(network, make_recipe("block", spare=spare, proportional=proportional)) as session:
        watch.watch_output()
        vit.call(network)
        plan = session.plans()["blocks.1"]
    for sample in range(2):
        expected = run_merged(network, 1, watch.tokens[sample], sample_of(plan, sample), proportional)
        torch.testing.assert_close(watch.output[sample], expected, rtol=1e-4, atol=1e-5)


def sample_of(plan: MergePlan, sample: int) -> MergePlan:
    return MergePlan(*(part[sample] for part in plan[:3]))


def run_merged(network: nn.Module, index: int, tokens: Tensor, plan: MergePlan, proportional: bool) -> Tensor:
    """One sample through a block on its real slots: every token keeps itself and takes the change of its slot."""
    real = range(int((plan.size > 0).sum()))
    slots = torch.stack([tokens[plan.slot == slot].mean(0) for slot in real])
    bias = plan.size[: len(real)].log() * proportional
    changed = run_block(network, index, slots[None], plan.anchor[: len(real)], bias)[0]
    return tokens + (changed - slots)[plan.slot]


@pytest.mark.parametrize("name", ["BEiT", "BEiT shared"])
def test_keys_scope_takes_columns_of_relative_positions_and_keeps_their_rows(name):
    network = VITS[name].network()
    attention = network.blocks[1].attn
    watch = Watch(attention)
    with attach(network, make_recipe("keys")) as session:
        watch.watch_output()
        VITS[name].call(network)
        plan = session.plans()["blocks.1"]
    relative = attention._get_rel_pos_bias() if name == "BEiT" else network.rel_pos_bias()[None]
    expected = [
        attend_to_slots(attention, relative[0], watch.tokens[sample], sample_of(plan, sample)) for sample in range(2)
    ]
    torch.testing.assert_close(watch.output, torch.stack(expected), rtol=1e-4, atol=1e-5)


def attend_to_slots(attention: Any, relative: Tensor, tokens: Tensor, plan: MergePlan) -> Tensor:
    """Every token attends to the anchors' keys, as many times as a slot has tokens, and to the mean of its values."""
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    split = nn.functional.linear(tokens, attention.qkv.weight, bias).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = split.permute(1, 2, 0, 3)
    scores = query @ key.mT[..., plan.anchor] * attention.scale + relative[..., plan.anchor] + plan.size.log()
    means = torch.stack([value[:, plan.slot == slot].mean(1) for slot in range(len(plan.size))], 1)
    return attention.proj((scores.softmax(-1) @ means).transpose(0, 1).flatten(1))


def test_prefix_tokens_never_merge_and_enter_the_block_untouched(vit, network):
    watch = Watch(network.blocks[1])
    with attach(network, make_recipe("block", capacity=0.0)) as session:
        watch.watch_output()
        vit.call(network)
        plan = session.plans()["blocks.1"]
    assert watch.merged.shape[1] == vit.prefix + 16
    assert torch.equal(watch.merged[:, : vit.prefix], watch.tokens[:, : vit.prefix])
    assert torch.equal(plan.slot[:, : vit.prefix], torch.arange(vit.prefix).expand(2, -1))
    assert (plan.size[:, : vit.prefix] == 1).all()


def test_a_mask_of_the_caller_becomes_that_of_the_anchors():
    network, length = VITS["ViT"].network(), 65
    mask = torch.rand(length, length, generator=torch.Generator().manual_seed(0))
    watch = Watch(network.blocks[1])
    with attach(network, make_recipe("block", proportional=False)) as session:
        watch.watch_output()
        network.forward_features(images(1), attn_mask=mask)
        plan = sample_of(session.plans()["blocks.1"], 0)
    slots = torch.stack([watch.tokens[0, plan.slot == slot].mean(0) for slot in range(len(plan.size))])[None]
    expected = network.blocks[1].forward(slots, attn_mask=mask[plan.anchor][:, plan.anchor])
    changed = (expected - slots)[0]
    torch.testing.assert_close(watch.output[0], watch.tokens[0] + changed[plan.slot], rtol=1e-4, atol=1e-5)


# Life.


def test_dense_features_keep_their_length_and_change(vit, network, scope):
    features, intermediates = network.forward_intermediates(images(), output_fmt="NLC")
    logits = network(images())
    with attach(network, make_recipe(scope)):
        merged, merged_intermediates = network.forward_intermediates(images(), output_fmt="NLC")
        merged_logits = network(images())
    pairs = [(merged, features), (merged_logits, logits), *zip(merged_intermediates, intermediates, strict=True)]
    for changed, unpatched in pairs:
        assert changed.shape == unpatched.shape and changed.isfinite().all()
        assert not torch.allclose(changed, unpatched, rtol=1e-3, atol=1e-4)


def test_a_place_for_every_source_is_the_unpatched_model_bit_by_bit(vit, network, scope):
    unpatched = vit.call(network)
    with attach(network, make_recipe(scope, threshold=1.0, capacity=1.0)):
        assert torch.equal(vit.call(network), unpatched)


def test_attention_stays_fused_and_sees_the_slots(vit, network, scope):
    with attach(network, make_recipe(scope)) as session, Kernels() as kernels:
        vit.call(network)
        slots = [row.slots for row in session.summary().rows]
    assert kernels.keys == slots == [vit.prefix + 16 + 16] * 3


def test_every_call_recomputes_and_no_step_is_asked_for(vit, network, scope):
    with attach(network, make_recipe(scope)):
        fresh = vit.call(network, seed=1)
    with attach(network, make_recipe(scope)) as session:
        vit.call(network, batch=3)
        assert torch.equal(vit.call(network, seed=1), fresh)
        assert session.summary().checkpoints == (0,)
        assert {row.step for row in session.summary().rows} == {0}
        assert len(session.summary().rows) == 3


def test_told_steps_reuse_pairs_as_for_the_frames_of_a_film():
    vit, network = VITS["ViT"], VITS["ViT"].network()
    with attach(network, make_recipe("block", schedule=CheckpointSchedule((0,), of=10))) as session:
        frames = []
        for step, seed in enumerate((0, 0, 1)):
            session.begin_step(step, 10)
            frames.append(vit.call(network, seed=seed))
        assert session.summary().checkpoints == (0,)
        session.begin_step(0, 10)
        assert not torch.equal(vit.call(network, seed=1), frames[2])
    assert torch.equal(*frames[:2])


def test_other_image_size_merges_on_its_own_grid(vit, scope):
    network = vit.network(img_size=SIZES[1])
    with attach(network, make_recipe(scope)) as session:
        assert vit.call(network, size=SIZES[1]).isfinite().all()
        assert "6 x 10" in session.report()


@pytest.mark.parametrize("name", ["ViT", "DINOv2 registers", "DINOv3", "RoPE mixed", "SigLIP"])
def test_images_of_any_size(name, scope):
    vit, network = VITS[name], VITS[name].network(dynamic_img_size=True)
    with attach(network, make_recipe(scope)) as session:
        for size in (*SIZES, (20, 28)):
            assert vit.call(network, size=size).shape[1] == vit.prefix + size[0] * size[1] // 16
            assert f"{size[0] // 4} x {size[1] // 4}" in session.report()


def test_dropped_patches_are_refused():
    network = VITS["ViT"].network(patch_drop_rate=0.5).train()
    with attach(network, make_recipe("block")), pytest.raises(ValueError, match=r"got 33 tokens.*grid of 8 x 8"):
        network(images())


def test_detach_restores_exactly(vit, network, scope):
    before, unpatched = anatomy(network), vit.call(network)
    with attach(network, make_recipe(scope)):
        vit.call(network)
        assert list(network.state_dict()) == before["state_dict"]
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, make_recipe(scope))
    assert anatomy(network) == before
    assert torch.equal(vit.call(network), unpatched)


def test_a_sample_does_not_depend_on_its_batch_mates(vit, network, scope):
    with attach(network, make_recipe(scope)):
        together, alone = (vit.call(network, batch=batch) for batch in (3, 1))
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


# Recipes.


def test_recipe_for_vits_is_one_line(vit, network):
    with attach(network, RECIPES["vit"]) as session:
        assert vit.call(network).isfinite().all()
        assert [row.slots for row in session.summary().rows] == [vit.prefix + 32] * 3


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (RECIPES["default"], "policy.capacity is None"),
        (RECIPES["paper"], "policy.capacity is None"),
        (replace(RECIPES["vit"], metric="output"), "metric='output' merges after the first step"),
        (replace(RECIPES["vit"], during=(0.2, 1.0)), "during is a part of the run"),
    ],
)
def test_recipe_that_waits_for_later_steps_is_refused(recipe, reason):
    network = VITS["ViT"].network()
    before = anatomy(network)
    with pytest.raises(ValueError, match=rf'blocks\.0 .*{reason}.*RECIPES\["vit"\]'):
        attach(network, recipe)
    assert anatomy(network) == before


def test_segment_closes_the_features_between_its_blocks_until_detach(vit, network):
    with attach(network, make_recipe("block", segment=2)):
        assert vit.call(network).shape == (2, vit.prefix + 64, 24)
        with pytest.raises(ValueError, match=r"tokens are merged \(blocks.0 to 1\)"):
            network.forward_intermediates(images())
    assert len(network.forward_intermediates(images(), intermediates_only=True)) == 3


def test_a_model_without_steps_is_predicted_to_match_in_every_call_whatever_the_schedule():
    site = find_sites(VITS["ViT"].network())[0]
    grid, seldom, always = TokenGrid((8, 8), 2, 1), CheckpointSchedule((0,), of=50), CheckpointSchedule.every(1, 50)

    def overhead(stepped: bool, schedule: CheckpointSchedule) -> float:
        recipe = make_recipe("block", schedule=schedule)
        return predict_site(replace(site, stepped=stepped), recipe, grid).overhead

    assert overhead(False, seldom) == overhead(False, always) == overhead(True, always)
    assert overhead(True, seldom) < overhead(False, seldom)


# Training.


def backward(network: nn.Module, session: MergeSession) -> Tensor:
    with torch.enable_grad():
        network.zero_grad()
        network(images()).square().sum().backward()
    return network.blocks[0].mlp.fc1.weight.grad.clone()


@pytest.mark.parametrize("name", SOME)
def test_gradient_checkpointing_gives_the_same_gradients(name, scope):
    network = VITS[name].network()
    with attach(network, make_recipe(scope)) as session:
        expected = backward(network, session)
        network.set_grad_checkpointing()
        torch.testing.assert_close(backward(network, session), expected)


def test_gradient_checkpointing_of_a_segment_is_refused():
    network = VITS["ViT"].network()
    network.set_grad_checkpointing()
    refused = pytest.raises(ValueError, match="gradient checkpointing")
    with attach(network, make_recipe("block", segment=2)), torch.enable_grad(), refused:
        network(images())


# Compile.


@pytest.mark.parametrize("name", SOME)
def test_whole_model_compiles_to_one_graph_and_one_for_the_first_call(name, scope):
    network, counter = VITS[name].network(), CompileCounter()
    with attach(network, make_recipe(scope)):
        expected = [network(images(seed=seed)) for seed in range(3)]
    with attach(network, make_recipe(scope)):
        compiled = torch.compile(network, backend=counter, fullgraph=True)
        for seed in range(3):
            torch.testing.assert_close(compiled(images(seed=seed)), expected[seed], rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2
