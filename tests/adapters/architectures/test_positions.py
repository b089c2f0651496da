"""Positions that are an argument of the model: whoever writes into the tensor gets the new grid, or an error."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from catome_adapters import GridSize, PositionGrid, attach
from catome_adapters.architectures.measures import HalvedPositions, PositionsAtEnd
from running import call, make_recipe
from zoo.packed_images import REFERENCES, positions
from zoo.transformers import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("fresh_compiler", "without_gradients")

FLUX = ARCHITECTURES["Flux"]


def ids(*size: int) -> Tensor:
    return positions(*size, first=0, width=3)


def test_a_buffer_that_is_written_in_place_gives_the_grid_of_what_it_holds():
    network, buffer = FLUX.network(), ids(8, 8)
    with attach(network, make_recipe(capacity=0.0, spare="fill", radius=0)) as session:
        call(FLUX, network, session, img_ids=buffer)
        buffer.copy_(ids(4, 16))
        written = call(FLUX, network, session, img_ids=buffer)
        assert torch.equal(written, call(FLUX, network, session, img_ids=ids(4, 16)))


def through_data(buffer: Tensor, new: Tensor) -> None:
    buffer.data.copy_(new)


def through_numpy(buffer: Tensor, new: Tensor) -> None:
    buffer.numpy()[:] = new.numpy()


@pytest.mark.parametrize("write", [through_data, through_numpy, Tensor.copy_], ids=["data", "numpy", "inference"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (ids(8, 8), ids(4, 16)),
        (torch.cat([ids(4, 8), positions(4, 8, first=1, width=3)]), ids(8, 8)),
        (ids(8, 8), torch.cat([ids(4, 8), positions(4, 8, first=1, width=3)])),
    ],
    ids=["another shape", "a reference joins the image", "half of the image becomes a reference"],
)
def test_what_torch_does_not_count_as_a_write_is_an_error(
    write: Callable[[Tensor, Tensor], object], before: Tensor, after: Tensor
):
    grid = PositionGrid("img_ids")
    with torch.inference_mode(write is Tensor.copy_):
        buffer = before.clone()
        size = grid({"img_ids": buffer})
        assert grid({"img_ids": buffer}) == size
        write(buffer, after)
        with pytest.raises(RuntimeError, match=r"not those of the . x 8 grid that was read .* pass another tensor"):
            grid({"img_ids": buffer})


class Reads(TorchFunctionMode):
    """Counts copies of tensors to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") == "tolist"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["tokens", "batch"])
def test_positions_are_read_once_and_then_compared_where_they_are(inference, batch):
    """With a batch dimension, too, which makes a tensor of its own of every sample."""
    grid = PositionGrid("img_ids")
    with torch.inference_mode(inference), Reads() as reads:
        buffer = torch.cat([ids(5, 7), positions(3, 3, first=1, width=3)]).repeat(*batch, 1, 1)
        assert [grid({"img_ids": buffer}) for _ in range(3)] == [((5, 7), REFERENCES)] * 3
    assert reads.count == 1


def test_a_compiled_grid_takes_no_reference_for_a_part_of_its_image():
    compiled = torch.compile(PositionGrid("img_ids"), fullgraph=True, backend="eager")
    assert compiled({"img_ids": torch.cat([ids(4, 8), positions(4, 8, first=1, width=3)])}) == ((4, 8), 32)
    with pytest.raises(RuntimeError, match=r"not those of the 4 x 8 grid .* call torch.compiler.reset\(\)"):
        compiled({"img_ids": ids(8, 8)})


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1)])
def test_positions_behind_those_of_text(size):
    """Text at the position of the first pixel, as Krea 2 has it, and text that is part of the sequence."""
    image = ids(*size)
    tokens = torch.zeros(1, len(image), 4)
    behind_text = torch.cat([torch.zeros(4, 3), image])
    assert PositionsAtEnd()({"position_ids": behind_text, "hidden_states": tokens}) == GridSize(size, 0)
    whole = torch.cat([torch.arange(4.0)[:, None].repeat(1, 3), image + 100])
    tokens = torch.zeros(2, len(whole), 4)
    assert PositionsAtEnd()({"position_ids": whole.repeat(2, 1, 1), "hidden_states": tokens}) == GridSize(size, 0)


def test_samples_with_images_of_other_sizes_are_an_error():
    positions, tokens = torch.stack([ids(8, 8), ids(4, 16)]), torch.zeros(2, 64, 4)
    with pytest.raises(RuntimeError, match="have other images than the first one"):
        PositionsAtEnd()({"position_ids": positions, "hidden_states": tokens})


def test_positions_half_as_far_apart_with_references_of_their_own():
    grid, image = HalvedPositions("img_ids"), ids(5, 7) * torch.tensor([1.0, 0.5, 0.5])
    assert grid({"img_ids": image}) == GridSize((5, 7), 0)
    assert grid({"img_ids": image, "image_cond_ids": ids(3, 3)}) == GridSize((5, 7), 9)
    with pytest.raises(ValueError, match="expected a full grid"):
        grid({"img_ids": ids(5, 7)})
