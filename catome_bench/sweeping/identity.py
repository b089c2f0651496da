"""What tells a pipeline from another, so that a folder never holds pictures of two."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from catome_bench.comparison.drawing import networks_of

SAMPLED = 16
"""Numbers of every parameter that are read: all of them would take as long as loading the model."""


def identify(pipe: Any) -> dict[str, Any]:
    """The classes, the scheduler with its options, the dtype, and a digest of the weights of the networks that merge.

    Examples:
        >>> from catome_bench.models import load_shipped
        >>> list(identify(load_shipped()))
        ['pipeline', 'networks', 'dtype', 'weights', 'scheduler']
    """
    networks, digest = networks_of(pipe), sha256()
    for name, parameter in (pair for network in networks for pair in network.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return {
        "pipeline": type(pipe).__name__,
        "networks": [type(network).__name__ for network in networks],
        "dtype": str(next(networks[0].parameters()).dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
        "scheduler": json.loads(pipe.scheduler.to_json_string()),
    }
