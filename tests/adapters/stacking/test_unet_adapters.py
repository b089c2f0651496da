"""LoRA and IP-Adapters of a pipeline around a UNet."""

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from catome_adapters import attach
from catome_core import CheckpointSchedule
from changes import add_unet_lora
from running import unet_recipe
from tiers import tiered
from zoo.noise import noise
from zoo.unet_pipelines import picture, sd_pipeline
from zoo.unets import TEXT_WIDTH, predict, sd_unet


def test_lora_of_a_pipeline_can_be_loaded_scaled_and_unloaded_under_a_session(tmp_path):
    donor, pipe = sd_pipeline(), sd_pipeline()
    add_unet_lora(donor.unet)
    donor.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(donor.unet))
    with attach(pipe, unet_recipe()):
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


@torch.no_grad()
def test_keys_of_a_lora_that_comes_after_the_session_are_those_of_anchors_without_steps_too():
    results = []
    for first in (True, False):
        unet = sd_unet()
        if first:
            add_unet_lora(unet)
        with attach(unet, unet_recipe("keys", capacity=0.25, schedule=CheckpointSchedule.every(1, 10))):
            if not first:
                add_unet_lora(unet)
            results.append(predict(unet, noise(1, 4, 16, 16)))
    assert torch.equal(*results)


@pytest.mark.parametrize("when", tiered(["before", "after"], ["after"]))
def test_ip_adapter_replaces_every_processor_and_the_session_survives(scope, when):
    pipe, alone, recipe = sd_pipeline(), sd_pipeline(), unet_recipe(scope)
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
