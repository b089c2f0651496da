"""Adding an architecture, a scope or a source of steps takes one class in one file: this one."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import SCOPES, MergeRecipe, MergeSite, Scope, SkippedSite, attach, find_sites, patches
from catome_adapters.architectures import find
from catome_adapters.steps import sources
from catome_core import AdaptiveMerge, CheckpointSchedule, PairCache, TokenGrid, merge, unmerge

HALF = AdaptiveMerge(-1, 0.25, spare="fill")
RECIPE = MergeRecipe(HALF, CheckpointSchedule((0, 2), of=4), levels="all")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(query, key, value)[:, 0])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.look(x)


class Mosaic(nn.Module):
    """A network that the library has never had: tiles of 2 x 2 pixels, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, stride=2)
        self.tiles = nn.ModuleList(Block() for _ in range(2))

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).mT
        for block in self.tiles:
            x = block(x)
        return x


@pytest.fixture
def network() -> Mosaic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Mosaic().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def find_in_mosaic(network: Mosaic) -> list[MergeSite | SkippedSite]:
    grid_of = patches("image", (2, 2))
    return [
        MergeSite(f"tiles.{index}", block, block.look, network, shape=(8, 8), grid_of=grid_of)
        for index, block in enumerate(network.tiles)
    ]


def add_mosaic(monkeypatch) -> None:
    mosaic = (lambda network: isinstance(network, Mosaic), find_in_mosaic)
    monkeypatch.setattr(find, "ARCHITECTURES", [mosaic, *find.ARCHITECTURES])


@torch.no_grad()
def test_an_architecture_is_one_function(monkeypatch, network, image):
    assert find_sites(network) == []
    add_mosaic(monkeypatch)
    unmerged = network(image)
    with attach(network, RECIPE) as session:
        session.begin_step(0, 4)
        assert not torch.equal(network(image), unmerged)
        assert [row.site for row in session.summary().rows] == ["tiles.0", "tiles.1"]
    assert torch.equal(network(image), unmerged)


class Smooth(Scope):
    """Self-attention sees every token as the mean of its slot, and all of them: nothing is saved, but it is a scope."""

    def before_attention(self, state: Any, attention: Any, call: Any) -> Any:
        (tokens, *others), kwargs = call
        return ((unmerge(merge(tokens, state.plan), state.plan), *others), kwargs), ()

    def saved_flops(self, weights: Any, tokens: int, removed: float) -> Any:
        return type(weights.saved_in_block(tokens, 0))(0.0, 0.0)

    def passes(self, kept: float) -> float:
        return 2 + 2 * kept

    def describe(self, name: str, segment: int) -> str:
        return f"scope {name}, for a test"


@torch.no_grad()
def test_a_scope_is_one_class(monkeypatch, network, image):
    monkeypatch.setitem(SCOPES, "smooth", Smooth())
    sites, recipe = find_in_mosaic(network), MergeRecipe(HALF, RECIPE.schedule, "smooth", levels="all")
    assert MergeRecipe.from_json(recipe.to_json()) == recipe
    with attach(network, recipe, sites=sites) as session:
        session.begin_step(0, 4)
        merged = network(image)
        assert session.report().startswith("scope smooth, for a test")
        assert session.summary().merged_fraction == 0.5
    assert torch.equal(merged, smoothed(network, image))


def smoothed(network: Mosaic, image: Tensor) -> Tensor:
    """The same by hand."""
    x = network.embed(image).flatten(2).mT
    for block in network.tiles:
        plan = PairCache(HALF)(x, TokenGrid((8, 8)))
        x = x + block.look(unmerge(merge(x, plan), plan))
    return x


def test_a_scope_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="smooth"):
        MergeRecipe(scope="smooth")


class Turns:
    """A denoising loop with callbacks at every turn."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer, self.on_turn = transformer, []

    @torch.no_grad()
    def __call__(self, image: Tensor, turns: int) -> None:
        for turn in range(turns):
            for notify in self.on_turn:
                notify(turn, turns)
            self.transformer(image)


class TurnSource:
    """Steps are turns."""

    components = ()

    def __init__(self, pipeline: Any, networks: Sequence[nn.Module], tracker: Any) -> None:
        self.listeners = getattr(pipeline, "on_turn", [])
        self.notify = lambda turn, turns: tracker.on_announced_step(turn, turns, self)
        self.listeners.append(self.notify)

    def update(self) -> None:
        """A loop stays the same."""

    def remove(self) -> None:
        if self.notify in self.listeners:
            self.listeners.remove(self.notify)


def test_a_source_of_steps_is_one_class(monkeypatch, network, image):
    add_mosaic(monkeypatch)
    monkeypatch.setattr(sources, "SOURCES", [*sources.SOURCES, TurnSource])
    loop = Turns(network)
    with attach(loop, RECIPE) as session:
        loop(image, 4)
        assert session.summary().checkpoints == (0, 2)
        assert [row.step for row in session.summary().rows if row.site == "tiles.0"] == [0, 1, 2, 3]
    assert loop.on_turn == []
