"""What works on which architecture, found by trying it; `make matrix` writes the table of the docs."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from catome_adapters import RECIPES, MergeRecipe, attach, compile_blocks, find_sites
from changes import add_lora, fuse_projections, quantize
from probes import anatomy
from running import SCOPES, make_recipe
from zoo.architecture import Architecture
from zoo.transformers import ARCHITECTURES, MORE_ARCHITECTURES
from zoo.vits import VITS, Vit

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- made by tests/tools/matrix.py -->", "<!-- end -->"
ROWS: dict[str, Architecture] = ARCHITECTURES | MORE_ARCHITECTURES | VITS


def merged(subject: Architecture, network: nn.Module, recipe: MergeRecipe, change: Any = None) -> Tensor:
    """One call with a session, which leaves nothing behind; `change` comes after the attach."""
    with attach(network, recipe) as session:
        if change is not None:
            change(network)
        session.begin_step(0, 2)
        return subject.call(network)


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def try_merging(recipe: MergeRecipe, subject: Architecture) -> str:
    network = subject.network()
    before, unmerged = anatomy(network), subject.call(network)
    one, same = (merged(subject, network, recipe) for _ in range(2))
    expect(torch.equal(one, same) and bool(one.isfinite().all()), "merging is not repeatable")
    expect(not torch.allclose(one, unmerged, rtol=1e-3, atol=1e-4), "nothing merged")
    expect(anatomy(network) == before, "something is left behind")
    return "yes"


def try_compiling(start: Callable[[Architecture, nn.Module], Any], subject: Architecture) -> str:
    recipe = make_recipe(spare="fill")
    network = subject.shallow()
    torch.compiler.reset()
    eager = merged(subject, network, recipe)
    try:
        compiled = merged(subject, network, recipe, lambda one: start(subject, one))
    except TorchDynamoException as error:
        refuse_if_alone(start, subject, error)
        raise
    finally:
        torch.compiler.reset()
    expect(torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5), "compiled is not eager")
    return "yes"


def refuse_if_alone(
    start: Callable[[Architecture, nn.Module], Any], subject: Architecture, error: TorchDynamoException
) -> None:
    """Raise ValueError if the network does not compile without a session, either."""
    network = subject.shallow()
    start(subject, network)
    try:
        subject.call(network)
    except TorchDynamoException:
        raise ValueError("torch makes no single graph of it, merged or not: leave fullgraph=True out") from error


def compile_whole(subject: Architecture, network: Any) -> None:
    if isinstance(subject, Vit):
        network.forward_features = torch.compile(network.forward_features, fullgraph=True, backend="eager")
    else:
        network.compile(fullgraph=True, backend="eager")


def compile_regions(subject: Architecture, network: nn.Module) -> None:
    compile_blocks(network, sites=find_sites(network), fullgraph=True, backend="eager")


def add_lora_everywhere(network: nn.Module) -> None:
    add_lora(network, r".*(to_q|to_k|to_v|to_query|to_key|to_value|qkv|img_qkv_proj|q_proj|fc1)")


CHANGES = {"LoRA": add_lora_everywhere, "int8": quantize, "fused projections": fuse_projections}


def try_stacking(subject: Architecture) -> str:
    """Whatever the network offers, and gives the same before the attach and after it."""
    works = [label for label, change in CHANGES.items() if works_with(subject, change)]
    for label in works:
        before, after, recipe = subject.network(), subject.network(), make_recipe(spare="fill")
        CHANGES[label](before)
        same = torch.equal(merged(subject, before, recipe), merged(subject, after, recipe, CHANGES[label]))
        expect(same, f"{label} before the attach is not {label} after it")
    return ", ".join(works)


def works_with(subject: Architecture, change: Callable[[nn.Module], None]) -> bool:
    """Whether the network alone works after a change: not all of them can be fused, or read weights of int8."""
    network = subject.network()
    try:
        change(network)
        subject.call(network)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError):
        return False
    return True


COLUMNS: dict[str, Callable[[Architecture], str]] = {
    **{scope: lambda subject, scope=scope: try_merging(make_recipe(scope, spare="fill"), subject) for scope in SCOPES},
    "progressive": lambda subject: try_merging(RECIPES["tome"], subject),
    "compiled whole": lambda subject: try_compiling(compile_whole, subject),
    "compiled by blocks": lambda subject: try_compiling(compile_regions, subject),
    "stacks with": try_stacking,
}


def try_cell(name: str, column: str) -> tuple[bool, str]:
    """Whether it works and what to write; if it does not, what the library says."""
    try:
        return True, COLUMNS[column](ROWS[name])
    except ValueError as error:
        # One reason for blocks of all names.
        return False, re.sub(r"\b(\w+_)?(blocks|layers)\.\d+\b", "the block", str(error))


def write_matrix() -> str:
    """The table, and below it a sentence for every blank."""
    reasons: dict[str, int] = {}
    lines = [_line("", *COLUMNS), "|---" * (len(COLUMNS) + 1) + "|"]
    for name in ROWS:
        cells = [try_cell(name, column) for column in COLUMNS]
        lines.append(_line(name, *(text if works else _number(text, reasons) for works, text in cells)))
    return "\n".join([*lines, "", *(f"{number}. `{reason}`" for reason, number in reasons.items())])


def _number(reason: str, reasons: dict[str, int]) -> str:
    return f"({reasons.setdefault(reason, len(reasons) + 1)})"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def read_matrix(page: str) -> dict[tuple[str, str], str]:
    """The text of every cell, by row and column; of a blank its sentence."""
    table = page.split(BEGIN)[1].split(END)[0]
    reasons = {f"({number})": reason for number, reason in re.findall(r"^(\d+)\. `(.*)`$", table, re.MULTILINE)}
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line[:1] == "|"
    )
    return {
        (row[0], column): reasons.get(cell, cell)
        for row in rows
        for column, cell in zip(head[1:], row[1:], strict=True)
    }


def rewrite(page: str) -> str:
    """The page with the table of today."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{write_matrix()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    sys.exit(PAGE.write_text(rewrite(PAGE.read_text())) == 0)
