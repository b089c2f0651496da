"""Two ways to attend to near keys and far ones on a GPU: `python benchmarks/near_field.py` (a minute), as JSON.

"gathered": every tile copies all its keys. "joined": far keys are copied once for all tiles that share them, and the
parts are joined. "all keys" is plain attention.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import scaled_dot_product_attention

from catome_bench.measure.environment import describe_environment
from catome_core import NearField, TokenGrid, attend_near_and_far, choose_destinations
from catome_core.attention import joined

# Grid, heads, channels, tokens in front, batch.
CASES = {
    "Wan 480p, 1/4": (TokenGrid((21, 30, 52), (1, 2, 2)), 12, 128, 0, 1),
    "Wan 480p, 1/8": (TokenGrid((21, 30, 52), (1, 2, 4)), 12, 128, 0, 1),
    "Flux 1024, 1/4": (TokenGrid((64, 64), 2), 24, 128, 512, 1),
    "Flux 1024, 1/8": (TokenGrid((64, 64), (2, 4)), 24, 128, 512, 1),
    "128 x 128, 1/16": (TokenGrid((128, 128), 4), 10, 64, 0, 2),
}
WAYS = {"gathered": (), "joined": ("cuda",)}
ROUNDS = 10


@torch.no_grad()
def main() -> None:
    """Print the milliseconds of each way, in eager and in compiled code."""
    if not torch.cuda.is_available():
        sys.exit("it needs a GPU: on a CPU, keys are always gathered")
    rows: list[dict[str, Any]] = []
    for name, (grid, heads, channels, front, batch) in CASES.items():
        field = NearField(grid, 1, front)
        rows_of = partial(torch.randn, batch, field.tokens, heads, channels, device="cuda", dtype=torch.bfloat16)
        call: dict[str, Any] = {one: rows_of().transpose(1, 2) for one in ("query", "key", "value")}
        anchors = choose_destinations(grid, device="cuda")
        rows.append({"case": name, "way": "all keys", "mode": "eager", "ms": time_of(attend_all, call)})
        for way, devices in WAYS.items():
            with patch.object(joined, "JOINED_ON", devices):
                torch.compiler.reset()
                compiled = torch.compile(attend_near_and_far, fullgraph=True)
                for mode, attend in {"eager": attend_near_and_far, "compiled": compiled}.items():
                    rows.append({"case": name, "way": way, "mode": mode, "ms": time_of(attend, call, anchors, field)})
    sys.stdout.write(json.dumps({"machine": describe_environment("cuda"), "rows": rows}, indent=1) + "\n")


def attend_all(call: dict[str, Any]) -> torch.Tensor:
    """Every query sees every key."""
    return scaled_dot_product_attention(**call)


def time_of(attend: Callable[..., object], *args: object) -> float:
    """Milliseconds of the device, median of the rounds after two that are not counted."""
    for _ in range(2):
        attend(*args)
    rounds: list[float] = []
    for _ in range(ROUNDS):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        attend(*args)
        last.record()
        torch.cuda.synchronize()
        rounds.append(first.elapsed_time(last))
    return round(median(rounds), 3)


if __name__ == "__main__":
    main()
