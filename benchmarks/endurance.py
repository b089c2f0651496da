"""What has to hold for long and in every combination: `make endurance` (about ten minutes on two cores).

Every combination of a recipe's settings, with one special setting at a time, on five transformers: runs repeat bit by
bit, something merges, everything is finite, and the detached network is the unpatched one. Then 300 pictures and 100
sessions, after which no more objects and memory are held than before.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from catome_adapters import MergeRecipe, attach
from catome_core import AdaptiveMerge, CheckpointSchedule, MergeWarning
from running import make_recipe
from zoo.architecture import Architecture
from zoo.transformers import ALL_ARCHITECTURES
from zoo.unet_pipelines import class_pipeline, draw

NETWORKS = ("DiT", "Flux", "Wan", "CogVideoX", "Qwen-Image")
STEPS, PICTURES, SESSIONS = 4, 300, 100
SCHEDULE = CheckpointSchedule((0, 2), of=STEPS)
SCOPES = (("attention", 1), ("keys", 1), ("block", 1), ("block", 2))
SPECIAL = ({}, {"destination": "random"}, {"destination": "rotate"}, {"shared": True}, {"radius": 1})


def recipes() -> Iterator[MergeRecipe | str]:
    """Every combination; instead of one that is refused, the reason."""
    settings = product(
        SCOPES, ("input", "output"), ((0.0, 1.0), (0.25, 1.0)), (True, False), ("pad", "fill"), (None, 0.25), SPECIAL
    )
    for (scope, segment), metric, during, proportional, spare, capacity, special in settings:
        options: dict[str, Any] = {"metric": metric, "segment": segment, "during": during, "schedule": SCHEDULE}
        options |= {"proportional": proportional, "spare": spare, "capacity": capacity, "threshold": 0.0}
        try:
            yield make_recipe(scope, **options, **special)
        except ValueError as error:
            yield str(error)


def check(model: Architecture, network: Any, recipe: MergeRecipe, plain: list[Tensor]) -> str:
    """What does not hold; empty if all does."""
    with attach(network, recipe) as session:
        first, again = ([_call(model, network, step, session) for step in range(STEPS)] for _ in range(2))
        merged = session.summary().merged_fraction
    detached = [_call(model, network, step) for step in range(STEPS)]
    faults = {
        "the second run differs": not all(map(torch.equal, first, again)),
        "something is not finite": not all(bool(one.isfinite().all()) for one in first),
        "nothing merged": merged == 0,
        "the detached network differs": not all(map(torch.equal, detached, plain)),
    }
    return ", ".join(fault for fault, found in faults.items() if found)


def _call(model: Architecture, network: Any, step: int, session: Any = None) -> Tensor:
    if session is not None:
        session.begin_step(step, STEPS)
    return model.call(network, batch=1, seed=step)


def check_combinations(name: str) -> dict[str, Any]:
    """Try every recipe on a network."""
    model, counts, faults = ALL_ARCHITECTURES[name], Counter[str](), []
    network = model.network()
    plain = [_call(model, network, step) for step in range(STEPS)]
    for recipe in recipes():
        if isinstance(recipe, str):
            counts["refused"] += 1
            continue
        try:
            fault = check(model, network, recipe, plain)
        except ValueError as error:
            counts[f"refused: {str(error).partition(': ')[2][:60]}"] += 1
            continue
        counts["held" if not fault else "failed"] += 1
        faults += [f"{fault}: {recipe}"] if fault else []
    return {"network": name, **counts, "faults": faults}


def held() -> tuple[int, float]:
    """Objects, and MiB of the process at its largest so far."""
    gc.collect()
    return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check_growth() -> dict[str, Any]:
    """Draw pictures with one session, then attach and detach, and see what more is held afterwards."""
    pipe, half = class_pipeline(), MergeRecipe(AdaptiveMerge(-1, spare="fill"), levels="all")

    def attach_and_draw() -> None:
        with attach(pipe, half):
            draw(pipe, steps=2)

    grown = {}
    with attach(pipe, half):
        grown[f"{PICTURES} pictures"] = _growth(lambda: draw(pipe, steps=3), PICTURES)
    grown[f"{SESSIONS} sessions"] = _growth(attach_and_draw, SESSIONS)
    return grown


def _growth(work: Any, times: int) -> dict[str, float]:
    for _ in range(5):
        work()
    objects, memory = held()
    for _ in range(times):
        work()
    more_objects, more_memory = held()
    return {"objects": more_objects - objects, "MiB": round(more_memory - memory, 1)}


def main() -> None:
    """Print one JSON object a line; the exit code is 1 if anything did not hold."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", MergeWarning)
    results = [check_combinations(name) for name in NETWORKS]
    for result in [*results, check_growth()]:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    sys.exit(any(result["faults"] for result in results))


if __name__ == "__main__":
    main()
