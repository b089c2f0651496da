"""Compiling a model block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catome_adapters.architectures.find import denoisers, find_sites
from catome_adapters.sites.site import MergeSite


def compile_blocks(model_or_pipeline: Any, *, sites: Sequence[MergeSite] | None = None, **options: Any) -> list[str]:
    """Compile every transformer block in place, so that equal blocks share their graphs (regional compilation).

    Compiling one block takes a fraction of the time that compiling the whole model takes. Works before and after
    `attach`. The blocks are those that diffusers names as repeated, with its own `compile_repeated_blocks`; where it
    names none, all modules of the classes that hold sites.

    Args:
        model_or_pipeline: A pipeline or network.
        sites: The sites of a model that `find_sites` does not recognize.
        options: Options of `torch.compile`, such as `fullgraph=True` or `mode`.

    Returns:
        The names of the compiled blocks.

    Raises:
        ValueError: If there is no block to compile.

    Examples:
        >>> from diffusers import DiTTransformer2DModel
        >>> network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=16)
        >>> compile_blocks(network, fullgraph=True)
        ['transformer_blocks.0']
    """
    classes = {type(site.block) for site in (find_sites(model_or_pipeline) if sites is None else sites)}
    networks = denoisers(model_or_pipeline)
    names = [
        f"{prefix}.{name}".lstrip(".")
        for prefix, network in networks.items()
        for name in _compile_network(network, classes, options)
    ]
    if not names:
        kinds = " and ".join(type(network).__name__ for network in networks.values())
        raise ValueError(f"no block to compile in {kinds}: pass sites=[MergeSite(...)], or compile the model whole")
    return names


def _compile_network(network: Any, classes: set[type], options: dict[str, Any]) -> list[str]:
    repeated = getattr(network, "_repeated_blocks", None)
    if repeated:
        network.compile_repeated_blocks(**options)
        return [name for name, module in network.named_modules() if type(module).__name__ in repeated]
    blocks = {name: module for name, module in network.named_modules() if type(module) in classes}
    for block in blocks.values():
        block.compile(**options)
    return list(blocks)
