"""`catome train`: train a shipped model on six photographs, from scratch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from catome_bench.commands.options import choose_device
from catome_bench.files import check_file, check_folder, whole_file
from catome_bench.measure.rows import describe
from catome_bench.models.photographs import CLASS_NAMES, PHOTOGRAPHS, load_photograph, random_view, to_latents
from catome_bench.models.pipeline import PIPELINES
from catome_bench.models.untrained import UNTRAINED, build_scheduler
from catome_bench.models.weights import SHIPPED
from catome_bench.names import Arch

EMA_DECAY = 0.995
WARM_UP = 100
SAVE_EVERY = 200


class Stage(NamedTuple):
    """One stage of training, on random windows of `window` pixels out of views of `pixels`."""

    iterations: int
    pixels: int
    window: int
    batch: int
    learning_rate: float


# Small windows first: they are cheap and teach color and texture. The last stage trains on the size that the demo
# draws; its batches are small, and at a rate of 1e-3 it diverges. A DiT has absolute positions, which a window would
# shift: it trains on whole pictures, small ones first.
STAGES: dict[Arch, tuple[Stage, ...]] = {
    "unet": (Stage(1600, 64, 32, 32, 1e-3), Stage(1200, 64, 64, 16, 1e-3), Stage(900, 128, 128, 4, 3e-4)),
    "dit": (Stage(1400, 64, 64, 16, 1e-3), Stage(450, 128, 128, 4, 3e-4), Stage(700, 128, 128, 4, 3e-4)),
    "dit-patch1": (Stage(1500, 64, 64, 16, 1e-3), Stage(1200, 128, 128, 8, 5e-4), Stage(1600, 128, 128, 8, 5e-4)),
}


class Trainer:
    """Model, moving average and optimizer; each iteration has its own seed, so a resumed run gives the same result."""

    def __init__(self, device: torch.device, seed: int, arch: Arch = "unet") -> None:
        torch.manual_seed(seed)
        self.device, self.seed, self.iteration = device, seed, 0
        self.arch: Arch = arch
        # Eval mode: `batch` drops labels, from its own seed; a DiT in training mode would drop others, in every block.
        self.model = UNTRAINED[arch]().eval()
        nn.Module.to(self.model, device)
        nn.Module.to(self.model, memory_format=torch.channels_last)
        start_as_identity(self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-3)
        self.alphas = build_scheduler().alphas_cumprod.to(device)
        self.squares = [load_photograph(photograph) for photograph in PHOTOGRAPHS]

    def batch(self, stage: Stage) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents, noise, timesteps and labels of this iteration; about a tenth of the labels mean no class."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.iteration)
        labels = torch.randint(len(PHOTOGRAPHS), (stage.batch,), generator=generator)
        views = [random_view(self.squares[label], stage.pixels, generator) for label in labels.tolist()]
        latents = random_window(to_latents(torch.stack(views)), stage.window // 2, generator)
        noise = torch.randn(latents.shape, generator=generator)
        strata = (torch.arange(stage.batch) + torch.rand(stage.batch, generator=generator)) / stage.batch
        # The last stratum may be rounded to 1.
        timesteps = (strata * len(self.alphas)).long().clamp_max(len(self.alphas) - 1)
        dropped = torch.rand(stage.batch, generator=generator) < 0.1
        labels = labels.masked_fill(dropped, len(PHOTOGRAPHS))
        return latents.to(self.device), noise.to(self.device), timesteps.to(self.device), labels.to(self.device)

    def step(self, stage: Stage) -> float:
        """One optimizer step of v-prediction; returns the loss."""
        latents, noise, timesteps, labels = self.batch(stage)
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        conditions = PIPELINES[self.arch].conditions(labels, len(PHOTOGRAPHS), noisy.dtype)
        with torch.autocast(self.device.type, torch.bfloat16):
            prediction = self.model(noisy, timesteps, **conditions, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(STAGES[self.arch], stage, self.iteration)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.iteration += 1
        decay = min(EMA_DECAY, (1 + self.iteration) / (10 + self.iteration))
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.model.parameters()), 0)
        return loss.item()

    def save(self, file: Path) -> None:
        """Write everything that a later run needs; the old file is replaced only once the new one is complete."""
        state = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        with whole_file(file) as part:
            torch.save(state | {"iteration": self.iteration, "seed": self.seed, "arch": self.arch}, part)

    def load(self, file: Path) -> None:
        """Continue where `save` stopped."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["arch"] != self.arch:
            raise ValueError(f"{file} trains arch {state['arch']!r}; expected {self.arch!r}: choose another file")
        if state["seed"] != self.seed:
            raise ValueError(f"{file} trains with seed {state['seed']}; expected {self.seed}: choose another file")
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.iteration = state["iteration"]


def start_as_identity(model: nn.Module) -> None:
    """Zero the gates and the last layer of a DiT, as in the DiT paper; a UNet has neither."""
    closed = [block.norm1.linear for block in getattr(model, "transformer_blocks", ())]
    for layer in [*closed, *filter(None, [getattr(model, "proj_out_2", None)])]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def random_window(latents: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cut one random (side, side) window out of latents (batch, channels, h, w), the same for the batch."""
    spare = latents.shape[-1] - side
    x, y = torch.randint(spare + 1, (2,), generator=generator).tolist()
    return latents[..., y : y + side, x : x + side]


def learning_rate(stages: tuple[Stage, ...], stage: Stage, iteration: int) -> float:
    """The stage's rate, with a warm-up at the start of training and a linear decay to zero over the last stage."""
    total = sum(one.iterations for one in stages)
    return stage.learning_rate * min(1, (iteration + 1) / WARM_UP, (total - iteration) / stages[-1].iterations)


def remaining_stages(stages: tuple[Stage, ...], done: int) -> Iterator[Stage]:
    """The stage of each remaining iteration."""
    for stage in stages:
        yield from [stage] * max(0, stage.iterations - done)
        done = max(0, done - stage.iterations)


def export(trainer: Trainer, folder: Path) -> None:
    """Write the averaged weights as fp16 safetensors, in diffusers' own folder layout."""
    network = copy.deepcopy(trainer.average)
    # Not the model's own `to`, which warns about modules that should stay in full precision.
    nn.Module.to(network, "cpu", torch.float16)
    nn.Module.to(network, memory_format=torch.contiguous_format)
    pipeline = PIPELINES[trainer.arch](network, build_scheduler(), CLASS_NAMES)
    with TemporaryDirectory(dir=folder) as part:
        pipeline.save_pretrained(part)
        for file in [path for path in Path(part).rglob("*") if path.is_file()]:
            target = folder / file.relative_to(part)
            target.parent.mkdir(exist_ok=True)
            file.replace(target)


def run_training(arch: Arch, *, output: Path | None, checkpoint: Path, device: str | None, seed: int) -> None:
    """Train a network, from the checkpoint if there is one, and write its pipeline to `output`.

    Raises:
        typer.BadParameter: If the checkpoint is of something else, or one of the two could not be written.
    """
    trainer = Trainer(torch.device(choose_device(device)), seed, arch)
    check_file(checkpoint, "--checkpoint")
    if checkpoint.exists():
        _resume(trainer, checkpoint)
    check_folder(output or SHIPPED / arch, "--output")
    run(trainer, checkpoint)
    export(trainer, output or SHIPPED / arch)


def _resume(trainer: Trainer, checkpoint: Path) -> None:
    try:
        trainer.load(checkpoint)
    except Exception as error:
        message = f"{checkpoint} cannot be resumed ({describe(error)}); choose another file"
        raise typer.BadParameter(message, param_hint="--checkpoint") from error


def run(trainer: Trainer, checkpoint: Path) -> None:
    """Run the remaining iterations, and save a checkpoint at regular intervals."""
    stages = STAGES[trainer.arch]
    total = sum(stage.iterations for stage in stages)
    with tqdm(total=total, initial=trainer.iteration, unit="it") as bar:
        for stage in remaining_stages(stages, trainer.iteration):
            bar.set_postfix(pixels=stage.window, loss=f"{trainer.step(stage):.4f}")
            bar.update()
            if trainer.iteration % SAVE_EVERY == 0 or trainer.iteration == total:
                trainer.save(checkpoint)
