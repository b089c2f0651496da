"""How the pairs of a run change from step to step, layer by layer (paper, Fig. 2 and 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from catome_adapters import MergeSite, SiteStep, attach
from catome_adapters.architectures.find import denoisers
from catome_adapters.recipes.named import EVERY_STEP
from catome_bench.calibration.candidates import half_matched
from catome_bench.models.artist import unmerged_is_fine
from catome_core import MergePlan, jaccard_distance


class Layer(NamedTuple):
    """One layer in one run, or the mean of several.

    Attributes:
        steps: In which it ran.
        distance: Between the pairs of any two of these steps, float (steps, steps), mean over the batch.
        similarity: For each step minimum, quartiles and maximum of the sources' similarity, float (steps, 5).
    """

    steps: tuple[int, ...]
    distance: Tensor
    similarity: Tensor

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"steps": self.steps, "distance": _rounded(self.distance), "similarity": _rounded(self.similarity)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Layer:
        """What `to_json` made."""
        return cls(tuple(values["steps"]), torch.tensor(values["distance"]), torch.tensor(values["similarity"]))


def record_layers(pipe: Any, sites: Sequence[MergeSite], run: Callable[[], object]) -> dict[str, Layer]:
    """The layers in a run in which each finds the pairs of half of its tokens anew in every step.

    Only keys merge, so that the run is nearly the unmerged one.

    Args:
        pipe: A pipeline.
        sites: Where to look.
        run: Draws once with the pipeline.

    Raises:
        ValueError: If keys cannot merge there.
    """
    partners: dict[str, dict[int, Tensor]] = defaultdict(dict)
    with (
        unmerged_is_fine(),
        attach(pipe, half_matched("keys", EVERY_STEP), sites=sites) as session,
        ExitStack() as hooks,
    ):

        def note(*_: object) -> None:
            for name, plan in session.plans().items():
                # What a later call of the same step finds takes its place.
                partners[name][session.step or 0] = partner_of(plan)

        for network in denoisers(pipe).values():
            hooks.callback(network.register_forward_hook(note).remove)
        run()
        rows = [row for row in session.summary().rows if row.similarity and row.step in partners[row.site]]
    by_site: dict[str, list[SiteStep]] = defaultdict(list)
    for row in rows:
        by_site[row.site].append(row)
    return {name: _layer(partners[name], ran) for name, ran in by_site.items()}


def partner_of(plan: MergePlan) -> Tensor:
    """The token that each token merges into, itself where it is kept; int32 (batch, tokens), on the host.

    Examples:
        >>> partner_of(MergePlan(torch.tensor([[0, 0, 1]]), torch.tensor([[2, 1]]), torch.tensor([[1, 2]])))
        tensor([[1, 1, 2]], dtype=torch.int32)
    """
    return plan.anchor.gather(1, plan.slot).int().cpu()


def distances(partners: Tensor) -> Tensor:
    """Jaccard distance between the pairs of any two steps, mean over the batch.

    Args:
        partners: Integers (steps, batch, tokens), of `partner_of`.

    Returns:
        float32 (steps, steps).
    """
    steps, batch, _ = partners.shape
    every = _as_plan(partners.flatten(0, 1))
    rows = [jaccard_distance(every, _as_plan(own.repeat(steps, 1))) for own in partners]
    return torch.stack([row.view(steps, batch).mean(1) for row in rows])


def average(runs: Sequence[Mapping[str, Layer]]) -> dict[str, Layer]:
    """The layers of several runs: the mean of each.

    Raises:
        ValueError: If a layer does not run in the same steps in all of them.
    """
    steps = [{name: layer.steps for name, layer in run.items()} for run in runs]
    if any(one != steps[0] for one in steps):
        counts = [max(max(some) for some in one.values()) + 1 for one in steps]
        raise ValueError(f"the calls make {counts} steps, or call the network in others; expected the same of all")
    return {
        name: Layer(
            layer.steps,
            torch.stack([run[name].distance for run in runs]).mean(0),
            torch.stack([run[name].similarity for run in runs]).mean(0),
        )
        for name, layer in runs[0].items()
    }


def mean_distance(layers: Mapping[str, Layer]) -> Tensor:
    """Between any two steps, mean over all layers; one that did not run in both has none. Float (steps, steps)."""
    steps = 1 + max(step for layer in layers.values() for step in layer.steps)
    total = torch.zeros(steps, steps)
    for layer in layers.values():
        ran = torch.tensor(layer.steps)
        total[ran[:, None], ran] += layer.distance
    return total / len(layers)


def neighbors(layer: Layer) -> list[float]:
    """The distance of each step's pairs from those of the step before (paper, Fig. 4)."""
    return layer.distance.diagonal(1).tolist()


def _layer(partners: Mapping[int, Tensor], rows: Sequence[SiteStep]) -> Layer:
    found = [partners[row.step] for row in rows]
    # With guidance in a part of the run, not every step has as many samples.
    batch = min(map(len, found))
    similarity = torch.tensor([row.similarity for row in rows])
    pairs = torch.stack([one[-batch:] for one in found])
    return Layer(tuple(row.step for row in rows), distances(pairs), similarity)


def _as_plan(partners: Tensor) -> MergePlan:
    """A plan with as many slots as tokens: that of a pair has the number of its destination."""
    tokens = torch.arange(partners.shape[1]).expand_as(partners)
    return MergePlan(partners.long(), torch.ones_like(tokens), tokens)


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]
