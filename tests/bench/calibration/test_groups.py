"""Which sites get one setting."""

from typing import Any

import pytest
from torch import nn

from catome_adapters import MergeSite, find_sites
from catome_bench.calibration.groups import MOST_GROUPS, group_by_setting
from zoo.class_pipelines import tiny_shipped

BLOCK: Any = nn.TransformerEncoderLayer(8, 2, batch_first=True)


def site(name: str, level: int = 1) -> MergeSite:
    return MergeSite(name, BLOCK, BLOCK.self_attn, BLOCK, level=level)


def names(sites: list[MergeSite]) -> list[list[str]]:
    return [[one.name for one in group] for group in group_by_setting(sites).values()]


def test_every_site_is_in_one_group_in_order():
    flux = [site(f"transformer_blocks.{index}") for index in range(19)]
    flux += [site(f"single_transformer_blocks.{index}") for index in range(38)]
    groups = names(flux)
    assert [name for group in groups for name in group] == [one.name for one in flux]
    assert len(groups) == MOST_GROUPS
    assert {len({name.partition(".")[0] for name in group}) for group in groups} == {1}
    assert max(map(len, groups)) <= 10


def test_a_transformer_of_a_large_unet_is_one_group():
    unet = [
        site(f"down_blocks.{stage}.attentions.0.transformer_blocks.{index}") for stage in range(9) for index in range(3)
    ]
    assert [len(group) for group in names(unet)] == [3] * 9


def test_levels_are_apart():
    others = [site(f"other_{index}.0") for index in range(7)]
    assert names([site("a.0"), site("a.1"), site("a.2", level=2), *others])[:2] == [["a.0", "a.1"], ["a.2"]]


def test_a_group_is_called_by_its_first_and_last_site():
    sites = [site(f"blocks.{index}") for index in range(9)]
    assert list(group_by_setting(sites)) == [*(f"blocks.{index}" for index in range(7)), "blocks.7 to 8"]


@pytest.mark.parametrize("arch", ["unet", "dit"])
def test_few_sites_are_groups_of_their_own(arch):
    sites = find_sites(tiny_shipped(arch))
    assert list(group_by_setting(sites)) == [one.name for one in sites]


def test_no_sites_are_no_groups():
    assert group_by_setting([]) == {}
