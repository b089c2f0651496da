"""Record what the reference implementation, `ca-tome` 0.1.3, does, for tests/bench/test_peers.py to compare with.

`ca-tome` pins torch < 2.2.2 and numpy < 2, so it runs in an environment of its own, never beside this library:

    python3.11 -m venv reference-env
    reference-env/bin/pip install ca-tome==0.1.3
    reference-env/bin/python tests/bench/reference/make_ca_tome.py

The file in the repository was made that way on Linux x86-64, on the CPU, with Python 3.11.7, ca-tome 0.1.3,
torch 2.2.1, numpy 1.26.4 and safetensors 0.8.0 (the metadata has the versions too); a second run gives the same bytes.

Nothing of the reference is copied. It is observed from outside: unmerging the slot numbers tells which slot each token
went to, and a source that shares its slot with a destination has been merged into it.
"""

import importlib.util
import json
from collections import ChainMap
from collections.abc import Callable
from importlib.metadata import distribution, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate, normalize

OUTPUT = Path(__file__).with_name("ca_tome.safetensors")
CHANNELS = 16
THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.999, 1.0)
MARGIN = 1e-5  # far above float32 rounding of a cosine, so no comparison depends on the order of a sum
CHECKPOINTS = (0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49)  # config_3 of the paper


class Case(NamedTuple):
    shape: tuple[int, int]
    stride: tuple[int, int]
    seed: int

    @property
    def name(self) -> str:
        return "{}x{} by {}x{}".format(*self.shape, *self.stride)


CASES = (
    Case((8, 8), (2, 2), 0),
    Case((6, 10), (2, 2), 1),
    Case((10, 6), (2, 2), 2),
    Case((16, 12), (2, 2), 3),
    Case((8, 16), (4, 2), 4),
)


class Observation(NamedTuple):
    pairs: Tensor  # int16 (batch, merged, 2): source token, destination token
    round_trip: Tensor  # float32 (batch, tokens, channels): unmerge(merge(tokens))


def load_matcher() -> ModuleType:
    # The package's __init__ wants a diffusers that this old torch cannot import; the matcher alone needs only torch.
    path = distribution("ca-tome").locate_file("ca_tome/merge.py")
    spec = importlib.util.spec_from_file_location("ca_tome_merge", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MATCHER = load_matcher()


def make_tokens(case: Case, similar: bool = True) -> Tensor:
    """A smooth field under noise that grows from left to right, so that best cosines spread from low to almost 1."""
    generator = torch.Generator().manual_seed(case.seed)
    height, width = case.shape
    coarse = torch.randn(1, CHANNELS, 3, 3, generator=generator)
    field = interpolate(coarse, size=case.shape, mode="bilinear", align_corners=True)
    strength = torch.linspace(0.02, 2.0, width) if similar else torch.full((width,), 3.0)
    noise = torch.randn(1, CHANNELS, height, width, generator=generator) * strength
    return (field + noise).flatten(2).transpose(1, 2).contiguous()


def destination_tokens(case: Case) -> Tensor:
    raster = torch.arange(case.shape[0] * case.shape[1]).view(case.shape)
    return raster[:: case.stride[0], :: case.stride[1]].flatten()


def assert_clear_of_ties(tokens: Tensor, case: Case) -> None:
    unit = normalize(tokens.double(), dim=-1)
    destinations = destination_tokens(case)
    sources = torch.ones(tokens.shape[1], dtype=torch.bool).index_fill(0, destinations, False)
    first, second = (unit[:, sources] @ unit[:, destinations].mT).topk(2).values.unbind(-1)
    assert (first - second).min() > MARGIN, f"{case}: two destinations are equally similar, choose another seed"
    distance = (first[..., None] - torch.tensor(THRESHOLDS)).abs().min()
    assert distance > MARGIN, f"{case}: a cosine is at a threshold, choose another seed"


def empty_cache() -> dict[str, object]:
    return {"compute_on": CHECKPOINTS, "merge": None, "unmerge": None}


def observe(
    tokens: Tensor, case: Case, threshold: float, cache: dict[str, object] | None = None, step: int = 1
) -> Observation:
    (height, width), (stride_y, stride_x) = case.shape, case.stride
    cache = cache or empty_cache()
    merge, unmerge = MATCHER.bipartite_soft_matching_random2d(
        tokens, width, height, stride_x, stride_y, threshold, cache, step, no_rand=True
    )
    merged = merge(tokens)
    return Observation(find_pairs(unmerge, merged.shape, case), unmerge(merged))


def find_pairs(unmerge: Callable[[Tensor], Tensor], merged_shape: torch.Size, case: Case) -> Tensor:
    batch, slots, _ = merged_shape
    slot = unmerge(torch.arange(slots, dtype=torch.float32).expand(batch, slots)[..., None])[..., 0]
    destinations = destination_tokens(case)
    together = slot[:, :, None] == slot[:, None, destinations]
    together[:, destinations] = False
    return torch.stack([to_pairs(sample, destinations) for sample in together])


def to_pairs(together: Tensor, destinations: Tensor) -> Tensor:
    source, cell = together.nonzero(as_tuple=True)
    return torch.stack([source, destinations[cell]], dim=-1).to(torch.int16)


def record_single(case: Case) -> dict[str, Tensor]:
    """One sample at every threshold. Where nothing merges the round trip is the tokens themselves and is not stored."""
    tokens = make_tokens(case)
    assert_clear_of_ties(tokens, case)
    record = {f"{case.name}/tokens": tokens}
    for threshold in THRESHOLDS:
        pairs, round_trip = observe(tokens, case, threshold)
        record[f"{case.name}/{threshold}/pairs"] = pairs
        if pairs.shape[1]:
            record[f"{case.name}/{threshold}/round_trip"] = round_trip
        else:
            assert torch.equal(round_trip, tokens)
    return record


def record_batch(case: Case) -> dict[str, Tensor]:
    """A sample of similar and one of dissimilar tokens: alone, together, and together through pairs cached from one."""
    tokens = torch.cat([make_tokens(case), make_tokens(case._replace(seed=5), similar=False)])
    assert_clear_of_ties(tokens, case)
    record = {"batch/tokens": tokens, "batch/together": observe(tokens, case, 0.8).pairs}
    record |= {f"batch/alone_{i}": observe(tokens[i : i + 1], case, 0.8).pairs for i in range(2)}
    cache = empty_cache()
    observe(tokens[:1], case, 0.8, cache, step=1)
    return record | {"batch/cached_from_one": observe(tokens, case, 0.8, cache, step=2).round_trip}


def record_second_image(case: Case) -> dict[str, Tensor]:
    """Two images of 50 steps: the pairs in use at each step of the second.

    As in the reference's pipeline, steps count from 1 and the cache lives as long as the patch.
    """
    images = [make_tokens(case), make_tokens(case._replace(seed=6))]
    assert_clear_of_ties(torch.cat(images), case)
    cache = empty_cache()
    runs = [[observe(image, case, 0.8, cache, step).pairs for step in range(1, 51)] for image in images]
    stale = torch.tensor([torch.equal(pairs, runs[0][-1]) for pairs in runs[1]])
    return {
        "second image/tokens": torch.cat(images),
        "second image/first_pairs": runs[0][-1],
        "second image/own_pairs": runs[1][-1],
        "second image/stale_steps": stale,
    }


def record_zero(case: Case) -> dict[str, Tensor]:
    """The first case again with one destination of all zeros, as masked or padded tokens are."""
    zero = destination_tokens(case)[5]
    tokens = make_tokens(case).index_fill(1, zero, 0.0)
    return {"zero/tokens": tokens, "zero/token": zero, "zero/pairs": observe(tokens, case, 0.8).pairs}


def record_tie() -> dict[str, Tensor]:
    """Three sources whose cosine with the one destination is exactly one half."""
    case = Case((2, 2), (2, 2), 0)
    tokens = torch.ones(1, 4, 4)
    tokens[0, 0, 1:] = 0
    return {"tie/tokens": tokens, "tie/pairs": observe(tokens, case, 0.5).pairs}


def describe() -> str:
    cases = {case.name: {"shape": case.shape, "stride": case.stride} for case in CASES}
    versions = {package: version(package) for package in ("ca-tome", "torch", "numpy", "safetensors")}
    return json.dumps({"cases": cases, "thresholds": THRESHOLDS, "made with": versions})


def main() -> None:
    first = CASES[0]
    records = [record_single(case) for case in CASES]
    records += [record_batch(first), record_second_image(first), record_zero(first), record_tie()]
    save_file(dict(ChainMap(*records)), OUTPUT, metadata={"description": describe()})


if __name__ == "__main__":
    main()
