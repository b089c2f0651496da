"""The shipped DiT: what sets it apart from the UNet beside it, and merging in its blocks."""

import json

import pytest
import torch
from torch import Tensor

from catome_adapters import MergeRecipe, attach, find_sites
from catome_bench.models import load_shipped
from catome_bench.models.photographs import CLASS_NAMES
from catome_bench.models.pipeline import ClassConditionalDiTPipeline
from catome_bench.models.weights import SHIPPED
from catome_core import AdaptiveMerge

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def pipeline():
    pipe = load_shipped("dit")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: ClassConditionalDiTPipeline, *classes: str, seed: int = 0, **options: float) -> Tensor:
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(classes))]
    return pipe(classes, **{"size": 32, "num_inference_steps": 3} | options, generator=generators)


def half(**changes) -> MergeRecipe:
    return MergeRecipe(AdaptiveMerge(threshold=-1, capacity=0.25, spare="fill"), levels="top", **changes)


def test_its_network_is_the_component_that_diffusers_calls_transformer():
    index = json.loads((SHIPPED / "dit" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert "unet" not in index


def test_it_comes_back_from_its_own_folder_layout(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = ClassConditionalDiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(again, "cat"), draw(pipeline, "cat"))


def test_the_same_seed_draws_the_same_picture(pipeline):
    first = draw(pipeline, "cat", seed=1)
    assert torch.equal(draw(pipeline, "cat", seed=1), first)
    assert not torch.equal(draw(pipeline, "cat", seed=2), first)


def test_a_picture_does_not_depend_on_its_batch_mates(pipeline):
    together = draw(pipeline, "cat", "rocket")
    assert torch.allclose(together[1:], draw(pipeline, "rocket", seed=1), atol=1e-5)


def test_guidance_leads_away_from_the_label_that_means_none(pipeline):
    latents = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([len(CLASS_NAMES), CLASS_NAMES.index("cat")])
    time = torch.tensor(500)
    with torch.no_grad():
        none, cat = pipeline.network(latents[:1].expand(2, -1, -1, -1), time.expand(2), labels).sample.chunk(2)
        guided = pipeline._predict(latents[:1], time, pipeline._conditions(labels[1:], 3.0), 3.0)
    assert not torch.allclose(none, cat, atol=1e-2)
    assert torch.allclose(guided, none + 3 * (cat - none), atol=1e-5)


def test_attach_finds_every_block(pipeline):
    assert [site.name for site in find_sites(pipeline)] == [f"transformer_blocks.{index}" for index in range(7)]


def test_a_threshold_of_one_changes_nothing(pipeline):
    unmerged = draw(pipeline, "cat")
    with attach(pipeline, MergeRecipe(AdaptiveMerge(threshold=1.0), levels="top")):
        assert torch.allclose(draw(pipeline, "cat"), unmerged, atol=1e-5)


def test_half_of_the_tokens_draw_nearly_the_same_picture(pipeline):
    """Nearer than another seed of the class; a whole block on half of the tokens, than another class."""
    unmerged = draw(pipeline, "cat", size=64)
    cat, coffee = (draw(pipeline, other, size=64, seed=1) for other in ("cat", "coffee"))
    for scope, different in (("attention", cat), ("keys", cat), ("block", coffee)):
        with attach(pipeline, half(scope=scope)) as session:
            merged = draw(pipeline, "cat", size=64)
            assert session.summary().merged_fraction == 0.5
        assert 0 < (merged - unmerged).square().mean() < (different - unmerged).square().mean()
    assert torch.equal(draw(pipeline, "cat", size=64), unmerged)


def test_the_other_one_has_a_token_per_latent_pixel():
    """And draws what the class says: nearer to its picture with another seed than to that of another class."""
    pipe = load_shipped("dit-patch1")
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.token_pixels, len(find_sites(pipe))) == (2, 7)
    assert {site.shape for site in find_sites(pipe)} == {(64, 64)}
    cat, same, coffee = (draw(pipe, name, seed=seed, size=64) for name, seed in (("cat", 0), ("cat", 1), ("coffee", 1)))
    assert (same - cat).square().mean() < (coffee - cat).square().mean()
