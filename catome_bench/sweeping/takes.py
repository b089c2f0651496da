"""The pictures of a sweep, and which of them this process draws."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Take(NamedTuple):
    """One picture of one prompt, which every row of the tables draws.

    Attributes:
        prompt: Its number, from 0.
        seed: Of all random numbers of the picture; every take has its own.
    """

    prompt: int
    seed: int

    @property
    def file(self) -> str:
        """The name of its file.

        Examples:
            >>> Take(3, 7).file
            '3-7.png'
        """
        return f"{self.prompt}-{self.seed}.png"


def all_takes(prompts: int, seeds: int) -> list[Take]:
    """`seeds` pictures of each of `prompts` prompts.

    Examples:
        >>> all_takes(2, 2)
        [Take(prompt=0, seed=0), Take(prompt=0, seed=1), Take(prompt=1, seed=2), Take(prompt=1, seed=3)]
    """
    return [Take(prompt, prompt * seeds + number) for prompt in range(prompts) for number in range(seeds)]


class Shard(NamedTuple):
    """The part of the takes that one of several processes draws.

    Attributes:
        rank: The number of the process, from 0.
        world: How many processes there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """As `torchrun` and `accelerate launch` say by RANK and WORLD_SIZE; without them, everything.

        Raises:
            ValueError: If these are no such numbers.

        Examples:
            >>> Shard.from_environment({"RANK": "1", "WORLD_SIZE": "4"})
            Shard(rank=1, world=4)
        """
        rank, world = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ValueError(
                f"RANK is {rank!r} and WORLD_SIZE {world!r}; expected a number from 0 and a larger one, as torchrun "
                "sets them: unset both to draw everything in one process"
            )
        return cls(int(rank), int(world))

    def of(self, takes: Sequence[Take]) -> Sequence[Take]:
        """Every `world`-th of the takes.

        Examples:
            >>> [take.seed for take in Shard(1, 2).of(all_takes(5, 1))]
            [1, 3]
        """
        return takes[self.rank :: self.world]
