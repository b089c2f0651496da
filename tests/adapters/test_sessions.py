"""Finding the sessions of a model, ending them without a handle, and what a session says when it is over."""

import copy
import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from catome_adapters import MergeRecipe, attach, detach, find_sites, sessions
from catome_adapters.steps.scheduler import SchedulerSource
from probes import anatomy
from running import make_recipe, run
from zoo.unet_pipelines import class_pipeline, draw
from zoo.unets import SD, controlnet, sd_unet, small_unet

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_detach_without_a_handle_restores_everything():
    pipe = class_pipeline()
    before, alone = anatomy(pipe.unet), draw(pipe)
    scheduler = set(vars(pipe.scheduler))
    attach(pipe, "adaptive")
    draw(pipe)
    detach(pipe)
    assert (anatomy(pipe.unet), set(vars(pipe.scheduler)), sessions(pipe)) == (before, scheduler, [])
    assert torch.equal(draw(pipe), alone)


@pytest.mark.parametrize("end", [detach, lambda model: sessions(model)[0].detach()])
def test_where_nothing_is_attached_nothing_happens(end):
    unet = small_unet()
    detach(unet)
    attach(unet, "adaptive")
    end(unet)
    detach(unet)
    assert sessions(unet) == []


def test_sessions_are_found_by_all_that_they_are_at_work_on():
    pipe = class_pipeline()
    session = attach(pipe, "adaptive")
    block = session.sites[0].block
    for model in (pipe, pipe.unet, torch.compile(pipe.unet), SimpleNamespace(any_name=torch.compile(pipe.unet)), block):
        assert sessions(model) == [session]
    assert sessions(small_unet()) == [] == sessions(copy.deepcopy(pipe))
    detach(torch.compile(pipe.unet))
    assert sessions(pipe) == []


def test_several_sessions_come_in_the_order_of_attach_and_all_end():
    unet = sd_unet()
    before = anatomy(unet)
    coarse, fine = attach(unet, MergeRecipe(levels=(2,))), attach(unet, MergeRecipe(levels=(1,)))
    assert sessions(unet) == [coarse, fine]
    detach(unet)
    assert anatomy(unet) == before


def test_a_session_on_several_networks_leaves_them_all():
    unet = sd_unet()
    pipe = SimpleNamespace(unet=unet, controlnet=controlnet(unet))
    session = attach(pipe, "adaptive", sites=find_sites(pipe.unet) + find_sites(pipe.controlnet))
    assert sessions(pipe.controlnet) == [session] == sessions(pipe)
    detach(pipe.controlnet)
    assert sessions(unet) == []


@pytest.mark.parametrize("failing", [0, 1])
def test_a_session_that_fails_to_end_keeps_no_other_from_it(failing, monkeypatch):
    unet = sd_unet()
    both = [attach(unet, MergeRecipe(levels=(level,))) for level in (1, 2)]
    monkeypatch.setattr(both[failing], "detach", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        detach(unet)
    assert sessions(unet) == [both[failing]]


def test_the_list_of_sessions_keeps_none_alive():
    unet = small_unet()
    gone = weakref.ref(attach(unet, "adaptive"))
    del unet
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("look_up", [sessions, detach])
@pytest.mark.parametrize("nonsense", [None, "unet", SimpleNamespace(unet=3)])
def test_what_has_no_network_is_refused(look_up, nonsense):
    with pytest.raises(TypeError, match="has no network; pass what was passed to attach"):
        look_up(nonsense)


@pytest.mark.parametrize(
    "use",
    [lambda session: session.begin_step(0, 10), lambda session: session.reset(), lambda session: session.__enter__()],
)
def test_a_session_that_is_over_says_so(use):
    unet = small_unet()
    with attach(unet, make_recipe()) as session:
        use(session)
    with pytest.raises(RuntimeError, match=r"detached, so nothing merges: attach again"):
        use(session)
    session.detach()
    attach(unet, session.recipe)
    with pytest.raises(RuntimeError, match="attach again"):
        use(session)


def test_what_a_session_did_can_be_read_when_it_is_over():
    unet = sd_unet()
    with attach(unet, make_recipe()) as session:
        run(SD, unet, session, steps=range(3), total=4)
        texts, plans = [str(session.summary()), session.report()], list(session.plans())
    assert [str(session.summary()), session.report()] == texts
    assert list(session.plans()) == plans != []


def test_detaching_after_somebody_has_taken_off_a_patch_of_the_same_method_restores_everything():
    """As `unittest.mock` takes its patches off: with our own underneath."""
    pipe = class_pipeline()
    before = anatomy(pipe.unet), dict(vars(pipe.scheduler))
    session = attach(pipe, make_recipe())
    pipe.scheduler.step = pipe.scheduler.step.__call__
    del pipe.scheduler.step
    session.detach()
    assert (anatomy(pipe.unet), dict(vars(pipe.scheduler))) == before


def test_patch_that_is_on_at_detach_stays_and_the_next_session_keeps_it():
    pipe, calls = class_pipeline(), []
    unmerged = draw(pipe)

    def count(step):
        @functools.wraps(step)
        def counted(*args, **kwargs):
            calls.append(step)
            return step(*args, **kwargs)

        return counted

    with attach(pipe, make_recipe()):
        merged = draw(pipe)
        pipe.scheduler.step = patch = count(pipe.scheduler.step)
    assert torch.equal(draw(pipe), unmerged) and len(calls) == 5
    with attach(pipe, make_recipe()) as session:
        assert torch.equal(draw(pipe), merged) and len(calls) == 10
        assert session.summary().checkpoints == (0, 2)
    assert pipe.scheduler.step is patch


def test_part_that_fails_to_detach_keeps_no_other_from_it(monkeypatch):
    pipe, limit = class_pipeline(), torch._dynamo.config.recompile_limit
    monkeypatch.setattr(SchedulerSource, "remove", lambda _: 1 / 0)
    before, session = anatomy(pipe.unet), attach(pipe, make_recipe(capacity=None))
    with pytest.raises(ZeroDivisionError):
        session.detach()
    assert anatomy(pipe.unet) == before and sessions(pipe) == []
    assert torch._dynamo.config.recompile_limit == limit
