"""Whole runs of a UNet, alone and in a pipeline, with the same methods."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.noise import noise
from zoo.unet_pipelines import sd_pipeline
from zoo.unets import predict, sd_unet, sdxl_unet


class BareNetwork:
    """A network without a scheduler: every step begins with `begin_step`."""

    def __init__(self, network: nn.Module) -> None:
        self.source = self.network = network

    @torch.no_grad()
    def run(self, session: Any = None, *, batch: int = 2, size: tuple[int, int] = (16, 16), steps: int = 3) -> Tensor:
        sample = noise(batch, self.network.config.in_channels, *size)
        for step in range(steps):
            if session is not None:
                session.begin_step(step, steps)
            sample = sample - 0.2 * predict(self.network, sample, 900 - 100 * step)
        return sample


class TextToImage:
    """A Stable Diffusion pipeline: the session reads its steps from the scheduler. Sizes are those of the latents."""

    def __init__(self, pipe: Any) -> None:
        self.source, self.network = pipe, pipe.unet

    def run(self, session: Any = None, *, batch: int = 2, size: tuple[int, int] = (16, 16), steps: int = 3) -> Tensor:
        prompts, (height, width) = ["a cat", "a dog", "a fox"][:batch], size
        return self.source(
            prompts,
            height=2 * height,
            width=2 * width,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images


UNET_RUNS: dict[str, Callable[[], Any]] = {
    "sd1": lambda: BareNetwork(sd_unet()),
    "sdxl": lambda: BareNetwork(sdxl_unet()),
    "pipeline": lambda: TextToImage(sd_pipeline()),
}
