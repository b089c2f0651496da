"""The table in the documentation says what works today."""

import pytest

from tools import matrix
from zoo.transformers import ARCHITECTURES, MORE_ARCHITECTURES

CELLS = matrix.read_matrix(matrix.PAGE.read_text())
WHOLE, BY_BLOCKS = COMPILED = [column for column in matrix.COLUMNS if column.startswith("compiled")]
# The compiler takes its time. So it gets every kind of block once, and what compiles as a whole not by blocks, too; and
# ARCHITECTURES are counted graph by graph in test_architectures_compiled and test_compile_blocks.
ALIKE = {one.blocks: name for name, one in reversed((ARCHITECTURES | MORE_ARCHITECTURES).items())}
REPEATED = {name for name, one in MORE_ARCHITECTURES.items() if ALIKE[one.blocks] != name}
NOT_TRIED = {(name, column) for name in ARCHITECTURES.keys() | REPEATED for column in COMPILED}
NOT_TRIED |= {(name, BY_BLOCKS) for name in matrix.ROWS if CELLS.get((name, WHOLE)) == "yes"}


def test_every_architecture_and_column_is_there():
    assert list(CELLS) == [(name, column) for name in matrix.ROWS for column in matrix.COLUMNS]
    assert all(CELLS.values())
    assert {CELLS[name, column] for name in ARCHITECTURES for column in COMPILED} == {"yes"}


@pytest.mark.parametrize("name", matrix.ROWS)
def test_row_says_what_happens_when_it_is_tried(name):
    for column in matrix.COLUMNS:
        if (name, column) not in NOT_TRIED:
            assert matrix.try_cell(name, column)[1] == CELLS[name, column], column
