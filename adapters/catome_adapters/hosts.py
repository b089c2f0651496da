"""Reading the grid off a model's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from catome_adapters.arguments import Signature
from catome_adapters.grids import Measure, Shape


class GridReader:
    """Listens to one host: the module whose arguments tell the grid of the tokens inside.

    Attributes:
        host: The module.
        shape: The grid of its last call; empty before the first.
    """

    def __init__(self, host: nn.Module, measure: Measure, before_call: Callable[[], None]) -> None:
        self.host, self.measure, self.before_call = host, measure, before_call
        self.signature = Signature.of(host)
        self.shape: Shape = ()
        self.handle: Any = host.register_forward_pre_hook(self._read, with_kwargs=True)

    def refuse_silence(self, site: str) -> None:
        """Raise ValueError if the host has not been called before the block of this site."""
        if not self.shape:
            raise ValueError(
                f"{site} was called, and its host {type(self.host).__name__} was not, which tells the grid: pass "
                "MergeSite(..., host=...) with a module that is called before the block, such as the model itself"
            )

    def remove(self) -> None:
        """Take the hook off again."""
        self.handle.remove()

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self.before_call()
        self.shape = self.measure(self.signature.bind((args, kwargs)))
