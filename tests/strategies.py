"""What the property tests draw: small grids, tokens in telling regimes, and whole merges.

Tensors come from a drawn seed, not from drawn numbers: fast, and a failing example still shrinks to a small grid.
"""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from catome_core import AdaptiveMerge, Match, MergePlan, TokenGrid, choose_destinations

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FINITE = ("normal", "clusters", "zeros", "exact")
SPECIAL = (float("nan"), float("inf"), float("-inf"), 1e-30, 1e4)

seeds = st.integers(0, 2**31 - 1)
one_to_three = st.integers(1, 3)
either = st.booleans()
capacities = st.none() | st.sampled_from([0, 1 / 8, 1 / 4, 1 / 2, 1.0]) | st.floats(0, 1)
spares = st.sampled_from(["pad", "fill"])
radii = st.none() | st.integers(0, 2)
# In float32, as scores are: a comparison then means the same in the library and in the oracle.
thresholds = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(-1, 1, width=32)


@st.composite
def token_grids(draw) -> TokenGrid:
    """2-D and 3-D, partial cells included, at most 52 tokens."""
    shape = draw(st.tuples(*[st.integers(1, 7)] * 2) | st.tuples(one_to_three, *[st.integers(1, 4)] * 2))
    stride = draw(one_to_three | st.tuples(*[one_to_three] * len(shape)))
    return TokenGrid(shape, stride, draw(st.integers(0, 3)))


def make_tokens(regime: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """float64 (batch, tokens, channels)

    normal: nothing is very similar. clusters: much is, half of it parallel. zeros: a third of the tokens is zero.
    exact: cosines are multiples of 1/4 without any rounding, so ties are true ties and the order of sums is no matter.
    special: clusters with NaN, infinities, and very small and large entries.
    """
    batch, tokens, channels = shape
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    pick = torch.rand(batch, tokens, 1, generator=generator, dtype=torch.float64)
    if regime == "zeros":
        return noise.where(pick > 1 / 3, 0)
    if regime == "exact":
        # One channel or four equal ones: the norm is a power of two.
        signs = noise.sign() * (torch.arange(channels) < (4 if channels >= 4 else 1))
        return (signs * torch.exp2((pick * 8).floor() - 4)).where(pick > 1 / 8, 0)
    if regime in ("clusters", "special"):
        centers = noise[:, torch.randint(min(tokens, 4), (tokens,), generator=generator)]
        noise = centers * (1 + pick) + 0.05 * noise.where(pick > 0.5, 0)
    if regime == "special":
        wild = torch.rand(shape, generator=generator) < 0.05
        which = torch.randint(len(SPECIAL), shape, generator=generator)
        return torch.tensor(SPECIAL, dtype=torch.float64)[which].where(wild, noise)
    return noise


@st.composite
def tokens_for(draw, grid: TokenGrid, regimes=FINITE, dtypes=DTYPES, batches=one_to_three) -> Tensor:
    """(batch, grid.tokens, 1 to 8 channels), contiguous or channels first in memory."""
    shape = (draw(batches), grid.tokens, draw(st.sampled_from([1, 2, 4, 8])))
    generator = torch.Generator().manual_seed(draw(seeds))
    tokens = make_tokens(draw(st.sampled_from(regimes)), shape, generator).to(draw(st.sampled_from(dtypes)))
    return tokens.mT.contiguous().mT if draw(either) else tokens


@st.composite
def cell_offsets(draw, grid: TokenGrid) -> list[int] | None:
    """Which token of each cell is the destination: the top-left one, the same corner everywhere, or any."""
    return draw(
        st.none()
        | st.integers(0, 9).map(lambda offset: [offset] * grid.destinations)
        | st.lists(st.integers(0, 99), min_size=grid.destinations, max_size=grid.destinations)
    )


class Case(NamedTuple):
    """A merge with everything that led to it. The plan has batch 1 where the policy shares it."""

    policy: AdaptiveMerge
    grid: TokenGrid
    offsets: list[int] | None
    tokens: Tensor
    match: Match
    plan: MergePlan

    @property
    def rule(self) -> dict:
        """The arguments of `plan_merge`, and of its oracle but for the destinations."""
        return {"threshold": self.policy.threshold, "capacity": self.policy.capacity, "spare": self.policy.spare}


@st.composite
def policies(draw, shared=either, capacity=capacities) -> AdaptiveMerge:
    """Any policy that needs no state."""
    return AdaptiveMerge(draw(thresholds), draw(capacity), draw(radii), draw(spares), draw(shared))


all_policies = policies()


@st.composite
def cases(draw, policy=all_policies, regimes=FINITE, dtypes=DTYPES) -> Case:
    """A merge of tokens drawn from the regimes, with the destinations anywhere in their cells."""
    chosen, grid = draw(policy), draw(token_grids())
    tokens, offsets = draw(tokens_for(grid, regimes, dtypes)), draw(cell_offsets(grid))
    destinations = destinations_at(grid, offsets)
    match = chosen.match(tokens, grid, destinations)
    plan = chosen.plan(match, grid, chosen.capacity, destinations)
    return Case(chosen, grid, offsets, tokens, match, plan)


def destinations_at(grid: TokenGrid, offsets: list[int] | None) -> Tensor | None:
    """The library's form of the oracle's `offsets`."""
    return None if offsets is None else choose_destinations(grid, torch.tensor(offsets))
