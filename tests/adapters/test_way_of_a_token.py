"""How many files a reuse step passes through, from the call of the host until the block returns."""

import sys
from pathlib import Path

import pytest

import catome_adapters
import catome_core
from catome_adapters import attach, find_sites
from running import ONCE, TOTAL, make_recipe
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("without_gradients")

MOST_FILES = 12
ROOTS = [Path(package.__file__).parent for package in (catome_core, catome_adapters)]


def files_of(call) -> list[Path]:
    """The files of ours in which a function ran, in the order in which they were entered first."""
    entered: dict[Path, None] = {}

    def profile(frame, event, _) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and any(root in path.parents for root in ROOTS):
            entered.setdefault(path)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(entered)


@pytest.mark.parametrize("name", ["DiT", "SD3", "Flux", "Wan"])
def test_a_reuse_step_passes_through_few_files(name):
    model = ARCHITECTURES[name]
    network = model.network()
    with attach(network, make_recipe("attention", schedule=ONCE), sites=find_sites(network)[:1]) as session:
        session.begin_step(0, TOTAL)
        model.call(network)
        session.begin_step(1, TOTAL)
        files = files_of(lambda: model.call(network))
    assert len(files) <= MOST_FILES, [path.stem for path in files]
