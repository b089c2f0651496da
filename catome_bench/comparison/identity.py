"""What tells a pipeline from another, so that a folder or a file never holds what was drawn by two."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from torch import nn

from catome_bench.comparison.drawing import networks_of

SAMPLED = 16
"""Numbers of every parameter that are read: all of them would take as long as loading the model."""


def identify(pipe: Any) -> dict[str, Any]:
    """The classes, the scheduler with its options, the dtype, and a digest of the weights of all of its networks.

    The digest is also that of which adapters of theirs (LoRA) are at work, and how strongly.

    Examples:
        >>> from catome_bench.models import load_shipped
        >>> list(identify(load_shipped()))
        ['pipeline', 'networks', 'dtype', 'weights', 'scheduler']
    """
    networks, digest = networks_of(pipe), sha256()
    parts = dict.fromkeys([*networks, *(part for part in vars(pipe).values() if isinstance(part, nn.Module))])
    for name, parameter in (pair for part in parts for pair in part.named_parameters()):
        digest.update(name.encode())
        if not parameter.is_meta:  # offloaded one by one
            digest.update(parameter.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    for module in (module for part in parts for module in part.modules() if hasattr(module, "scaling")):
        state = [getattr(module, name, None) for name in ("scaling", "active_adapters", "disable_adapters", "merged")]
        digest.update(repr(state).encode())
    return {
        "pipeline": type(pipe).__name__,
        "networks": [type(network).__name__ for network in networks],
        "dtype": str(next(networks[0].parameters()).dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
        "scheduler": json.loads(pipe.scheduler.to_json_string()) if hasattr(pipe, "scheduler") else None,
    }
