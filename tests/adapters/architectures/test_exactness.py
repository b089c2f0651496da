"""Tokens that are equal merge without loss: text, rotary rows, masks and modulation reach the tokens they belong to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from catome_adapters import GridSize, MergeSite, attach, find_sites
from catome_adapters.sites.call import Arguments, Signature
from catome_core import TokenGrid
from probes import AttentionKeys
from running import make_recipe
from zoo.architecture import Architecture
from zoo.cases import EVERY_SCOPE
from zoo.transformers import ALL_ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")

STRIDE = 2
FLIPPED = {"front": "back", "back": "front"}
JOINT = [name for name, one in ALL_ARCHITECTURES.items() if find_sites(one.network())[0].layout.text]


def captured_calls(subject: Architecture, network: nn.Module, sites: list[MergeSite]) -> list[Arguments]:
    """The arguments of every block, in the order of the calls."""
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
    if isinstance(value, dict):
        return {name: evened(part, lines) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    for axis, length in enumerate(value.shape):
        value = value.index_select(axis, lines[length]) if length in lines else value
    return value


def even_call(subject: Architecture, site: MergeSite, call: Arguments, grid: TokenGrid) -> Arguments:
    """The call with tokens that are equal within a cell, and so is whatever has a row for every token."""
    index, text = cells(grid), torch.arange(subject.text + subject.registers)
    image = torch.cat([torch.arange(-subject.history, 0), index, torch.arange(subject.references) + grid.tokens])
    image += subject.history
    side = site.layout.text_side if site.layout.text else site.layout.extra_side
    joint = (text, image + len(text)) if side == "front" else (image, text + len(image))
    lines = {len(rows): rows for rows in (index, image, torch.cat(joint))}
    args, kwargs = call
    return evened(args, lines), {name: evened(value, lines) for name, value in kwargs.items()}


def tensors(returned: Any) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else tuple(part for part in returned if part is not None)


@dataclass(frozen=True)
class KnownGrid:
    """A grid that is given, and how many tokens are behind it; None: all that are too many."""

    shape: tuple[int, ...]
    others: int | None

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        return GridSize(self.shape, extra=self.others)


def merged(site: MergeSite, call: Arguments, grid: KnownGrid, scope: str) -> tuple[Tensor, ...]:
    """What a block returns when each cell becomes one slot; room for more is left empty."""
    alone = replace(site, host=site.block, grid_of=grid)
    with attach(site.block, make_recipe(scope, threshold=0.99), sites=[alone]) as session:
        session.begin_step(0, 2)
        returned = tensors(site.block(*call[0], **call[1]))
        # Every cell, and nothing else: text in the middle of the grid would leave slots of other sizes.
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
    for site, call in zip(sites, captured_calls(subject, network, sites), strict=True):
        if (changed := change(site)) is not None:
            call = even_call(subject, site, call, grid)
            expected = tensors(site.block(*call[0], **call[1]))
            behind = subject.references if site.layout.extra_side == "front" else None
            returned = merged(changed, call, KnownGrid(grid.shape, behind), scope)
            same.append(all(map(close, returned, expected)))
    return same


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "scope"), EVERY_SCOPE)
def test_equal_tokens_merge_without_loss(name, scope):
    assert all(compare(ALL_ARCHITECTURES[name], scope, lambda site: site))


def flipped(site: MergeSite) -> MergeSite | None:
    """A site that takes its text to be on the other side."""
    side = FLIPPED[site.layout.text_side]
    return replace(site, layout=replace(site.layout, text_side=side)) if site.layout.text else None


@pytest.mark.parametrize(("name", "scope"), [case for case in EVERY_SCOPE if case.values[0] in JOINT])
def test_text_on_the_wrong_side_would_be_seen(name, scope):
    assert not any(compare(ALL_ARCHITECTURES[name], scope, flipped))


@pytest.mark.parametrize("name", JOINT)
def test_text_is_where_the_layout_says(name):
    """A text of NaN gives keys of NaN, and no others."""
    subject = ALL_ARCHITECTURES[name]
    network, text = subject.network(), subject.text + subject.registers
    sites = find_sites(network)
    for site, call in zip(sites, captured_calls(subject, network, sites), strict=True):
        if site.layout.text:
            rows = keys_of_text(site, call)
            expected = rows.nonzero().flatten() < text if site.layout.text_side == "front" else rows[-text:]
            assert expected.all()
            assert rows.sum() == text


def keys_of_text(site: MergeSite, call: Arguments) -> Tensor:
    """For every key of a block's self-attention, whether it comes from text."""
    signature = Signature.of(site.block)
    text = signature.read(call, site.layout.text)
    args, kwargs = signature.write(call, site.layout.text, torch.full_like(text, torch.nan))
    with AttentionKeys() as recorded:
        site.block(*args, **kwargs)
    return recorded.keys[0][0].isnan().any(-1).any(0)
