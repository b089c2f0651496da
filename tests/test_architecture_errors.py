"""What cannot work on a transformer says so, with the reason and the remedy, and is never silently wrong."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import MochiTransformer3DModel

from architectures import ARCHITECTURES, TEXT, Architecture
from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.surveying import survey
from catome_core import AdaptiveMerge
from models import anatomy, noise
from subjects import REFERENCES, SUBJECTS

RECIPE = MergeRecipe(AdaptiveMerge(0.0, 0.25), levels="all")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def call(subject: Architecture, network: Any, size: Any = None, **changes: Any) -> torch.Tensor:
    size = size or subject.sizes[0]
    inputs = subject.inputs(noise(*subject.sample(2, size)), size) | changes
    return network(**inputs, return_dict=False)[0]


def refuse(subject: Architecture, message: str, size: Any = None, **changes: Any) -> None:
    """A session on the architecture does not take such a call."""
    network = subject.network()
    with attach(network, RECIPE) as session:
        session.begin_step(0, 2)
        with pytest.raises(ValueError, match=message):
            call(subject, network, size, **changes)


REFUSED = [(name, scope) for name, subject in SUBJECTS.items() for scope in subject.refused]


@pytest.mark.parametrize(("name", "scope"), REFUSED)
def test_scope_that_cannot_work_is_refused_on_attach(name, scope):
    network = SUBJECTS[name].network()
    before = anatomy(network)
    with pytest.raises(ValueError, match=f"transformer_blocks.0 cannot merge in scope='{scope}': .*; use scope="):
        attach(network, MergeRecipe(scope=scope))
    assert anatomy(network) == before


def test_video_without_sizes_is_an_error():
    """As a pipeline calls it that conditions on frames, with coordinates instead."""
    subject = ARCHITECTURES["LTX"]
    network, tokens = subject.network(), torch.Size(subject.sizes[0]).numel()
    coordinates = noise(2, 3, tokens)
    sizes = dict.fromkeys(("num_frames", "height", "width"))
    assert call(subject, network, **sizes, video_coords=coordinates).isfinite().all()
    refuse(subject, r"\(None, None, None\); expected numbers", **sizes, video_coords=coordinates)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_positions_of_another_grid_stop_a_compiled_network(backend):
    """As many tokens in another shape would not compile it anew."""
    subject = ARCHITECTURES["Flux"]
    network = subject.network(num_layers=1, num_single_layers=1)
    with attach(network, RECIPE) as session:
        compiled = torch.compile(network, fullgraph=True, backend=backend)
        session.begin_step(0, 2)
        first = call(subject, compiled, (4, 8))
        session.begin_step(0, 2)
        with pytest.raises(RuntimeError, match=r"not those of the 4 x 8 grid .* call torch.compiler.reset\(\)"):
            call(subject, compiled, (8, 4))
        session.begin_step(0, 2)
        assert torch.equal(call(subject, compiled, (4, 8)), first)


@pytest.mark.parametrize("ids", ["reference first", "column missing"])
def test_positions_that_are_no_grid_are_an_error(ids):
    subject = SUBJECTS["Flux Kontext"]
    size = subject.sizes[0]
    positions = subject.inputs(noise(*subject.sample(2, size)), size)["img_ids"]
    wrong = positions.clone()
    wrong[0] = positions[-1] if ids == "reference first" else torch.tensor([0.0, 0.0, 20.0])
    refuse(subject, "expected a full grid in raster order", img_ids=wrong)


def test_interleaved_references_are_an_error():
    subject = SUBJECTS["Flux Kontext"]
    size = subject.sizes[0]
    positions = subject.inputs(noise(*subject.sample(2, size)), size)["img_ids"]
    mixed = torch.cat([positions[:5], positions[-REFERENCES:], positions[5:-REFERENCES]])
    refuse(subject, "in front of all other tokens", img_ids=mixed)


def test_keys_of_references_kept_over_steps_are_an_error():
    subject = SUBJECTS["Flux.2 with a reference"]
    options = {"kv_cache_mode": "extract", "num_ref_tokens": REFERENCES}
    assert call(subject, subject.network(), **options).isfinite().all()
    refuse(subject, r"kv_cache_mode='extract'.*or detach the session", **options)


def test_images_of_two_sizes_in_a_batch_are_an_error():
    shapes = [[(1, 4, 8)], [(1, 8, 4)]]
    refuse(ARCHITECTURES["Qwen-Image"], "expected images of one size", (4, 8), img_shapes=shapes)


def test_attention_to_every_sample_by_itself_is_no_site():
    network = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=8,
        time_embed_dim=8,
        max_sequence_length=TEXT,
    )
    assert find_sites(network) == []
    assert {place.name for place in survey(network)} == {"transformer_blocks.0", "transformer_blocks.1"}
    with pytest.raises(ValueError, match=r"MochiTransformerBlock attends to every sample by itself"):
        attach(network)
