"""What the pages' tables and figures say is what the library says."""

import re
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from math import prod
from pathlib import Path

import pytest

from catome_adapters import MergeRecipe
from catome_bench.planning.grids import sites_at
from catome_bench.planning.vae import SCALES, TYPICAL_SCALE
from catome_core import AdaptiveMerge
from zoo.transformers import ALL_ARCHITECTURES

DOCS = Path(__file__).parents[1] / "docs"
OTHER_VAE = {"Wan 2.2 TI2V": (16, 4)}
OTHER_PATCH = {"HunyuanImage": {"patch_size": (1, 1)}}


def table(page: str, heading: str) -> Iterator[list[str]]:
    """The rows of the first table below a heading."""
    text = (DOCS / page).read_text().split(f"\n## {heading}\n")[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    return ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])


SIZES = {name: row[1:4] for row in table("architectures.md", "How many tokens") for name in row[0].split(", ")}


def numbers(cell: str) -> list[int]:
    return [int(number) for number in cell.replace(",", "").split(" x ")]


def test_every_field_of_a_recipe_is_a_decision_of_the_paper():
    expected = {field.name for field in fields(MergeRecipe)} - {"policy"}
    expected |= {f"policy.{field.name}" for field in fields(AdaptiveMerge)}
    decided = [row[1].strip("`") for row in table("paper.md", "Decision by decision")]
    assert sorted(decided) == sorted(expected)


@pytest.mark.parametrize("name", SIZES)
def test_a_picture_has_as_many_tokens_as_cover_it(name):
    size, covered, (tokens,) = map(numbers, SIZES[name])
    frames = [(size[0] - 1) // covered[0] + 1] if len(size) == 3 else []
    sides = [length // side for length, side in zip(size[-2:], covered[-2:], strict=True)]
    assert tokens == prod(frames + sides)


@pytest.mark.parametrize("name", sorted(SIZES.keys() & ALL_ARCHITECTURES.keys()))
def test_the_library_counts_as_many_tokens(name):
    network, size = ALL_ARCHITECTURES[name].network(**OTHER_PATCH.get(name, {})), numbers(SIZES[name][0])
    scale = OTHER_VAE.get(name) or SCALES.get(type(network).__name__, TYPICAL_SCALE)
    frames, height, width = [None] * (3 - len(size)) + size
    sites = sites_at(network, (frames, height, width), scale)
    assert {prod(site.shape) for site in sites} == set(numbers(SIZES[name][2]))


def test_figures_are_those_that_the_library_computes():
    figures = import_module("draw")
    assert {name: (figures.IMAGES / f"{name}.svg").read_text() for name in figures.FIGURES} == {
        name: draw() for name, draw in figures.FIGURES.items()
    }
