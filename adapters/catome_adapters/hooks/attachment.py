"""All hooks that a session has put on a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import nn

from catome_adapters.hooks.between import group_sites
from catome_adapters.hooks.host import Host
from catome_adapters.hooks.known import KnownCalls
from catome_adapters.hooks.memory import SiteMemory
from catome_adapters.hooks.pairs import SitePairs
from catome_adapters.hooks.rules import MergeRules
from catome_adapters.hooks.segment import Segment
from catome_adapters.sites.grid import Measure
from catome_adapters.sites.site import MergeSite


class Attachment:
    """The segments of a session and their hosts.

    Args:
        sites: What to attach to.
        rules: What to do there. Each segment has another seed, counted from that of the rules.
        length: Number of consecutive blocks that share a merge, at most.
        before_call: Called before a call of a host that is not the first of its context in a step, or whose step is
            unknown; not in compiled code.
        undo: Gets, for each part as it is installed, what removes it.

    Attributes:
        known: What follows from the shapes of calls.
        hosts: The modules whose calls give the grids.
    """

    def __init__(
        self,
        sites: Sequence[MergeSite],
        rules: MergeRules,
        length: int,
        before_call: Callable[[Host], None],
        undo: ExitStack,
    ) -> None:
        self._before_call, self._undo = before_call, undo
        self._hosts: dict[tuple[nn.Module, Measure], Host] = {}
        groups = group_sites(sites, rules.scope.blocks_per_segment(length, len(sites)))
        self.known = KnownCalls(rules)
        self.segments = [
            Segment(group, self._host(group[0]), replace(rules, seed=seed), self.known, undo)
            for seed, group in enumerate(groups, rules.seed)
        ]
        self.hosts: Sequence[Host] = [*self._hosts.values()]
        self._lattices = [segment.lattice for segment in self.segments if segment.lattice is not None]

    @property
    def pairs(self) -> Iterator[SiteMemory]:
        """What is remembered from step to step, of all segments."""
        return (pairs for segment in self.segments for pairs in segment.pairs)

    @property
    def ran(self) -> list[tuple[Segment, SiteMemory]]:
        """What is remembered of the calls that this step has made so far."""
        return [(segment, pairs) for segment in self.segments for pairs in segment.pairs if pairs.key is not None]

    @property
    def memory(self) -> int:
        """Bytes that the plans hold between steps."""
        return sum(one.nbytes for one in self.pairs) + sum(lattice.step.nbytes for lattice in self._lattices)

    @property
    def idle(self) -> list[str]:
        """Names of the segments whose host was called, and whose block never was."""
        return [segment.site.name for segment in self.segments if segment.never_ran]

    def begin_call(self, host: Host) -> None:
        """Before a call of a host: later ones of a context in a step have pairs of their own; outside, it is a step."""
        for segment in (one for one in self.segments if one.host is host):
            if not host.in_step:
                for attention in segment.attentions:
                    attention.begin_step()
            elif host.calls:
                segment.pairs.select(host.context, host.calls + 1)

    def begin_step(self, step: int, checkpoint: bool, merging: Callable[[Segment], bool]) -> None:
        """Before a step, from 0: move, recompute or reuse, or leave the tokens of a segment alone."""
        for segment in self.segments:
            merges = merging(segment)
            if merges and segment.lattice is not None:
                segment.lattice.move_to(step)
            for attention in segment.attentions if merges else ():
                attention.begin_step()
            segment.pairs.begin_step(checkpoint, merges)

    def finish_step(self) -> dict[Segment, list[SitePairs]]:
        """After a step: the pairs of each segment that were recomputed in it."""
        fresh = {segment: segment.pairs.finish_step() for segment in self.segments}
        return {segment: pairs for segment, pairs in fresh.items() if pairs}

    def select_calls(self, context_of: Callable[[nn.Module], str | None]) -> None:
        """The next calls of each host belong to this context."""
        for host in self.hosts:
            host.context = context_of(host.module)
        for segment in self.segments:
            segment.pairs.select(segment.host.context)

    def reset(self) -> None:
        """Begin a new run."""
        for lattice in self._lattices:
            lattice.reset()
        for host in self.hosts:
            host.begin_step(False)
        self.known.reset()
        for segment in self.segments:
            segment.pairs.reset()

    def _host(self, site: MergeSite) -> Host:
        """One host serves all sites with the same module and grid."""
        key = (site.host, site.grid_of)
        if key not in self._hosts:
            self._hosts[key] = Host(*key, self._before_call)
            self._undo.callback(self._hosts[key].remove)
        return self._hosts[key]
