"""One life-cycle, the same for every architecture and scope: attach, run, reuse, fail, compile, detach."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.overrides import _get_current_function_mode_stack

from architectures import ARCHITECTURES, Architecture
from catome_adapters import MergeRecipe, attach
from catome_core import AdaptiveMerge, CheckpointSchedule
from models import anatomy
from scopes import SCOPES
from subjects import SUBJECTS

ONCE = CheckpointSchedule((0,), of=6)
TOTAL = 6
SPARES = ("pad", "fill")


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


CASES = [(name, scope) for name, scope in product(SUBJECTS, SCOPES) if scope not in SUBJECTS[name].refused]
COMPILED = [case for case in CASES if case[0] in ARCHITECTURES]
every_architecture = pytest.mark.parametrize("name", SUBJECTS)
every_scope = pytest.mark.parametrize(("name", "scope"), CASES)


@pytest.fixture
def subject(name) -> Architecture:
    return SUBJECTS[name]


@pytest.fixture
def network(subject) -> nn.Module:
    return subject.network()


def make_recipe(
    scope: str, *, spare: str = "pad", threshold: float = 0.0, capacity: float | None = 0.25
) -> MergeRecipe:
    """By default half of the pairs of random tokens are above the threshold, and more than capacity has room for."""
    return MergeRecipe(AdaptiveMerge(threshold, capacity, spare=spare), ONCE, scope, levels="all")


def step(session, subject: Architecture, network: nn.Module, number: int = 0, **options) -> Tensor:
    session.begin_step(number, TOTAL)
    return subject.call(network, **options)


@every_architecture
def test_every_block_is_a_site_and_the_report_has_its_grid(subject, network):
    blocks = {name for name, module in network.named_modules() if type(module).__name__ in subject.blocks}
    with attach(network, make_recipe("attention")) as session:
        assert {site.name for site in session.sites} == blocks
        step(session, subject, network, size=subject.sizes[1])
        report = session.report().splitlines()
    grid = " x ".join(map(str, subject.grid(subject.sizes[1])))
    for folder in {block.rpartition(".")[0] for block in blocks}:
        assert any(line.split()[0] == folder and grid in line for line in report)


@every_scope
def test_threshold_one_is_the_unpatched_model_bit_by_bit(subject, network, scope):
    unpatched = subject.call(network)
    with attach(network, make_recipe(scope, threshold=1.0, capacity=None)) as session:
        assert torch.equal(step(session, subject, network), unpatched)


@every_scope
@pytest.mark.parametrize("spare", SPARES)
def test_merging_changes_the_output_and_keeps_it_finite(subject, network, scope, spare):
    unpatched = subject.call(network)
    with attach(network, make_recipe(scope, spare=spare)) as session:
        merged = step(session, subject, network)
        session.begin_step(1, TOTAL)
        assert session.summary().merged_fraction > 0.2
    assert merged.isfinite().all()
    assert not torch.allclose(merged, unpatched, rtol=1e-3, atol=1e-4)


@every_scope
def test_state_dict_is_the_same_while_attached(subject, network, scope):
    names = list(network.state_dict())
    with attach(network, make_recipe(scope)) as session:
        step(session, subject, network)
        assert list(network.state_dict()) == names


@every_architecture
def test_second_session_is_refused_and_leaves_the_first_alone(network):
    with attach(network, make_recipe("attention")):
        before = anatomy(network)
        with pytest.raises(RuntimeError, match=r"call its detach\(\) first"):
            attach(network, make_recipe("block"))
        assert anatomy(network) == before


@every_scope
@pytest.mark.parametrize("spare", SPARES)
def test_reuse_is_recompute_on_the_same_input(subject, network, scope, spare):
    with attach(network, make_recipe(scope, spare=spare)) as session:
        computed, reused = (step(session, subject, network, number) for number in (0, 1))
        session.begin_step(2, TOTAL)
        assert session.summary().checkpoints == (0,)
    assert torch.equal(reused, computed)


@every_architecture
def test_reused_pairs_are_those_of_the_checkpoint(subject, network):
    with attach(network, make_recipe("attention")) as session:
        step(session, subject, network, 0)
        reused = step(session, subject, network, 1, seed=1)
        assert not torch.equal(step(session, subject, network, 0, seed=1), reused)


@every_scope
@pytest.mark.parametrize("other", ["batch", "size"])
def test_another_batch_or_size_within_a_run_is_computed_anew(subject, network, scope, other):
    options = {"batch": 1} if other == "batch" else {"size": subject.sizes[1]}
    with attach(network, make_recipe(scope)) as session:
        fresh = step(session, subject, network, 0, **options), step(session, subject, network, 0)
        assert torch.equal(step(session, subject, network, 1, **options), fresh[0])
        assert torch.equal(step(session, subject, network, 2), fresh[1])
    assert fresh[0].isfinite().all()


@every_scope
def test_sample_does_not_depend_on_its_batch_mates_unless_they_share_the_plan(subject, network, scope):
    with attach(network, make_recipe(scope)) as session:
        together, alone = (step(session, subject, network, batch=batch) for batch in (3, 1))
        step(session, subject, network, batch=3)
        plans = {len(plan.slot) for plan in session.plans().values()}
    shared = scope != "keys" and session.sites[0].layout.shared
    assert plans == {1 if shared else 3}
    assert torch.allclose(together[:1], alone, rtol=1e-4, atol=1e-5) is not shared


@every_scope
@pytest.mark.parametrize("number", [0, 1], ids=["at a checkpoint", "at a reuse"])
def test_failed_run_leaves_nothing_behind(subject, network, scope, number):
    before, unpatched = anatomy(network), subject.call(network)
    with attach(network, make_recipe(scope)) as session:
        expected = step(session, subject, network)
        step(session, subject, network, 0, seed=1)
        with failing(session.sites[1].attention), pytest.raises(Interrupted):
            step(session, subject, network, number, size=subject.sizes[1])
        assert _get_current_function_mode_stack() == []
        assert torch.equal(step(session, subject, network), expected)
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


@every_scope
def test_detach_restores_exactly(subject, network, scope):
    before, unpatched = anatomy(network), subject.call(network)
    session = attach(network, make_recipe(scope))
    assert anatomy(network) != before
    step(session, subject, network)
    session.detach()
    session.detach()
    assert anatomy(network) == before
    assert torch.equal(subject.call(network), unpatched)


class Interrupted(Exception):
    """What a test throws into a forward pass."""


@contextmanager
def failing(attention: nn.Module) -> Iterator[None]:
    """Within this block the last projection of a self-attention fails, when it has been told of slots."""
    last = [module for module in attention.modules() if isinstance(module, nn.Linear)][-1]

    def fail(*_: object) -> None:
        raise Interrupted

    handle = last.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def shallow(subject: Architecture) -> nn.Module:
    """One block of each kind: the compiler takes its time."""
    return subject.network(**dict.fromkeys(subject.depths, 1))


def compare_compiled(
    subject: Architecture, scope: str, compile_network: Callable[[nn.Module, CompileCounter], nn.Module]
) -> int:
    """Recompute and reuse on fresh data, compiled and not; how many graphs that took."""
    network, counter = shallow(subject), CompileCounter()
    with attach(network, make_recipe(scope)) as session:
        eager = [step(session, subject, network, number, seed=number) for number in range(3)]
        compiled = compile_network(network, counter)
        for number in range(3):
            torch.testing.assert_close(
                step(session, subject, compiled, number, seed=number), eager[number], rtol=1e-4, atol=1e-5
            )
    return counter.frame_count


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(("name", "scope"), COMPILED)
def test_whole_network_compiles_to_two_graphs(subject, scope):
    def compile_whole(network: nn.Module, backend: CompileCounter) -> nn.Module:
        return torch.compile(network, fullgraph=True, backend=backend)

    assert compare_compiled(subject, scope, compile_whole) == subject.graphs
