"""The ComfyUI node against a stand-in of the host."""

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from logging import WARNING
from math import prod
from uuid import UUID

import pytest
import torch
from torch import Tensor, nn

from catome_core import TokenGrid, choose_destinations, dither_offsets
from integrations.stand_in import FOLDER, SIZE, Guider, ModelPatcher, UNet, install, load_node, together
from tiers import tiered

SIGMAS = (10.0, 9.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.0)
REUSE = 5
"""The step of such a run in which the schedule of the named recipes reuses pairs."""
TOKENS = SIZE * SIZE
INPUTS = {"recipe": "default", "share": "as the recipe says", "min_tokens": TOKENS} | {
    "start_percent": 0.0,
    "end_percent": 1.0,
}
NODE = load_node()
RECIPES = NODE.NODE_CLASS_MAPPINGS["CaTome"].INPUT_TYPES()["required"]["recipe"][0]
KINDS = ["default", "todo", "tomesd", "adaptive", "keys"]
"""A recipe of each kind: a lattice that moves or not, tokens that merge always or by threshold, and their keys."""
KINDS_TO_RUN = tiered(KINDS, ["default", "adaptive"])
HALF = (1, 2)
CELLS = {"close": [HALF] * 7, "balanced": [HALF] * 2 + [2] * 5, "fast": [HALF] * 2 + [(2, 4)] * 5, "todo": [2] * 7}
CELLS["default"] = CELLS["balanced"]
"""The cells of a lattice in every step."""
LEFT = {name: [1 / prod(TokenGrid((8, 8), stride).strides) for stride in cells] for name, cells in CELLS.items()}
LEFT["tomesd"] = [1 / 2] * 7
"""The share of the keys that a recipe leaves in every step; those of the others depend on the tokens."""


@pytest.fixture(autouse=True)
def host(monkeypatch) -> None:
    install(monkeypatch)


@pytest.fixture
def model() -> ModelPatcher:
    torch.manual_seed(0)
    return ModelPatcher(UNet().eval())


def patch(model: ModelPatcher, **inputs) -> ModelPatcher:
    (clone,) = NODE.NODE_CLASS_MAPPINGS["CaTome"]().patch(model, **(INPUTS | inputs))
    return clone


def draw(model: ModelPatcher, sigmas=SIGMAS, **options) -> Tensor:
    return Guider(model, **options).sample(sigmas)


def first_block(model: ModelPatcher) -> nn.Module:
    return model.model.diffusion_model.input_blocks[0].blocks[0]


@contextmanager
def record(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module is called with."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    yield seen
    handle.remove()


def lengths(model: ModelPatcher, **options) -> list[int]:
    """Keys of the first block in every evaluation."""
    with record(first_block(model).attn1.to_k) as seen:
        draw(model, **options)
    return [keys.shape[1] for keys in seen]


def farthest(rows: Tensor, others: Tensor) -> Tensor:
    """The largest difference in any channel, of each row from each other one."""
    return (rows[:, None] - others[None]).abs().amax(-1)


@pytest.mark.parametrize("off", [{"min_tokens": TOKENS + 1}, {"start_percent": 0.9, "end_percent": 0.95}], ids=str)
def test_what_is_left_alone_is_bit_identical(model, off):
    assert torch.equal(draw(patch(model, **off)), draw(model))


def test_recipes_are_those_that_fit():
    assert {*RECIPES} == {*KINDS, *LEFT}


@pytest.mark.parametrize("recipe", KINDS_TO_RUN)
def test_original_is_untouched_and_every_run_is_a_fresh_one(model, recipe):
    plain, clone = draw(model), patch(model, recipe=recipe)
    merged = draw(clone)
    assert not torch.equal(merged, plain)
    assert torch.equal(draw(model), plain)
    assert (model.model_options, model.wrappers) == ({"transformer_options": {}}, {})
    assert torch.equal(draw(clone), merged)
    # Another node, such as a LoRA, clones it again.
    assert torch.equal(draw(clone.clone()), merged)


@pytest.mark.parametrize("recipe", KINDS_TO_RUN)
@pytest.mark.parametrize(("place", "copies"), [("attn1", True), ("attn1", False), ("attn2", True)])
def test_after_an_error_in_the_middle_of_a_run_the_next_is_a_fresh_one(model, recipe, place, copies):
    clone = patch(model, recipe=recipe)
    merged, calls = draw(clone), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == REUSE + 1:
            raise KeyboardInterrupt

    handle = getattr(first_block(model), place).to_v.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        draw(clone, copies=copies)
    handle.remove()
    assert torch.equal(draw(clone), merged)


@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_network_gives_the_same_bits(model):
    clone = patch(model, recipe="keys")
    merged = draw(clone)
    clone.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    assert torch.equal(draw(clone), merged)


GROUPS = {
    "apart": lambda evaluation: [[1], [0]],
    "in the other order": lambda evaluation: [[0, 1]],
    "as memory allows": lambda evaluation: ([[1, 0]], [[0], [1]], [[0, 1]])[evaluation % 3],
}


@pytest.mark.parametrize("recipe", KINDS_TO_RUN)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_one_batch_of_conds_is_as_several(model, recipe, groups):
    clone = patch(model, recipe=recipe)
    torch.testing.assert_close(draw(clone, batch=2, groups=groups), draw(clone, batch=2, groups=together))


def test_cond_that_comes_later_has_the_capacity_of_the_others(model):
    guider = Guider(patch(model, recipe="keys"))

    def renew(*_) -> None:
        if guider.evaluations == REUSE - 1:
            guider.uuids = [guider.uuids[0], UUID(int=9)]

    handle = model.model.diffusion_model.register_forward_pre_hook(renew)
    with record(first_block(model).attn1.to_k) as keys:
        guider.sample(SIGMAS)
    handle.remove()
    assert keys[REUSE].shape[1] == keys[REUSE - 1].shape[1] < TOKENS


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_leaves_its_share_of_keys_and_unmerges(model, recipe):
    kept = lengths(patch(model, recipe=recipe))
    expected = LEFT.get(recipe)
    assert kept == [TOKENS * share for share in expected] if expected else kept[0] == TOKENS > kept[1]


@pytest.mark.parametrize(("share", "parts"), [("1/2", 2), ("1/4", 4), ("1/8", 8)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_share_is_that_of_the_tokens(model, recipe, share, parts):
    assert set(lengths(patch(model, recipe=recipe, share=share))) == {TOKENS // parts}


def test_only_the_part_of_the_sampling_between_the_percents_merges(model):
    clone = patch(model, recipe="todo", start_percent=0.2, end_percent=0.6)
    assert lengths(clone) == [TOKENS if sigma > 8 or sigma <= 4 else TOKENS // 4 for sigma in SIGMAS[:-1]]


@pytest.mark.parametrize("size", [(16, 16), (9, 13)])
@pytest.mark.parametrize("recipe", CELLS)
def test_keys_and_values_are_those_of_the_lattice(model, recipe, size):
    clone, attention = patch(model, recipe=recipe, min_tokens=4), first_block(model).attn1
    with record(attention.to_q) as queries, record(attention.to_k) as keys, record(attention.to_v) as values:
        Guider(clone).sample(SIGMAS, size)
    for step, (q, k, v, cells) in enumerate(zip(queries, keys, values, CELLS[recipe], strict=True)):
        grid = TokenGrid(size, cells)
        anchors = choose_destinations(grid, dither_offsets(grid, step) if recipe != "todo" else 0)
        assert torch.equal(k, q[:, anchors])
        assert torch.equal(v, q[:, anchors])


def test_layers_have_the_lattice_at_different_steps(model):
    """And the one of the step, also where merging begins in the middle of the run."""
    clone, blocks = patch(model, start_percent=0.35), model.model.diffusion_model.input_blocks[0].blocks
    with record(blocks[1].attn1.to_q) as queries, record(blocks[1].attn1.to_k) as keys:
        draw(clone)
    grid = TokenGrid((SIZE, SIZE))
    assert torch.equal(keys[3], queries[3][:, choose_destinations(grid, dither_offsets(grid, 3 + 1))])


@torch.inference_mode()
def test_tokens_that_merge_are_a_slot_and_get_its_result(model):
    """Half of the tokens: a slot is the mean of its tokens, found by what they get back."""
    clone, block = patch(model, recipe="tomesd"), first_block(model)
    outputs: list[Tensor] = []
    handle = block.norms[1].register_forward_pre_hook(lambda _, args: outputs.append(args[0]))
    with record(block.norms[0]) as inputs, record(block.attn1.to_q) as slots:
        draw(clone)
    handle.remove()
    change, tokens = outputs[0][0] - inputs[0][0], block.norms[0](inputs[0])[0]
    # Equal results are those of one slot, up to the rounding of the residual.
    same = farthest(change, change) < 1e-5
    means = same.float() @ tokens / same.sum(1, keepdim=True)
    nearest = farthest(means, slots[0][0]).min(1)
    torch.testing.assert_close(nearest.values, torch.zeros(TOKENS))
    assert len(nearest.indices.unique()) == TOKENS // 2


def anchors(model: ModelPatcher) -> list[Tensor]:
    """The tokens that are left as keys in every call: which of the queries they are."""
    with record(first_block(model).attn1.to_k) as keys, record(first_block(model).attn1.to_q) as queries:
        draw(patch(model, recipe="keys", share="1/2", min_tokens=4))
    return [farthest(q[0], k[0]).argmin(0) for q, k in zip(queries, keys, strict=True)]


def reused(steps: list[Tensor]) -> list[int]:
    return [step for step, (before, now) in enumerate(pairwise(steps), 1) if torch.equal(before, now)]


def test_pairs_are_reused_between_checkpoints(model):
    assert reused(anchors(model)) == [REUSE]


class Tiled(UNet):
    """What other nodes make of a network: it draws the left half, then the right one."""

    def forward(self, x: Tensor, *args) -> Tensor:
        return torch.cat([super(Tiled, self).forward(tile, *args) for tile in x.chunk(2, -1)], -1)


def test_tiles_that_are_drawn_one_after_the_other_have_pairs_of_their_own():
    torch.manual_seed(0)
    tiles = anchors(ModelPatcher(Tiled().eval()))
    left, right = tiles[::2], tiles[1::2]
    assert reused(left) == reused(right) == [REUSE]
    assert not any(torch.equal(*pair) for pair in zip(left, right, strict=True))


def test_capacity_is_read_from_the_device_after_checkpoints_only(model, monkeypatch):
    fit, fitted, guider = NODE.memories.fit_capacity, [], Guider(patch(model, recipe="keys"))

    def count(caches):
        fitted.append(guider.evaluations)
        return fit(caches)

    monkeypatch.setattr(NODE.memories, "fit_capacity", count)
    guider.sample(SIGMAS)
    assert fitted == [step for step in range(1, 7) if step - 1 != REUSE]


@pytest.fixture
def run():
    """A run of ten steps that has begun no step."""
    settings = NODE.settings.Settings(NODE.settings.choose_recipe("keys", "1/2"), 4, 0.0, 1.0)
    return NODE.run.Run(settings, [*range(10, -1, -1)], ModelPatcher(nn.Identity()).model.model_sampling)


def test_every_evaluation_belongs_to_the_nearest_step(run):
    steps = []
    for sigma in (10.0, 9.4, 9.0, 9.0, 3.2, 7.0, 0.3):
        run.begin(sigma)
        steps.append(run.step)
    assert steps == [0, 1, 1, 1, 7, 3, 9]


def test_checkpoint_that_a_sampler_leaves_out_or_that_is_not_run_stays_due(run):
    tokens, memory, grid = torch.randn(1, 16, 4), run.memory, TokenGrid((4, 4))
    run.checkpoints = {0, 2, 6}

    def is_due_at(sigma: float) -> bool:
        run.begin(sigma)
        return memory.caches[0, "cond"].refresh

    run.begin(10.0)
    memory.plans(0, tokens, grid, ["cond"])
    assert not is_due_at(9.0)
    memory.plans(0, tokens, grid, ["cond"])
    assert is_due_at(7.0)
    assert is_due_at(6.0)
    memory.plans(0, tokens, grid, ["cond"])
    assert not is_due_at(5.0)
    assert is_due_at(4.0)
    memory.plans(0, tokens, grid, ["cond"])
    assert is_due_at(8.0)


def test_second_node_replaces_the_settings_of_the_first(model):
    twice = patch(patch(model, recipe="tomesd"), recipe="fast")
    assert torch.equal(draw(twice), draw(patch(model, recipe="fast")))


def test_another_patch_that_changes_the_tokens_is_left_alone(model):
    clone = model.clone()
    clone.set_model_attn1_patch(lambda q, k, v, extra: (q, k[:, ::2], v[:, ::2]))
    assert torch.equal(draw(patch(clone)), draw(clone))


@pytest.mark.parametrize("place", [("input", 1), ("input", 1, 0)])
@pytest.mark.parametrize("recipe", ["default", "tomesd"])
def test_attention_that_another_node_replaces_has_all_tokens(model, recipe, place):
    """As perturbed attention does, which returns the values."""
    clone = patch(model, recipe=recipe)
    clone.set_model_attn1_replace(lambda q, k, v, extra_options: v, *place)
    with record(model.model.diffusion_model.output_blocks[0].blocks[0].attn1.to_k) as keys:
        assert set(lengths(clone)) == {TOKENS}
    assert [one.shape[1] for one in keys] == [TOKENS * share for share in LEFT[recipe]]


def test_too_few_tokens_are_a_warning_after_the_first_step(model, caplog):
    clone = patch(model, min_tokens=1000)
    with caplog.at_level(WARNING, "catome"):
        draw(clone, SIGMAS[:2])
    assert [record.getMessage() for record in caplog.records] == [
        "CA-ToMe merges nothing: no self-attention has a grid of 1000 tokens or more; found [64, 256]. "
        "Lower min_tokens, draw a larger picture, or remove the node."
    ]
    caplog.clear()
    draw(clone)
    assert len(caplog.records) == 1
    draw(patch(model))
    assert len(caplog.records) == 1


def test_unet_that_calls_no_patch_is_a_warning(model, caplog):
    clone = patch(model)
    clone.model_options["transformer_options"].pop("patches")
    draw(clone)
    assert "found none that calls ComfyUI's patches" in caplog.text


def test_transformers_are_refused():
    class Flux(nn.Module):
        pass

    with pytest.raises(TypeError, match="the model is a Flux, and the node works with UNets only"):
        patch(ModelPatcher(Flux()))


def test_host_without_wrappers_is_refused_with_the_version(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", None)
    with pytest.raises(RuntimeError, match=r"needs ComfyUI 0\.3\.30 or newer"):
        patch(model)


def test_metadata_names_the_version_that_the_node_needs():
    metadata = tomllib.loads((FOLDER / "pyproject.toml").read_text())["tool"]["comfy"]
    name = NODE.NODE_DISPLAY_NAME_MAPPINGS["CaTome"]
    assert (metadata["DisplayName"], metadata["requires-comfyui"].strip(">=")) == (name, NODE.node.NEEDS.split()[1])


def test_percents_that_leave_nothing_are_refused(model):
    with pytest.raises(ValueError, match=r"start_percent is 0.5 and end_percent 0.5"):
        patch(model, start_percent=0.5, end_percent=0.5)


def test_without_catome_the_node_is_missing_and_the_console_says_how_to_get_it(monkeypatch, caplog):
    for name in [name for name in sys.modules if name.startswith(f"{NODE.__name__}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "catome_adapters", None)
    module = load_node()
    assert (module.NODE_CLASS_MAPPINGS, module.NODE_DISPLAY_NAME_MAPPINGS) == ({}, {})
    assert "python -m pip install PATH" in caplog.text
    assert all(record.exc_info is None for record in caplog.records)
