"""What users attach by its name: a run of it on every architecture, and the same run again."""

from itertools import product

import pytest

from catome_adapters import RECIPES, attach
from running import assert_same, differing_steps, run
from tiers import tiered
from zoo.transformers import ALL_ARCHITECTURES, ARCHITECTURES

# The default is "balanced", and "tome" is for classification.
NAMES = [name for name in RECIPES if name not in ("default", "tome")]
CASES = [
    (name, recipe)
    for (name, subject), recipe in product(ALL_ARCHITECTURES.items(), NAMES)
    if RECIPES[recipe].scope not in subject.refused
]

pytestmark = [
    pytest.mark.usefixtures("without_gradients"),
    # Tokens of random networks are below the threshold, and grids of some too small.
    pytest.mark.filterwarnings("ignore:nothing merged in this run"),
]


@pytest.mark.parametrize(("name", "recipe"), tiered(CASES, [*product(ARCHITECTURES, ["balanced"])]))
def test_a_run_with_a_named_recipe_repeats_and_leaves_nothing(subject, network, recipe):
    unmerged = run(subject, network)
    with attach(network, recipe) as session:
        merged, again = (run(subject, network, session) for _ in range(2))
        says_so = session.summary().merged_fraction > 0
    assert all(one.isfinite().all() for one in merged)
    assert_same(again, merged)
    assert bool(differing_steps(merged, unmerged)) == says_so
    assert_same(run(subject, network), unmerged)
