"""The very code of `examples/`, on tiny models."""

import re
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from catome import sessions
from catome_core import TokenGrid
from examples import features, flux, own_block, sdxl, serving, wan
from zoo.encoders import ENCODERS
from zoo.noise import noise, seeded
from zoo.transformer_pipelines import LATENT, PIPELINES, SQUARE, network
from zoo.unet_pipelines import sdxl_pipeline
from zoo.vits import VITS, images

FEW = {"num_inference_steps": 2}
CAT = LATENT | SQUARE | FEW | {"prompt": "a cat"}
FLUX = PIPELINES["Flux, guidance distilled"].options | FEW
READERS = {"timm": (features.timm_features, VITS["ViT"]), "DINOv2": (features.dinov2_features, ENCODERS["Dinov2Model"])}


def test_every_example_is_short_and_run_here():
    modules = (features, flux, own_block, sdxl, serving, wan)
    files = {Path(module.__file__) for module in modules}
    assert files == set(Path(sdxl.__file__).parent.glob("*.py"))
    assert all(file.read_text().count("\n") <= 40 for file in files)


def test_sdxl_draws_another_picture_and_says_where_keys_are_left_out(capsys):
    pipe = sdxl_pipeline()
    unmerged, merged = sdxl.main(pipe, **CAT)
    assert not torch.equal(unmerged, merged)
    assert torch.equal(sdxl.draw(pipe, **CAT), unmerged)
    printed = capsys.readouterr().out
    assert "left out %" in printed
    assert "down_blocks.1" in printed


@pytest.mark.thorough
def test_flux_merges_with_int8_weights_and_only_its_first_picture_compiles(capsys, fresh_compiler):
    pipe, graphs, counted = PIPELINES["Flux"].build(), CompileCounter(), []
    pipe.transformer = network("Flux", in_channels=16, num_layers=1, num_single_layers=1)

    def count(pipe, step, timestep, tensors):
        counted.append(graphs.frame_count)
        return tensors

    pictures = flux.main(pipe, backend=graphs, callback_on_step_end=count, **FLUX)
    assert not torch.equal(pictures[0], pictures[1])
    assert counted[0] >= 2
    assert counted[1:] == [counted[1]] * 5
    assert "Int8" in type(pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__
    assert "left out %" in capsys.readouterr().out


def test_wan_merges_in_a_video(capsys):
    pipe = PIPELINES["Wan"].build()
    # Smaller frames leave out no keys: most of them are near.
    frames = wan.main(pipe, **PIPELINES["Wan"].options | FEW | {"height": 256, "width": 256})
    assert frames.shape[2:] == (3, 32, 32)
    assert "left out %" in capsys.readouterr().out


@pytest.mark.parametrize("name", READERS)
def test_features_keep_their_shape(name, capsys):
    read, kind = READERS[name]
    unmerged, merged = features.main(kind.network(), read, images())
    assert merged.shape == unmerged.shape
    assert not torch.equal(merged, unmerged)
    assert "cosine to the unmerged ones" in capsys.readouterr().out


def test_blocks_of_ones_own_merge(capsys):
    with seeded():
        own_block.main(noise(2, 1, 16).expand(-1, 64, -1) + 0.1 * noise(2, 64, 16), TokenGrid((8, 8)), steps=3)
    assert capsys.readouterr().out == "75% of the tokens merged\n" * 3


def test_serving_keeps_a_session_for_each_model_and_any_size(capsys):
    models = {"sdxl": (sdxl_pipeline(), "fast"), "flux": (PIPELINES["Flux"].build(), "close")}
    wide = CAT | {"height": 48}
    images = [*serving.main(models, [("sdxl", CAT), ("flux", FLUX), ("sdxl", wide)])]
    assert [image.shape[-2:] for image in images] == [(16, 16), (64, 16), (24, 16)]
    printed = capsys.readouterr().out
    assert re.findall(r"^.*, \d+ x \d+:$", printed, re.MULTILINE) == [
        "sdxl, 32 x 32:",
        "flux, 32 x 32:",
        "sdxl, 48 x 32:",
    ]
    assert [one for pipe, _ in models.values() for one in sessions(pipe)] == []
