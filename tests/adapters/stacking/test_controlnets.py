"""ControlNets beside a session on a transformer."""

from dataclasses import replace
from typing import Any

import pytest
from diffusers import (
    FluxControlNetModel,
    SD3ControlNetModel,
    WanAnimateTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from catome_adapters import attach, find_sites
from running import all_differ, assert_same, make_recipe, run
from tiers import tiered
from zoo.architecture import Architecture, Arguments, Size, image_sample, text_inputs
from zoo.noise import filled, noise, seeded
from zoo.transformers import ARCHITECTURES
from zoo.videos import WAN


def open_ends(controlnet: nn.Module) -> nn.Module:
    """A fresh ControlNet ends in layers of zeros, and would show nothing."""
    return filled(controlnet, "controlnet_", std=0.3).eval()


class Controlled(nn.Module):
    """A network with its ControlNet, as a pipeline calls them."""

    def __init__(self, subject: Architecture) -> None:
        super().__init__()
        self.network = subject.network()
        with seeded(3):
            self.controlnet = open_ends(self.make())


class ControlledFlux(Controlled):
    def make(self) -> nn.Module:
        names = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads")
        names += ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")
        return FluxControlNetModel(**{name: self.network.config[name] for name in names})

    def forward(self, **arguments: Any) -> Any:
        double, single = self.controlnet(**arguments, controlnet_cond=noise(2, 64, 4, seed=9))[:2]
        return self.network(**arguments, controlnet_block_samples=double, controlnet_single_block_samples=single)


class ControlledSD3(Controlled):
    def make(self) -> nn.Module:
        names = ("sample_size", "in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "qk_norm")
        names += ("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")
        return SD3ControlNetModel(**{name: self.network.config[name] for name in names})

    def forward(self, return_dict: bool = True, **arguments: Any) -> Any:
        condition = noise(2, 4, 16, 16, seed=9)
        hints = self.controlnet(**arguments, controlnet_cond=condition, return_dict=False)[0]
        return self.network(**arguments, block_controlnet_hidden_states=hints, return_dict=return_dict)


CONTROLLED = {"Flux": ControlledFlux, "SD3": ControlledSD3}


@pytest.mark.parametrize("name", tiered(CONTROLLED, ["SD3"]))
def test_controlnet_of_a_transformer_and_its_own_sites(recipe, name):
    subject = ARCHITECTURES[name]
    pair = CONTROLLED[name](subject)
    unmerged = run(subject, pair)
    runs = []
    own = find_sites(pair.network)
    for sites in (own, own + find_sites(pair.controlnet)):
        with attach(pair.network, recipe, sites=sites) as session:
            runs.append(run(subject, pair, session))
            assert_same(run(subject, pair, session), runs[-1])
            names = {row.site for row in session.summary().rows}
            assert len(names) == len(sites)
    assert all_differ(runs[0], unmerged) and all_differ(*runs)
    assert_same(run(subject, pair), unmerged)


@pytest.mark.parametrize("name", CONTROLLED)
def test_controlnet_adds_nothing_between_the_blocks_of_a_segment(name):
    subject = ARCHITECTURES[name]
    pair = CONTROLLED[name](subject)
    with attach(pair.network, make_recipe("block", segment=2)) as session:
        expected = run(subject, pair.network, session)
        with pytest.raises(ValueError, match=r"is a segment.*adds \w*controlnet\w* there: use segment=1"):
            run(subject, pair, session)
        assert_same(run(subject, pair.network, session), expected)


def wan_vace(**changes: Any) -> nn.Module:
    config = dict(WAN.build(**changes).config)
    return WanVACETransformer3DModel(**config, vace_layers=[0], vace_in_channels=4)


def wan_animate(**changes: Any) -> nn.Module:
    wan = ("num_attention_heads", "attention_head_dim", "text_dim", "freq_dim", "ffn_dim", "rope_max_seq_len")
    config = {name: WAN.build.keywords[name] for name in wan} | {"num_layers": 2} | changes
    face = {"motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8}
    face |= {"face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2}
    face |= {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}}
    return WanAnimateTransformer3DModel(**config, **face, latent_channels=4, in_channels=12, out_channels=4)


def vace_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {"control_hidden_states": noise(*sample.shape, seed=9)}


def animate_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    # The first frame is a reference, and one frame of the latents is as long as four of the face.
    frames, batch = size[0] - 1, len(sample)
    pose, face = noise(batch, 4, frames, *size[1:], seed=9), noise(batch, 3, 4 * frames - 3, 16, 16, seed=9)
    return text_inputs(sample, size, text) | {"pose_hidden_states": pose, "face_pixel_values": face}


WITH_ADDITIONS = {
    "control_hidden_states": replace(WAN, build=wan_vace, arguments=vace_inputs),
    "face_pixel_values": replace(WAN, build=wan_animate, arguments=animate_inputs, sample=image_sample(12)),
}


@pytest.mark.parametrize("argument", WITH_ADDITIONS)
def test_what_wan_adds_between_blocks_is_refused_by_segments_alone(argument):
    subject = WITH_ADDITIONS[argument]
    network = subject.network()
    unmerged = run(subject, network)
    with (
        attach(network, make_recipe("block", segment=2)) as session,
        pytest.raises(ValueError, match=rf"is a segment.*adds {argument} there: use segment=1"),
    ):
        run(subject, network, session)
    with attach(network, make_recipe("block")) as session:
        assert all_differ(run(subject, network, session), unmerged)
