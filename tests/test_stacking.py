"""Beside a session: LoRA, IP-Adapter, ControlNet, other attention processors, training, and other number formats."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_core import AdaptiveMerge, CheckpointSchedule
from models import (
    TEXT_WIDTH,
    CountingMerge,
    anatomy,
    controlnet,
    ddim,
    noise,
    predict,
    sd_pipeline,
    sd_unet,
    sdxl_pipeline,
    seeded,
)

SCOPES = ("attention", "keys", "block")
SCHEDULE = CheckpointSchedule((0, 2), of=3)


def make_recipe(scope: str = "attention", policy: type[AdaptiveMerge] = AdaptiveMerge, **options) -> MergeRecipe:
    return MergeRecipe(policy(**{"threshold": 0.7, "capacity": 0.25} | options), SCHEDULE, scope=scope, levels="all")


@pytest.fixture(params=SCOPES)
def recipe(request) -> MergeRecipe:
    return make_recipe(request.param)


@torch.no_grad()
def run(unet, session=None, **options) -> list[Tensor]:
    """Predictions at a step that recomputes and at one that reuses."""
    predictions = []
    for step in (0, 1):
        if session is not None:
            session.begin_step(step, 3)
        predictions.append(predict(unet, noise(2, 4, 16, 16, seed=step), **options))
    return predictions


def assert_same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 0) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_dtype=False)


def differ(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return any(not torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def picture(pipe, **options) -> Tensor:
    options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"} | options
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **options).images


# What changes the network: the same picture whether it comes before or after the session, and gone when it is gone.


def add_lora(unet) -> None:
    with seeded(1):
        unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))


def fuse_projections(unet) -> None:
    unet.fuse_qkv_projections()


def enable_freeu(unet) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def use_unfused_attention(unet) -> None:
    unet.set_attn_processor(AttnProcessor())


def slice_attention(unet) -> None:
    unet.set_attention_slice("max")


PROCESSORS = {"fused": AttnProcessor2_0, "unfused": AttnProcessor, "sliced": partial(SlicedAttnProcessor, 1)}
CHANGES = [add_lora, fuse_projections, enable_freeu, use_unfused_attention, slice_attention]


@pytest.mark.parametrize("change", CHANGES)
def test_change_before_and_after_attach_is_the_same(recipe, change):
    if change is fuse_projections and recipe.scope == "keys":
        pytest.skip("refused: see test_keys_refuse_fused_projections_and_the_remedy_works")
    before, after = sd_unet(), sd_unet()
    change(before)
    with attach(before, recipe) as session:
        expected = run(before, session)
    with attach(after, recipe) as session:
        plain = run(after, session)
        change(after)
        changed = run(after, session)
        assert session.summary().merged_fraction > 0.3
    assert_same(changed, expected)
    assert differ(changed, plain) or change not in (add_lora, enable_freeu)
    # Detached, nothing of the session is left: it is the changed network.
    assert_same(run(after), run(before))


@pytest.mark.parametrize("scope", ["attention", "block"])
def test_fused_projections_give_the_same(scope):
    unet = sd_unet()
    with attach(unet, make_recipe(scope)) as session:
        expected = run(unet, session)
        fuse_projections(unet)
        assert_same(run(unet, session), expected, tolerance=1e-4)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("spare", ["pad", "fill"])
@pytest.mark.parametrize("proportional", [True, False])
def test_every_processor_takes_every_mask(processor, spare, proportional):
    unet, recipe = sd_unet(), replace(make_recipe(spare=spare), proportional=proportional)
    with attach(unet, recipe) as session:
        expected = run(unet, session)
        unet.set_attn_processor(PROCESSORS[processor]())
        assert_same(run(unet, session), expected, tolerance=1e-4)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("spare", ["pad", "fill"])
@torch.no_grad()
def test_shared_plan_serves_the_whole_batch(processor, spare):
    unet = sd_unet()
    unet.set_attn_processor(PROCESSORS[processor]())
    sample, text = noise(1, 4, 16, 16), noise(1, 3, TEXT_WIDTH)
    with attach(unet, make_recipe(spare=spare, shared=True)) as session:
        session.begin_step(0, 3)
        alone = predict(unet, sample, encoder_hidden_states=text)
        session.begin_step(0, 3)
        twins = predict(unet, sample.expand(2, -1, -1, -1), encoder_hidden_states=text.expand(2, -1, -1))
    assert_same(list(twins), [alone[0]] * 2, tolerance=1e-4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_keys_refuse_fused_projections_and_the_remedy_works(when):
    unet, recipe = sd_unet(), make_recipe("keys")
    with attach(unet, recipe) as session:
        expected = run(unet, session)
    if when == "before":
        fuse_projections(unet)
    with attach(unet, recipe) as session:
        if when == "after":
            fuse_projections(unet)
        with pytest.raises(ValueError, match=r"fused projections.*unfuse_qkv_projections\(\).*scope='attention'"):
            run(unet, session)
        unet.unfuse_qkv_projections()
        assert_same(run(unet, session), expected)


def test_lora_of_a_pipeline_can_be_loaded_scaled_and_unloaded_under_a_session(tmp_path):
    donor, pipe = sd_pipeline(), sd_pipeline()
    add_lora(donor.unet)
    donor.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(donor.unet))
    with attach(pipe, make_recipe()):
        plain = picture(pipe)
        pipe.load_lora_weights(tmp_path)
        full = picture(pipe)
        pipe.set_adapters(pipe.get_active_adapters(), 0.0)
        switched_off = picture(pipe)
        pipe.unload_lora_weights()
        unloaded = picture(pipe)
    assert not torch.equal(full, plain)
    assert torch.equal(switched_off, plain) and torch.equal(unloaded, plain)


def ip_adapter_weights(unet) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter of random weights: four image tokens, keys and values for every cross-attention."""
    widths = [module.to_k.out_features for name, module in unet.named_modules() if name.endswith("attn2")]
    layers = {
        f"{2 * index + 1}.to_{part}_ip.weight": noise(width, TEXT_WIDTH, seed=index)
        for index, width in enumerate(widths)
        for part in ("k", "v")
    }
    projection = {"proj.weight": noise(4 * TEXT_WIDTH, TEXT_WIDTH), "proj.bias": noise(4 * TEXT_WIDTH)}
    norm = {"norm.weight": torch.ones(TEXT_WIDTH), "norm.bias": torch.zeros(TEXT_WIDTH)}
    return {"image_proj": projection | norm, "ip_adapter": layers}


@pytest.mark.parametrize("when", ["before", "after"])
def test_ip_adapter_replaces_every_processor_and_the_session_survives(recipe, when):
    pipe, alone = sd_pipeline(), sd_pipeline()
    embeds = {"ip_adapter_image_embeds": [noise(2, 1, TEXT_WIDTH)]}
    if when == "before":
        load_ip_adapter(pipe)
    processors = {id(processor) for processor in pipe.unet.attn_processors.values()}
    with attach(pipe, recipe) as session:
        if when == "after":
            load_ip_adapter(pipe)
            assert processors.isdisjoint(map(id, pipe.unet.attn_processors.values()))
        merged = picture(pipe, **embeds)
        assert session.summary().merged_fraction > 0.3
    load_ip_adapter(alone)
    unmerged = picture(alone, **embeds)
    assert torch.equal(picture(pipe, **embeds), unmerged)
    assert not torch.equal(merged, unmerged)
    with attach(alone, recipe):
        assert torch.equal(picture(alone, **embeds), merged)


def load_ip_adapter(pipe) -> None:
    weights = ip_adapter_weights(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)


@pytest.fixture
def guided():
    """A text-to-image pipeline with a ControlNet."""
    unet = sd_unet()
    parts = {"unet": unet, "controlnet": controlnet(unet), "scheduler": ddim()}
    pipe = sd_pipeline(StableDiffusionControlNetPipeline, **parts)
    return pipe, {"image": noise(1, 3, 32, 32).clamp(0, 1)}


def test_sites_of_network_and_controlnet_share_a_session(guided):
    pipe, image = guided
    parts = pipe.unet, pipe.controlnet
    before, unpatched = [anatomy(part) for part in parts], picture(pipe, **image)
    recipe = make_recipe(policy=CountingMerge)
    pictures = []
    for sites in (None, find_sites(pipe.unet) + find_sites(pipe.controlnet)):
        with attach(pipe, recipe, sites=sites) as session:
            pictures.append(picture(pipe, **image))
            assert torch.equal(picture(pipe, **image), pictures[-1])
            assert session.summary().checkpoints == (0, 2)
    assert not torch.equal(pictures[0], unpatched) and not torch.equal(*pictures)
    assert [anatomy(part) for part in parts] == before
    assert torch.equal(picture(pipe, **image), unpatched)


def test_sites_of_network_and_controlnet_have_names_of_their_own(guided):
    pipe, image = guided
    with attach(pipe, make_recipe(), sites=find_sites(pipe.unet) + find_sites(pipe.controlnet)) as session:
        picture(pipe, **image)
        assert len({row.site for row in session.summary().rows}) == len(session.sites)
        assert len(str(session.summary()).splitlines()) == 1 + len(session.sites)


def test_run_with_controlnet_after_an_interrupted_one_and_a_new_scheduler(guided):
    """The ControlNet is called before the network: what it kept of the interrupted run must be gone by then."""
    pipe, image = guided
    sites = find_sites(pipe.unet) + find_sites(pipe.controlnet)
    with attach(pipe, make_recipe(), sites=sites):
        expected = picture(pipe, **image)
    with attach(pipe, make_recipe(), sites=sites):
        with pytest.raises(KeyboardInterrupt):
            picture(pipe, image=1 - image["image"], callback_on_step_end=interrupt)
        pipe.scheduler = ddim()
        assert torch.equal(picture(pipe, **image), expected)


def interrupt(*_):
    raise KeyboardInterrupt


def test_pipeline_of_sdxl_draws_at_its_own_level():
    pipe = sdxl_pipeline()
    unpatched = picture(pipe)
    with attach(pipe, RECIPES["default"]) as session:
        assert {site.level for site in session.sites} == {2}
        merged = picture(pipe)
    assert merged.isfinite().all() and not torch.equal(merged, unpatched)
    assert torch.equal(picture(pipe), unpatched)


# Training.


def gradients(unet, session, *, checkpointing: bool) -> list[Tensor]:
    unet.train()
    unet.zero_grad()
    unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
    session.reset()
    session.begin_step(0, 3)
    predict(unet, noise(1, 4, 16, 16)).square().sum().backward()
    return [parameter.grad.clone() for parameter in unet.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("destination", ["top-left", "random", "rotate"])
def test_gradients_pass_and_survive_gradient_checkpointing(recipe, destination):
    unet = sd_unet()
    recipe = make_recipe(recipe.scope, destination=destination)
    with attach(unet, recipe) as session:
        stored = gradients(unet, session, checkpointing=False)
        assert all(gradient.isfinite().all() for gradient in stored)
        assert any(gradient.any() for gradient in stored)
        assert_same(gradients(unet, session, checkpointing=True), stored, tolerance=1e-4)


# Number formats.


@pytest.mark.parametrize("spare", ["pad", "fill"])
@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_bfloat16_runs_and_merges(recipe, spare, kind):
    unet, recipe = sd_unet(), make_recipe(recipe.scope, spare=spare)
    with attach(unet, recipe) as session:
        exact = run(unet, session)
        if kind == "weights":
            unet.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            rough = run(unet, session)
        assert session.summary().merged_fraction > 0.3
    assert differ([prediction.float() for prediction in rough], exact)
    assert_same(rough, exact, tolerance=0.1)


@torch.no_grad()
def test_leaving_autocast_in_the_midst_of_a_run_recomputes():
    unet, recipe = sd_unet(), make_recipe(policy=CountingMerge)
    with attach(unet, recipe) as session:
        recipe.policy.watch(unet)
        for step in range(4):
            session.begin_step(step, 300)
            with torch.autocast("cpu", torch.bfloat16, enabled=step < 2):
                predict(unet, noise(1, 4, 16, 16))
    assert recipe.policy.recomputed == [0, 2]


# Masks.


@torch.no_grad()
def test_attention_mask_is_refused_with_a_remedy(recipe):
    unet = sd_unet()
    mask = torch.ones(2, 256)
    with attach(unet, recipe) as session:
        session.begin_step(0, 3)
        with pytest.raises(ValueError, match=r"transformer_blocks.0 was given an attention_mask of shape.*detach"):
            predict(unet, noise(2, 4, 16, 16), attention_mask=mask)


def test_mask_over_the_text_is_no_matter(recipe):
    unet = sd_unet()
    mask = {"encoder_attention_mask": torch.tensor([[1, 1, 0]]).expand(2, -1)}
    with attach(unet, recipe) as session:
        masked, open_ = run(unet, session, **mask), run(unet, session)
    assert all(prediction.isfinite().all() for prediction in masked) and differ(masked, open_)


def test_hooks_of_others_stay_where_they_were(recipe):
    unet, seen = sd_unet(), []
    block = find_sites(unet)[0].block
    handle = block.register_forward_hook(lambda *_: seen.append("before"))
    with attach(unet, recipe) as session:
        block.register_forward_hook(lambda *_: seen.append("during"))
        run(unet, session)
    run(unet)
    assert seen == ["before", "during"] * 4
    handle.remove()
    assert isinstance(block, nn.Module) and len(block._forward_hooks) == 1
