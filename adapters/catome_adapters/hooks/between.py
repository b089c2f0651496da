"""Consecutive blocks that share one merge: which they are, and what must not reach the tokens between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn

from catome_adapters.hooks.owner import HookOwner
from catome_adapters.sites.call import Arguments, BlockCall, Signature
from catome_adapters.sites.site import MergeSite
from catome_adapters.steps.observe import MethodObserver

ADDED = re.compile("controlnet|control_hidden_states|face_pixel_values")
"""In the names of arguments that networks add to the tokens between blocks: of ControlNets, Wan-VACE, Wan-Animate."""


def group_sites(sites: Sequence[MergeSite], length: int) -> list[list[MergeSite]]:
    """Sites in groups of at most `length` whose blocks follow one another in their host, without a gap."""
    groups: list[list[MergeSite]] = []
    for site in sites:
        if groups and len(groups[-1]) < length and _is_next(groups[-1][-1], site):
            groups[-1].append(site)
        else:
            groups.append([site])
    return groups


def _is_next(before: MergeSite, site: MergeSite) -> bool:
    if before.layout.alone or site.layout.alone:
        return False
    (folder, index), (next_folder, next_index) = (one.name.rpartition(".")[::2] for one in (before, site))
    numbered = index.isdecimal() and next_index.isdecimal()
    return before.host is site.host and folder == next_folder and numbered and int(next_index) == int(index) + 1


def as_one(sites: Sequence[MergeSite]) -> MergeSite:
    """The first of a segment's sites, under a name for all of them."""
    last = sites[-1].name.rpartition(".")[2]
    return sites[0] if len(sites) == 1 else replace(sites[0], name=f"{sites[0].name} to {last}")


class Between(HookOwner):
    """Keeps the tokens between the blocks of a segment, which are merged there, from everything that expects all.

    A ControlNet adds to them one row per token, and Wan-Animate the face of each frame; `forward_intermediates` of a
    ViT returns or reshapes them; gradient checkpointing repeats single blocks. A segment of one block has nothing in
    between.
    """

    def __init__(self, sites: Sequence[MergeSite]) -> None:
        self.site, self.is_single = as_one(sites), len(sites) == 1
        self.host, self.network = self.site.host, self.site.caller
        self.names = Signature.of(self.host).names
        self.handle: Any = None
        self.intermediates: IntermediatesObserver | None = None
        if self.is_single:
            return
        self.handle = self.host.register_forward_pre_hook(self._refuse_additions, with_kwargs=True)
        if hasattr(self.network, "forward_intermediates"):
            self.intermediates = IntermediatesObserver.subscribe(self.network, self)

    def remove(self) -> None:
        """Remove everything; safe to call again."""
        if not self.is_single:
            self.handle.remove()
        if self.intermediates is not None:
            self.intermediates.unsubscribe(self)
            self.intermediates = None

    def refuse_checkpointing(self) -> None:
        """Before the first block.

        Raises:
            ValueError: If gradient checkpointing would repeat blocks without the merge that they share.
        """
        if not self.is_single and torch.is_grad_enabled() and self.site.checkpoints_gradients:
            raise ValueError(
                f"{self.site.name} is a segment, and gradient checkpointing would repeat its blocks one by one, "
                "without the merge that they share; call disable_gradient_checkpointing(), or use segment=1"
            )

    def _refuse_additions(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_copy:
            return
        given = dict(zip(self.names, args, strict=False)) | kwargs
        added = [argument for argument, value in given.items() if ADDED.search(argument) and value is not None]
        if added:
            raise ValueError(
                f"{self.site.name} is a segment, whose tokens stay merged between its blocks, and "
                f"{type(self.host).__name__} adds {added[0]} there: use segment=1"
            )


class IntermediatesObserver(MethodObserver[Between]):
    """Refuses `forward_intermediates` of a network while it has segments, whichever session they belong to."""

    attribute = "catome_intermediates"

    def _calls(self) -> Mapping[str, Callable[..., Any]]:
        return {"forward_intermediates": self._refuse}

    def _refuse(self, *call: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(
            f"forward_intermediates of {type(self.owner).__name__} was called, and between its blocks tokens are "
            f'merged ({self.subscribers[0].site.name}): use RECIPES["vit"], which gives every block\'s tokens their '
            "length back, or forward_features"
        )


def refuse_hidden_states(block: BlockCall, call: Arguments) -> None:
    """Before a block that runs on merged tokens.

    Raises:
        ValueError: If transformers records hidden states, which it takes from the block's merged input.
    """
    config = getattr(block.site.attention, "config", None)
    if call[1].get("output_hidden_states") or getattr(config, "output_hidden_states", False):
        raise ValueError(
            f"{block.site.name}: output_hidden_states was asked for, and would record merged tokens: use a recipe with "
            "scope='attention' or 'keys', or detach the session for this call"
        )
