"""Where the shipped models are: in the checkout, or in the distribution `catome-weights`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from catome_bench.names import Arch

SHIPPED = Path(__file__).parent / "shipped"
"""A folder for each model. An installed wheel has the configurations alone: the weights are larger than all else."""


def find_weights(arch: Arch) -> Path:
    """The folder of a shipped model, with its weights.

    Raises:
        FileNotFoundError: If they are neither beside this file nor installed.

    Examples:
        >>> find_weights("dit").name
        'dit'
    """
    folder = SHIPPED / arch
    if any(folder.rglob("*.safetensors")):
        return folder
    try:
        return Path(str(files("catome_weights") / arch))
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"the weights of the shipped {arch} are not installed: pip install catome-weights, or run from a checkout, "
            f"which has them in catome_bench/models/shipped"
        ) from None
