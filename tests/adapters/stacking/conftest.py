"""Recipes for transformers, of every scope."""

import pytest

from catome_adapters import MergeRecipe
from running import make_recipe


@pytest.fixture
def recipe(scope) -> MergeRecipe:
    return make_recipe(scope)
