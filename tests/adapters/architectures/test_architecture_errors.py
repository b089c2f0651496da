"""Whatever cannot work on a transformer is refused with the reason and the remedy, and is never silently wrong."""

from typing import Any

import pytest
import torch
from diffusers import AnyFlowFARTransformer3DModel, LatteTransformer3DModel, MochiTransformer3DModel
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.architectures.find import find_candidates
from probes import anatomy
from running import make_recipe
from zoo.architecture import Architecture
from zoo.noise import noise
from zoo.packed_images import REFERENCES
from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")


def refuse(subject: Architecture, message: str, **changes: Any) -> None:
    """A session on the architecture does not take such a call."""
    network = subject.network()
    with attach(network, make_recipe()) as session:
        session.begin_step(0, 2)
        with pytest.raises(ValueError, match=message):
            subject.call(network, **changes)


REFUSED = [(name, scope) for name, subject in ALL_ARCHITECTURES.items() for scope in subject.refused]


@pytest.mark.parametrize(("name", "scope"), REFUSED)
def test_scope_that_cannot_work_is_refused_on_attach(name, scope):
    network = ALL_ARCHITECTURES[name].network()
    before = anatomy(network)
    with pytest.raises(ValueError, match=f"transformer_blocks.0: cannot merge in scope='{scope}': .*; use scope="):
        attach(network, MergeRecipe(scope=scope))
    assert anatomy(network) == before


def test_video_without_sizes_is_an_error():
    """As a pipeline calls it that conditions on frames, with coordinates instead."""
    subject = ARCHITECTURES["LTX"]
    network, tokens = subject.network(), torch.Size(subject.sizes[0]).numel()
    coordinates = noise(2, 3, tokens)
    sizes = dict.fromkeys(("num_frames", "height", "width"))
    assert subject.call(network, **sizes, video_coords=coordinates).isfinite().all()
    refuse(subject, r"\(None, None, None\); expected numbers", **sizes, video_coords=coordinates)


@pytest.mark.thorough
def test_positions_of_another_grid_stop_a_compiled_network():
    """As many tokens in another shape would not compile it anew; AOT autograd drops what has no effect."""
    subject = ARCHITECTURES["Flux"]
    network = subject.shallow()
    with attach(network, make_recipe()) as session:
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        session.begin_step(0, 2)
        first = subject.call(compiled, size=(4, 8))
        session.begin_step(0, 2)
        with pytest.raises(RuntimeError, match=r"not those of the 4 x 8 grid .* call torch.compiler.reset\(\)"):
            subject.call(compiled, size=(8, 4))
        session.begin_step(0, 2)
        assert torch.equal(subject.call(compiled, size=(4, 8)), first)


@pytest.mark.parametrize("ids", ["reference first", "column missing"])
def test_positions_that_are_no_grid_are_an_error(ids):
    subject = ALL_ARCHITECTURES["Flux Kontext"]
    positions = subject.inputs()["img_ids"]
    wrong = positions.clone()
    wrong[0] = positions[-1] if ids == "reference first" else torch.tensor([0.0, 0.0, 20.0])
    refuse(subject, "expected a full grid in raster order", img_ids=wrong)


def test_interleaved_references_are_an_error():
    subject = ALL_ARCHITECTURES["Flux Kontext"]
    positions = subject.inputs()["img_ids"]
    mixed = torch.cat([positions[:5], positions[-REFERENCES:], positions[5:-REFERENCES]])
    refuse(subject, "in front of all other tokens", img_ids=mixed)


def test_keys_of_references_kept_over_steps_are_an_error():
    subject = ALL_ARCHITECTURES["Flux.2 with a reference"]
    options = {"kv_cache_mode": "extract", "num_ref_tokens": REFERENCES}
    assert subject.call(subject.network(), **options).isfinite().all()
    refuse(subject, r"kv_cache_mode='extract'.*or detach the session", **options)


@pytest.mark.parametrize("mode", ["write", "read"])
def test_keys_of_a_picture_to_edit_are_an_error(mode):
    """The pipeline of GLM-Image passes the caches in any case; without a picture they have no mode."""
    subject = ALL_ARCHITECTURES["GLM-Image"]
    caches = GlmImageKVCache(num_layers=2)
    with attach(network := subject.network(), make_recipe()) as session:
        session.begin_step(0, 2)
        expected = subject.call(network)
        for harmless in (None, "skip"):
            caches.set_mode(harmless)
            session.begin_step(0, 2)
            assert torch.equal(subject.call(network, kv_caches=caches), expected)
    caches.set_mode(mode)
    refuse(subject, rf"kv_caches of mode='{mode}'.*or detach the session", kv_caches=caches)


def test_sparse_attention_between_blocks_of_tokens_is_an_error():
    """As the pipeline calls Kandinsky 5 where its config says nabla."""
    sparse = {"sta_mask": torch.ones(1, 1, 3, 3), "to_fractal": True, "P": 0.9}
    refuse(ALL_ARCHITECTURES["Kandinsky 5"], r"sparse_params=None.*or detach the session", sparse_params=sparse)


def test_blocks_of_text_alone_are_no_sites():
    candidates = find_candidates(ALL_ARCHITECTURES["Kandinsky 5"].network())
    assert [one.reason for one in candidates if one.name.startswith("text")] == [
        "Kandinsky5TransformerEncoderBlock takes text alone, which has no grid"
    ]


def test_attention_to_cached_frames_is_no_site():
    options = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "freq_dim": 8}
    network = AnyFlowFARTransformer3DModel(**options, in_channels=4, out_channels=4, text_dim=8)
    assert [(one.name, "cached keys" in one.reason) for one in find_candidates(network)] == [("blocks.0", True)]


def test_images_of_two_sizes_in_a_batch_are_an_error():
    shapes = [[(1, 4, 8)], [(1, 8, 4)]]
    refuse(ARCHITECTURES["Qwen-Image"], "expected images of one size", size=(4, 8), img_shapes=shapes)


def test_attention_to_every_sample_by_itself_is_no_site():
    network = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=8,
        time_embed_dim=8,
        max_sequence_length=Architecture.text,
    )
    assert find_sites(network) == []
    assert {candidate.name for candidate in find_candidates(network)} == {
        "transformer_blocks.0",
        "transformer_blocks.1",
    }
    with pytest.raises(ValueError, match=r"MochiTransformerBlock attends to every sample by itself"):
        attach(network)


def test_blocks_within_frames_and_over_them_are_no_sites():
    network = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, caption_channels=8
    )
    assert find_sites(network) == []
    assert {candidate.name for candidate in find_candidates(network)} == {
        "transformer_blocks.0",
        "temporal_transformer_blocks.0",
    }
    with pytest.raises(ValueError, match=r"LatteTransformer3DModel attends within every frame and over frames"):
        attach(network)
