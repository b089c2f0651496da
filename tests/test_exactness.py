"""Tokens that are equal merge without loss: so text, rotary rows, masks and modulation are where they belong."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from architectures import TEXT, Architecture
from catome_adapters import MergeRecipe, MergeSite, attach, find_sites
from catome_adapters.arguments import Arguments, Signature
from catome_core import AdaptiveMerge, TokenGrid
from scopes import SCOPES
from subjects import SUBJECTS

STRIDE = 2
FLIPPED = {"front": "back", "back": "front"}
CASES = [(name, scope) for name, scope in product(SUBJECTS, SCOPES) if scope not in SUBJECTS[name].refused]
JOINT = [name for name, one in SUBJECTS.items() if find_sites(one.network())[0].layout.text]


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def captured(subject: Architecture, network: nn.Module, sites: list[MergeSite]) -> list[Arguments]:
    """What the network calls its blocks with."""
    calls: list[Arguments] = []
    handles = [
        site.block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for site in sites
    ]
    subject.call(network)
    for handle in handles:
        handle.remove()
    return calls


def cells(grid: TokenGrid) -> Tensor:
    """For every token of a grid, the first one of its cell."""
    index = torch.arange(grid.tokens).unflatten(0, grid.shape)
    for axis, stride in enumerate(grid.stride):
        first = torch.arange(index.shape[axis]) // stride * stride
        index = index.index_select(axis, first)
    return index.flatten()


def evened(value: Any, lines: dict[int, Tensor]) -> Any:
    """Whatever has a row for every token, with equal rows in a cell."""
    if isinstance(value, (tuple, list)):
        return type(value)(evened(part, lines) for part in value)
    if not isinstance(value, Tensor):
        return value
    for axis, length in enumerate(value.shape):
        value = value.index_select(axis, lines[length]) if length in lines else value
    return value


def even_call(subject: Architecture, site: MergeSite, call: Arguments, grid: TokenGrid) -> Arguments:
    """The call with tokens that are equal within a cell, and so is whatever has a row for every token."""
    index, text = cells(grid), torch.arange(TEXT)
    image = torch.cat([index, torch.arange(subject.references) + grid.tokens])
    joint = (text, image + TEXT) if site.layout.text_side == "front" else (image, text + len(image))
    lines = {len(rows): rows for rows in (index, image, torch.cat(joint))}
    args, kwargs = call
    return evened(args, lines), {name: evened(value, lines) for name, value in kwargs.items()}


def tensors(returned: Any) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else tuple(part for part in returned if part is not None)


@dataclass(frozen=True)
class Told:
    """A grid that is known, and how many tokens of reference images lie behind it."""

    shape: tuple[int, ...]
    others: int

    def __call__(self, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        return self.shape


def merged(site: MergeSite, call: Arguments, told: Told, scope: str) -> tuple[Tensor, ...]:
    """What a block returns when each cell becomes one slot; room for more is left empty."""
    alone = replace(site, host=site.block, measure=told)
    recipe = MergeRecipe(AdaptiveMerge(0.99, capacity=0.25), scope=scope, levels="all")
    with attach(site.block, recipe, sites=[alone]) as session:
        session.begin_step(0, 2)
        returned = tensors(site.block(*call[0], **call[1]))
        # Every cell, and nothing else: text in the midst of the grid would leave slots of other sizes.
        assert session.plans()[site.name].size.unique().tolist() == [0, STRIDE**2]
    return returned


def grid_of(subject: Architecture) -> TokenGrid:
    shape = subject.grid(subject.sizes[0])
    return TokenGrid(shape, (1,) * (len(shape) - 2) + (STRIDE, STRIDE))


def compare(subject: Architecture, scope: str, change: Callable[[MergeSite], MergeSite | None]) -> list[bool]:
    """For every block, whether merging equal tokens changed nothing; `change` may change its site, or leave it out."""
    network, grid = subject.network(), grid_of(subject)
    sites = find_sites(network)
    same = []
    for site, call in zip(sites, captured(subject, network, sites), strict=True):
        if (changed := change(site)) is not None:
            call = even_call(subject, site, call, grid)
            expected = tensors(site.block(*call[0], **call[1]))
            same.append(all(map(close, merged(changed, call, Told(grid.shape, subject.references), scope), expected)))
    return same


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "scope"), CASES)
def test_equal_tokens_merge_without_loss(name, scope):
    assert all(compare(SUBJECTS[name], scope, lambda site: site))


def flipped(site: MergeSite) -> MergeSite | None:
    """A site that takes its text to be on the other side."""
    side = FLIPPED[site.layout.text_side]
    return replace(site, layout=replace(site.layout, text_side=side)) if site.layout.text else None


@pytest.mark.parametrize(("name", "scope"), [case for case in CASES if case[0] in JOINT])
def test_text_on_the_wrong_side_would_be_seen(name, scope):
    assert not any(compare(SUBJECTS[name], scope, flipped))


class Keys(TorchFunctionMode):
    """Notes the keys of every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.keys.append(args[1] if len(args) > 1 else kwargs["key"])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", JOINT)
def test_text_lies_where_the_layout_says(name):
    """What is not a number in the text is none in the keys of the text."""
    subject = SUBJECTS[name]
    network = subject.network()
    sites = find_sites(network)
    for site, call in zip(sites, captured(subject, network, sites), strict=True):
        if site.layout.text:
            rows = keys_of_text(site, call)
            expected = rows.nonzero().flatten() < TEXT if site.layout.text_side == "front" else rows[-TEXT:]
            assert expected.all()
            assert rows.sum() == TEXT


def keys_of_text(site: MergeSite, call: Arguments) -> Tensor:
    """For every key of a block's self-attention, whether it comes from text."""
    signature = Signature.of(site.block)
    text = signature.read(call, site.layout.text)
    args, kwargs = signature.write(call, site.layout.text, torch.full_like(text, torch.nan))
    with Keys() as noted:
        site.block(*args, **kwargs)
    return noted.keys[0][0].isnan().any(-1).any(0)
