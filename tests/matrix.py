"""What works on which architecture, found by trying it: `python tests/matrix.py` writes the table of the docs."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from architectures import ARCHITECTURES, Architecture
from catome_adapters import RECIPES, MergeRecipe, attach, compile_blocks, find_sites
from catome_core import AdaptiveMerge
from models import anatomy, seeded
from scopes import SCOPES
from subjects import MORE
from vits import VITS, Vit

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
BEGIN, END = "<!-- made by tests/matrix.py -->", "<!-- end -->"
ROWS: dict[str, Architecture] = ARCHITECTURES | MORE | VITS


def merge_recipe(scope: str) -> MergeRecipe:
    return MergeRecipe(AdaptiveMerge(0.0, 0.25, spare="fill"), scope=scope, levels="all")


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
    recipe = merge_recipe("attention")
    network = subject.network(**dict.fromkeys(subject.depths, 1))
    with fresh_compiler():
        eager = merged(subject, network, recipe)
        compiled = merged(subject, network, recipe, lambda one: start(subject, one))
    expect(torch.allclose(compiled, eager, rtol=1e-4, atol=1e-5), "compiled is not eager")
    return "yes"


@contextmanager
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compile_whole(subject: Architecture, network: Any) -> None:
    if isinstance(subject, Vit):
        network.forward_features = torch.compile(network.forward_features, fullgraph=True, backend="eager")
    else:
        network.compile(fullgraph=True, backend="eager")


def compile_regions(subject: Architecture, network: nn.Module) -> None:
    compile_blocks(network, sites=find_sites(network), fullgraph=True, backend="eager")


def add_lora(network: nn.Module) -> None:
    layers = LoraConfig(r=2, init_lora_weights=False, target_modules=r".*(to_q|to_k|to_v|qkv|q_proj|fc1)")
    with seeded(1):
        inject_adapter_in_model(layers, network)


def quantise(network: nn.Module) -> None:
    quantize_(network, Int8WeightOnlyConfig())


def fuse(network: Any) -> None:
    network.fuse_qkv_projections()


CHANGES = {"LoRA": add_lora, "int8": quantise, "fused projections": fuse}


def try_stacking(subject: Architecture) -> str:
    """Whatever the network offers, and gives the same before the attach and after it."""
    works = [label for label, change in CHANGES.items() if bears(subject, change)]
    for label in works:
        before, after, recipe = subject.network(), subject.network(), merge_recipe("attention")
        CHANGES[label](before)
        same = torch.equal(merged(subject, before, recipe), merged(subject, after, recipe, CHANGES[label]))
        expect(same, f"{label} before the attach is not {label} after it")
    return ", ".join(works)


def bears(subject: Architecture, change: Callable[[nn.Module], None]) -> bool:
    """Whether the network alone works after a change: not all of them can be fused, or have linear layers of int8."""
    network = subject.network()
    try:
        change(network)
        subject.call(network)
    except (AttributeError, IndexError):
        return False
    return True


COLUMNS: dict[str, Callable[[Architecture], str]] = {
    **{scope: lambda subject, scope=scope: try_merging(merge_recipe(scope), subject) for scope in SCOPES},
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
        # The same reason for blocks of other names is one.
        return False, re.sub(r"\b(\w+_)?blocks\.\d+\b", "the block", str(error))


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
