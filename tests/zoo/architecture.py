"""A kind of transformer: how to build a tiny one, and how to call it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.noise import each_sample, seeded

Size = tuple[int, ...]
Arguments = dict[str, Any]

PIXELS = ((16, 16), (10, 14))
TOKENS = ((8, 8), (5, 7))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A kind of transformer.

    Attributes:
        build: Makes the network, always with the same weights.
        arguments: From the sample (see `sample`), the size and the number of text tokens to the arguments of a call.
        sizes: Of latents: the usual one, and one that is neither square nor a multiple of the merge's cells.
        sample: The shape of the sample for a batch and a size.
        grid: The tokens' grid for a size.
        blocks: Names of the classes of its blocks.
        refiners: Lists of such blocks that text or image pass by itself, and that are left alone.
        depths: Arguments of `build`, each a number of blocks of one kind.
        graphs: Of the compiled network: one recomputes, one reuses, and one reads an argument that holds positions.
        references: Tokens behind the grid's, of a reference image or, in one sequence with them, text and padding.
        history: Tokens in front of the grid's, of frames of before, at the first size.
        refused: Scopes that do not work.
        text: Tokens of the text.
        registers: Tokens that the network puts in front of the text.
    """

    build: Callable[..., nn.Module]
    arguments: Callable[[Tensor, Size, int], Arguments]
    sizes: tuple[Size, Size]
    sample: Callable[[int, Size], Size]
    grid: Callable[[Size], Size]
    blocks: tuple[str, ...]
    refiners: tuple[str, ...] = ()
    depths: tuple[str, ...] = ("num_layers",)
    graphs: int = 2
    references: int = 0
    history: int = 0
    refused: tuple[str, ...] = ()
    text: int = 5
    registers: int = 0

    def network(self, **changes: Any) -> Any:
        """The network, the same whatever ran before; its modulation is not left at zero."""
        with seeded():
            network = self.build(**changes).eval()
            for name, parameter in network.named_parameters():
                # Fresh networks modulate by next to nothing, and would show no difference.
                if "norm" in name and "linear.weight" in name:
                    nn.init.normal_(parameter, std=0.2)
        return network

    def shallow(self) -> Any:
        """One block of each kind: the compiler takes its time."""
        return self.network(**dict.fromkeys(self.depths, 1))

    def inputs(self, batch: int = 2, *, size: Size | None = None, seed: int = 0) -> Arguments:
        """The arguments of a call; a sample does not depend on the batch."""
        size = size or self.sizes[0]
        shape = self.sample(1, size)[1:]
        return self.arguments(each_sample(batch, *shape, seed=seed), size, self.text)

    def predict(
        self, network: nn.Module, *, batch: int = 2, size: Size | None = None, seed: int = 0, **changes: Any
    ) -> Tensor:
        """One call, with gradients; `changes` are arguments of the network."""
        predicted = network(**self.inputs(batch, size=size, seed=seed) | changes, return_dict=False)
        # Kandinsky 5 returns no tuple.
        predicted = predicted if isinstance(predicted, Tensor) else predicted[0]
        return torch.stack(predicted) if isinstance(predicted, list) else predicted

    @torch.no_grad()
    def call(self, network: nn.Module, **options: Any) -> Tensor:
        """The same without gradients."""
        return self.predict(network, **options)


def image_sample(channels: int) -> Callable[[int, Size], Size]:
    """A sample (batch, channels, *size)."""
    return lambda batch, size: (batch, channels, *size)


def token_sample(channels: int, references: int = 0) -> Callable[[int, Size], Size]:
    """A sample (batch, tokens, channels), with the tokens of reference images behind those of the image."""
    return lambda batch, size: (batch, area(size) + references, channels)


def area(size: Size) -> int:
    return torch.Size(size).numel()


def whole(size: Size) -> Size:
    """The grid of a network that takes tokens."""
    return size


def halved(size: Size) -> Size:
    """The grid of a network whose patches are 2 x 2."""
    return (*size[:-2], size[-2] // 2, size[-1] // 2)


def timestep(batch: int) -> Tensor:
    return torch.full((batch,), 500)


def text_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    """Sample, timestep and text, which are all that many networks take."""
    return {
        "hidden_states": sample,
        "encoder_hidden_states": each_sample(len(sample), text, 8),
        "timestep": timestep(len(sample)),
    }


def pooled_inputs(sample: Tensor, size: Size, text: int) -> Arguments:
    return text_inputs(sample, size, text) | {"pooled_projections": each_sample(len(sample), 8)}


def mask_last(batch: int, text: int) -> Tensor:
    """A mask (batch, text) that leaves out the last token of the text."""
    return torch.ones(batch, text).index_fill(1, torch.tensor([text - 1]), 0.0)
