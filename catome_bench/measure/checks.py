"""Check the promises of a step that matches nothing: it never waits for the device, and reuse is bit-reproducible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from catome_bench.measure.contender import ALWAYS, MakeContender
from catome_bench.measure.race import Runner
from catome_bench.measure.rows import describe


def check_reuse(contenders: Mapping[str, MakeContender], mode: str, device: str) -> list[dict[str, Any]]:
    """Run two steps that match nothing of every contender of ours, on a GPU with its sync debug mode set to raise.

    Returns:
        One row for each `subject`: its `mode`; `identical`, whether both steps gave the same bits (None for a lattice,
        which moves); `host_reads`, whether one of them waited for the device (None without a GPU, where this cannot be
        detected); `note`, the error it raised.
    """
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1024):
        return [
            row | {"subject": name, "mode": mode}
            for name, make in contenders.items()
            for row in _check(make, mode, device)
        ]


def _check(make: MakeContender, mode: str, device: str) -> list[dict[str, Any]]:
    try:
        with ExitStack() as stack:
            contender = make(stack)
            return [] if contender.phases is ALWAYS else [_compare_two(Runner(contender, mode), device)]
    except Exception as error:
        return [{"identical": None, "host_reads": None, "note": describe(error)}]


def _compare_two(runner: Runner, device: str) -> dict[str, Any]:
    first, *others = (subject.prepare for subject in runner.subjects().values())
    repeat = others[-1] if others else first
    first()
    runner.run()
    on_gpu = torch.device(device).type == "cuda"
    row: dict[str, Any] = {"identical": None, "host_reads": False if on_gpu else None, "note": ""}
    try:
        with _sync_is_an_error(on_gpu):
            once, again = (_copy(_run_after(repeat, runner)) for _ in range(2))
        row["identical"] = all(torch.equal(a, b) for a, b in zip(once, again, strict=True)) if others else None
    except RuntimeError as error:
        # Another error says nothing about waiting.
        row |= {"host_reads": True if "synchroniz" in str(error) else None, "note": describe(error)}
    return row


def _run_after(prepare: Callable[[], object], runner: Runner) -> object:
    """Begin a step before each call: two calls in one step would count as two prompts with pairs of their own."""
    prepare()
    return runner.run()


def _copy(result: Any) -> list[Tensor]:
    """Copy a result, because CUDA graphs reuse the memory of their results."""
    return [part.clone() for part in (result if isinstance(result, tuple) else (result,))]


@contextmanager
def _sync_is_an_error(on_gpu: bool) -> Iterator[None]:
    if not on_gpu:
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
