"""A model is restored exactly: once, whoever detaches again, whatever fails in `attach`, and under others' classes."""

from typing import Any

import pytest

from catome_adapters import attach, detach, find_sites, sessions
from catome_adapters.steps import sources
from probes import anatomy
from running import make_recipe, run
from zoo.transformers import ARCHITECTURES
from zoo.unets import SMALL, small_unet

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_detaching_again_leaves_the_next_session_alone():
    unet = small_unet()
    first = attach(unet, make_recipe())
    first.detach()
    second = attach(unet, make_recipe())
    attached = anatomy(unet)
    first.detach()
    assert (anatomy(unet), sessions(unet)) == (attached, [second])


def test_blocks_that_are_one_module_are_refused_by_name():
    network = ARCHITECTURES["DiT"].network()
    network.transformer_blocks[1] = network.transformer_blocks[0]
    before = anatomy(network)
    with pytest.raises(
        ValueError, match=r"transformer_blocks\.0 and transformer_blocks\.1 have the same self-attention"
    ):
        attach(network, make_recipe())
    assert (anatomy(network), sessions(network)) == (before, [])


class Wrapper:
    """A network behind a property, and no `__dict__`."""

    __slots__ = ("held",)

    def __init__(self, network: Any) -> None:
        self.held = network

    @property
    def unet(self) -> Any:
        return self.held


def test_whatever_was_attached_can_run_and_be_detached():
    wrapper = Wrapper(small_unet())
    session = attach(wrapper, make_recipe())
    run(SMALL, wrapper.unet, session, steps=range(2))
    assert sessions(wrapper) == [session]
    detach(wrapper)
    assert sessions(wrapper) == []


def broken(*_: object, **__: object) -> None:
    raise OSError("broken")


@pytest.mark.parametrize("part", ["register_forward_pre_hook", "register_forward_hook", "a source"])
def test_an_attach_that_fails_half_way_leaves_nothing(part, monkeypatch):
    unet = small_unet()
    before, last = anatomy(unet), find_sites(unet)[-1]
    if part == "a source":
        monkeypatch.setattr(sources, "SOURCES", [*sources.SOURCES, broken])
    else:
        monkeypatch.setattr(last.block, part, broken)
    with pytest.raises(OSError, match="broken"):
        attach(unet, make_recipe())
    monkeypatch.undo()
    assert (anatomy(unet), sessions(unet)) == (before, [])
    attach(unet, make_recipe()).detach()
    assert anatomy(unet) == before


def test_a_class_that_others_have_put_on_top_stays_and_the_model_can_be_attached_again():
    unet = small_unet()
    session = attach(unet, make_recipe())
    attention = session.sites[0].attention
    on_top = type("OnTop", (type(attention),), {})
    attention.__class__ = on_top
    session.detach()
    with attach(unet, make_recipe()) as again:
        assert type(attention) is on_top
        assert again.sites[0].attention is attention
    assert type(attention) is on_top and sessions(unet) == []
