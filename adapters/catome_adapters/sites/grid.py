"""The size of a model's token grid, from the arguments that the model is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]


class GridSize(NamedTuple):
    """The grid of one call.

    Attributes:
        shape: (height, width) or (frames, height, width), in tokens.
        extra: Number of tokens behind the grid that belong to no grid, such as reference images; None: unknown.
    """

    shape: Shape
    extra: int | None = None


Measure = Callable[[Mapping[str, Any]], Shape | GridSize]
"""Computes the size of the grid from the arguments of a call, by name. It returns the shape alone, or a `GridSize`."""


def grid_size(measured: Shape | GridSize) -> GridSize:
    """What a `Measure` returned, as a `GridSize`.

    Examples:
        >>> grid_size((3, 4))
        GridSize(shape=(3, 4), extra=None)
    """
    return measured if isinstance(measured, GridSize) else GridSize(measured)


def image_plane(arguments: Mapping[str, Any]) -> Shape:
    """One token per pixel of an image (batch, channels, height, width), the first argument.

    Examples:
        >>> image_plane({"x": torch.zeros(2, 4, 6, 8)})
        (6, 8)
    """
    image = next(iter(arguments.values()))
    return tuple(image.shape[-2:])


def patches(argument: str, patch: Shape, *, frames_first: bool = False) -> Measure:
    """One token per patch of an image (batch, channels, height, width) or video (batch, channels, frames, ...).

    Args:
        argument: The argument that holds it.
        patch: Size of a patch, (height, width) or (frames, height, width).
        frames_first: A video is (batch, frames, channels, height, width).

    Examples:
        >>> patches("x", (2, 2))({"x": torch.zeros(2, 4, 6, 8)})
        (3, 4)
        >>> patches("x", (1, 2, 2), frames_first=True)({"x": torch.zeros(2, 5, 3, 6, 8)})
        (5, 3, 4)
    """

    def measure(arguments: Mapping[str, Any]) -> Shape:
        shape = arguments[argument].shape
        sizes = (shape[1], *shape[3:]) if frames_first else shape[2:]
        if len(sizes) != len(patch):
            raise ValueError(
                f"{argument} has shape {tuple(shape)}; expected {len(patch)} sizes of an image or video, one for each "
                f"of patch={patch}: pass a patch of {len(sizes)} sizes, or another function as grid_of"
            )
        return tuple(size // step for size, step in zip(sizes, patch, strict=True))

    return measure


def sizes_from(*names: str) -> Measure:
    """The sizes are arguments of the call, as numbers.

    Examples:
        >>> sizes_from("height", "width")({"height": 3, "width": 4})
        (3, 4)
    """

    def measure(arguments: Mapping[str, Any]) -> Shape:
        given = tuple(arguments.get(name) for name in names)
        sizes = tuple(size for size in given if isinstance(size, int))
        if sizes != given:
            raise ValueError(
                f"the model was called with {names} = {given}; expected numbers, which give the size of the grid: "
                "pass them, or detach the session for this call"
            )
        return sizes

    return measure


def shapes_from(argument: str) -> Measure:
    """An argument lists the sizes (frames, height, width) of every sample's images; the first image is the one drawn.

    Examples:
        >>> shapes_from("img_shapes")({"img_shapes": [[(1, 3, 4), (1, 9, 9)], [(1, 3, 4), (1, 9, 9)]]})
        GridSize(shape=(3, 4), extra=81)
    """

    def measure(arguments: Mapping[str, Any]) -> GridSize:
        samples = arguments[argument]
        images = [sample if isinstance(sample, list) else [sample] for sample in samples]
        if len({tuple(sizes[0]) for sizes in images}) != 1:
            raise ValueError(f"{argument} is {samples}; expected images of one size, since a batch shares its grid")
        (frames, *plane), *others = images[0]
        shape = tuple(plane) if frames == 1 else (frames, *plane)
        return GridSize(shape, sum(prod(size) for size in others))

    return measure


COMPILED = "the model was compiled with; call torch.compiler.reset() before another size"
WRITTEN = (
    "was read from them, and no write that torch counts came after: pass another tensor, or copy_() into one that was "
    "made outside of torch.inference_mode()"
)


class PositionGrid:
    """An argument holds the position (..., row, column) of every token: int or float (tokens, 3 or more).

    Tokens whose other coordinates differ from those of the first token (reference images) belong to no grid. The
    positions are read from the device once per tensor, and again after torch has written into it. Torch does not count
    writes through `.data`, numpy or a replayed CUDA graph, nor into tensors of inference mode, and to see them would
    take a read at every call. So every call compares the positions with the grid on the device, and so does a compiled
    model with the grid that it was compiled for. If they differ, that is a RuntimeError on a CPU; on a GPU it is a
    device-side assertion, after which the process has to be restarted.
    """

    def __init__(self, argument: str, row: int = 1) -> None:
        self.argument, self.row = argument, row
        # Not where it is defined: this imports the compiler, which takes longer than all the rest of the library.
        torch.compiler.assume_constant_result(_read)
        self.known: tuple[Tensor | None, int | None, Shape] = (None, None, ())

    def __call__(self, arguments: Mapping[str, Any]) -> GridSize:
        """The grid of the first image."""
        given: Tensor = arguments[self.argument]
        positions = self.positions(given[0] if given.ndim == 3 else given, arguments)
        shape = self._shape(given, positions)
        return GridSize(shape, len(positions) - prod(shape))

    def positions(self, given: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        """One sample's positions as they are read: those of the image first, one apart."""
        return given

    def _shape(self, given: Tensor, positions: Tensor) -> Shape:
        # What is known is known of the tensor that was given: an index makes another one in every call.
        if torch.compiler.is_compiling():
            shape = _read(positions, self.row)
            _expect_positions(positions, self.row, shape, COMPILED)
            return shape
        # Tensors of inference mode have no version.
        version = None if given.is_inference() else given._version
        if self.known[0] is not given or self.known[1] != version:
            self.known = given, version, _read(positions, self.row)
        else:
            _expect_positions(positions, self.row, self.known[2], WRITTEN)
        return self.known[2]


def _read(positions: Tensor, row: int) -> Shape:
    rows = positions.tolist()
    first = rows[0][:row]
    image = [one[row : row + 2] for one in rows if one[:row] == first]
    (top, bottom), (left, right) = ((min(line), max(line)) for line in zip(*image, strict=True))
    height, width = int(bottom - top) + 1, int(right - left) + 1
    raster = [[*first, top + index // width, left + index % width] for index in range(height * width)]
    if [one[: row + 2] for one in rows[: len(image)]] != raster:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} name {len(image)} tokens in {height} rows and {width} "
            "columns; expected a full grid in raster order, in front of all other tokens (behind them, where the image "
            "comes last)"
        )
    return height, width


def _expect_positions(positions: Tensor, row: int, shape: Shape, reason: str) -> None:
    """Raise RuntimeError if the positions are not those of this grid; the host does not wait for the device."""
    height, width = shape
    index = torch.arange(len(positions), device=positions.device)
    in_grid = index < height * width
    of_image = (positions[:, :row] == positions[:1, :row]).all(-1)
    expected = torch.stack([index // width, index % width], -1) + positions[:1, row : row + 2]
    at_place = (positions[:, row : row + 2] == expected).all(-1)
    fits = (of_image == in_grid) & (at_place | ~in_grid)
    message = f"positions are not those of the {height} x {width} grid that {reason}"
    torch.ops.aten._assert_async.msg(fits.all(), message)
