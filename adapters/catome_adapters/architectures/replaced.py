"""Networks that a pipeline has in the place of attached ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from catome_adapters.architectures.find import denoisers
from catome_adapters.sites.site import MergeSite
from catome_core import MergeWarning


class AttachedNetworks:
    """The networks of a pipeline that a session is attached to, by name."""

    def __init__(self, model_or_pipeline: Any, sites: Sequence[MergeSite]) -> None:
        self.pipeline, blocks = model_or_pipeline, {site.block for site in sites}
        networks = denoisers(model_or_pipeline).items()
        self.networks = {name: network for name, network in networks if not blocks.isdisjoint(network.modules())}

    def warn_of_replaced(self) -> None:
        """Warn of every network that has been replaced since; one that was only wrapped, as by a compiler, still is."""
        for name, network in self.networks.items():
            now = getattr(self.pipeline, name, network)
            if isinstance(now, nn.Module) and all(part is not network for part in now.modules()):
                MergeWarning.warn(
                    f"the pipeline's {name} is another {type(now).__name__} than the one that the session is attached "
                    "to, so nothing merges in it: call session.detach(), and attach(pipeline, session.recipe) again"
                )
