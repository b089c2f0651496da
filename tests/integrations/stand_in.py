"""What the node uses of ComfyUI, written from its documentation: nothing here is ComfyUI's.

As there, a patched model is a clone with options of its own, a run of the sampler gets a copy of them, and a UNet hands
patches everything but the patches themselves.
"""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
SIZE, CHANNELS, HEADS, TEXT = 16, 8, 2, 3
Groups = Callable[[int], Sequence[Sequence[int]]]


def load_node() -> ModuleType:
    """The folder, imported as the host imports those in `custom_nodes`."""
    spec = spec_from_file_location(
        "catome_for_comfyui", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(monkeypatch: Any) -> None:
    """The one module of the host that the node imports."""
    extension = ModuleType("comfy.patcher_extension")
    extension.WrappersMP = SimpleNamespace(OUTER_SAMPLE="outer_sample", CALC_COND_BATCH="calc_cond_batch")
    monkeypatch.setitem(sys.modules, "comfy", ModuleType("comfy"))
    monkeypatch.setitem(sys.modules, "comfy.patcher_extension", extension)


def by_heads(*projected: Tensor) -> Tensor:
    heads = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in projected)
    return scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.to_k = nn.Linear(context, CHANNELS, bias=False)
        self.to_v = nn.Linear(context, CHANNELS, bias=False)
        self.to_out = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attend: Callable | None = None) -> Tensor:
        return self.to_out((attend or by_heads)(self.to_q(q), self.to_k(k), self.to_v(v)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(CHANNELS) for _ in range(2))
        self.attn1, self.attn2 = Attention(CHANNELS), Attention(TEXT)

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
        patches, replacements = options.get("patches", {}), options.get("patches_replace", {}).get("attn1", {})
        extra = {name: value for name, value in options.items() if not name.startswith("patches")} | {"n_heads": HEADS}
        place = *options["block"], options["block_index"]
        replacement = replacements.get(place, replacements.get(place[:2]))
        q = k = v = self.norms[0](x)
        for patch in patches.get("attn1_patch", ()):
            q, k, v = patch(q, k, v, extra)
        out = self.attn1(q, k, v, replacement and partial(replacement, extra_options=extra))
        for patch in patches.get("attn1_output_patch", ()):
            out = patch(out, extra)
        x = x + out
        return x + self.attn2(self.norms[1](x), text, text)


class Spatial(nn.Module):
    """Several blocks at one size."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor, text: Tensor, options: dict[str, Any], place: tuple[str, int]) -> Tensor:
        options |= {"block": place, "activations_shape": list(x.shape)}
        tokens = x.flatten(2).transpose(1, 2)
        for index, block in enumerate(self.blocks):
            options["block_index"] = index
            tokens = block(tokens, text, options)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class UNet(nn.Module):
    """Of two sizes: two blocks, one in the middle at half of the size, and one."""

    def __init__(self) -> None:
        super().__init__()
        self.input_blocks, self.output_blocks = nn.ModuleList([Spatial(2)]), nn.ModuleList([Spatial(1)])
        self.middle_block = Spatial(1)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, options: dict[str, Any]) -> Tensor:
        x = x / (1 + sigma.view(-1, 1, 1, 1))
        first = self.input_blocks[0](x, text, options, ("input", 1))
        middle = self.middle_block(avg_pool2d(first, 2, ceil_mode=True), text, options, ("middle", 0))
        return self.output_blocks[0](first + interpolate(middle, first.shape[2:]), text, options, ("output", 0))


class ModelPatcher:
    def __init__(self, network: nn.Module) -> None:
        sampling = SimpleNamespace(percent_to_sigma=lambda percent: 999.0 if percent <= 0 else 10 * (1 - percent))
        self.model = SimpleNamespace(diffusion_model=network, model_sampling=sampling)
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Callable]]] = {}

    def clone(self) -> "ModelPatcher":
        other = ModelPatcher(self.model.diffusion_model)
        other.model_options = deepcopy(self.model_options)
        other.wrappers = {kind: {key: [*one] for key, one in keys.items()} for kind, keys in self.wrappers.items()}
        return other

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Callable) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def _add_patch(self, name: str, patch: Callable) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)

    def set_model_attn1_patch(self, patch: Callable) -> None:
        self._add_patch("attn1_patch", patch)

    def set_model_attn1_output_patch(self, patch: Callable) -> None:
        self._add_patch("attn1_output_patch", patch)

    def set_model_attn1_replace(self, patch: Callable, *place: str | int) -> None:
        options = self.model_options["transformer_options"]
        options.setdefault("patches_replace", {}).setdefault("attn1", {})[place] = patch


class Executor:
    """What a wrapper calls to go on; `class_obj` is whose method is wrapped."""

    def __init__(self, function: Callable, class_obj: Any, wrappers: Sequence[Callable]) -> None:
        self.class_obj = class_obj
        inner = partial(Executor, function, class_obj, wrappers[1:])
        self.call = (lambda *args, **kwargs: wrappers[0](inner(), *args, **kwargs)) if wrappers else function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def copied(options: Any) -> Any:
    """Nested dictionaries and lists are copied, what is in them is not."""
    if isinstance(options, dict):
        return {name: copied(value) for name, value in options.items()}
    return [*options] if isinstance(options, list) else options


def together(evaluation: int) -> Sequence[Sequence[int]]:
    return [[1, 0]]


class Guider:
    """Draws by Euler's method from two conds, which it puts into batches as `groups` says for each evaluation.

    The host copies the options for a run; a test can forbid it.
    """

    def __init__(self, patcher: ModelPatcher, batch: int = 1, groups: Groups = together, copies: bool = True) -> None:
        self.model_patcher, self.groups, self.batch, self.copies = patcher, groups, batch, copies
        self.model_options = patcher.model_options
        self.uuids = [UUID(int=index) for index in range(2)]
        self.evaluations = 0

    @torch.inference_mode()
    def sample(self, sigmas: Sequence[float], size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
        noise = torch.randn(self.batch, CHANNELS, *size, generator=torch.Generator().manual_seed(0))
        before, self.evaluations = self.model_options, 0
        self.model_options = copied(before) if self.copies else before
        try:
            run = self._wrapped("outer_sample", self._outer_sample, self)
            return run(noise, torch.zeros_like(noise), None, torch.tensor(sigmas), None, seed=0)
        finally:
            self.model_options = before

    def _outer_sample(
        self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any, seed: int
    ) -> Tensor:
        options = copied(self.model_options)
        options["transformer_options"]["sample_sigmas"] = sigmas
        x = latent + noise * sigmas[0]
        for sigma, following in pairwise(sigmas):
            evaluate = self._wrapped("calc_cond_batch", self._calc_cond_batch, None)
            cond, uncond = evaluate(self, [0, 1], x, sigma.expand(self.batch), options)
            self.evaluations += 1
            x = x + (uncond + 2 * (cond - uncond)) * (following - sigma)
        return x

    def _wrapped(self, kind: str, function: Callable, class_obj: Any) -> Executor:
        wrappers = self.model_patcher.wrappers.get(kind, {}).values()
        return Executor(function, class_obj, [*chain.from_iterable(wrappers)])

    def _calc_cond_batch(self, model: Any, conds: Any, x: Tensor, timestep: Tensor, model_options: Any) -> list[Tensor]:
        outputs: dict[int, Tensor] = {}
        for group in self.groups(self.evaluations):
            options = copied(model_options["transformer_options"])
            options |= {"cond_or_uncond": [*group], "uuids": [self.uuids[index] for index in group], "sigmas": timestep}
            text = torch.cat([torch.full((len(x), 2, TEXT), 1.0 + index) for index in group])
            repeated = x.repeat(len(group), 1, 1, 1), timestep.repeat(len(group))
            network = self.model_patcher.model.diffusion_model
            outputs |= zip(group, network(*repeated, text, options).chunk(len(group)), strict=True)
        return [outputs[index] for index in range(2)]
