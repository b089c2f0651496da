"""How many files a reuse step passes through, from the call of the host until the block returns."""

import pytest

from catome_adapters import attach, find_sites
from probes import calls_of_ours
from running import ONCE, TOTAL, make_recipe
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")

MOST_FILES = 13


@pytest.mark.parametrize("name", ["DiT", "SD3", "Flux", "Wan"])
def test_a_reuse_step_passes_through_few_files(name):
    model = ARCHITECTURES[name]
    network = model.network()
    with attach(network, make_recipe("attention", schedule=ONCE), sites=find_sites(network)[:1]) as session:
        session.begin_step(0, TOTAL)
        model.call(network)
        session.begin_step(1, TOTAL)
        files = dict.fromkeys(calls_of_ours(lambda: model.call(network)))
    assert len(files) <= MOST_FILES, [path.stem for path in files]
