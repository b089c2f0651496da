"""Which blocks share a segment."""

from itertools import groupby

import pytest
import torch

from catome_adapters import attach, find_sites
from running import TOTAL, call, unet_recipe
from zoo.unets import DEEP

pytestmark = pytest.mark.usefixtures("without_gradients")


def names_of(session) -> list[str]:
    return [row.site for row in session.summary().rows]


def test_segments_do_not_leave_their_transformer(unet):
    hosts = [len(list(group)) for _, group in groupby(find_sites(unet), key=lambda site: id(site.host))]
    with attach(unet, unet_recipe("block", segment=2)) as session:
        call(DEEP, unet, session)
        assert len(names_of(session)) == sum((blocks + 1) // 2 for blocks in hosts)
        first = "down_blocks.1.attentions.0.transformer_blocks"
        assert names_of(session)[:2] == [f"{first}.0 to 1", f"{first}.2"]
        assert "  down_blocks.1.attentions.0 x 3 " in session.report()
        assert set(session.plans()) == set(names_of(session))


@pytest.mark.parametrize(("chosen", "segments"), [([0, 2], 2), ([0, 1], 1), ([1, 0], 2), ([0, 1, 2], 1)])
def test_gap_between_the_chosen_blocks_ends_a_segment(unet, chosen, segments):
    sites = [find_sites(unet)[index] for index in chosen]
    with attach(unet, unet_recipe("block", segment=3), sites=sites) as session:
        call(DEEP, unet, session)
        assert len(names_of(session)) == segments


def test_block_within_a_segment_is_taken(unet):
    with (
        attach(unet, unet_recipe("block", segment=3)),
        pytest.raises(RuntimeError, match=r"call its detach\(\) first"),
    ):
        attach(unet, sites=[find_sites(unet)[1]])


@torch.enable_grad()
def test_segment_refuses_gradient_checkpointing_and_the_remedy_works(unet):
    unet.train().enable_gradient_checkpointing()
    with attach(unet, unet_recipe("block", segment=2)) as session:
        session.begin_step(0, TOTAL)
        with pytest.raises(
            ValueError, match=r"transformer_blocks\.0 to 1 is a segment.*disable_gradient_checkpointing"
        ):
            DEEP.predict(unet)
        unet.disable_gradient_checkpointing()
        session.begin_step(0, TOTAL)
        DEEP.predict(unet).sum().backward()
