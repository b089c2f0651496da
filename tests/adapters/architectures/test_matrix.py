"""The table in the documentation says what works today."""

import pytest

from tools import matrix
from zoo.transformers import ARCHITECTURES

CELLS = matrix.read_matrix(matrix.PAGE.read_text())
WHOLE, BY_BLOCKS = [column for column in matrix.COLUMNS if column.startswith("compiled")]
# Compiled, these are counted graph by graph in test_architectures_compiled and test_compile_blocks.
COUNTED = {(name, column) for name in ARCHITECTURES for column in (WHOLE, BY_BLOCKS)}
# What compiles as a whole is compiled once: the compiler takes its time.
TRIED_AS_A_WHOLE = {(name, BY_BLOCKS) for name in matrix.ROWS if CELLS.get((name, WHOLE)) == "yes"}


def test_every_architecture_and_column_is_there():
    assert list(CELLS) == [(name, column) for name in matrix.ROWS for column in matrix.COLUMNS]
    assert all(CELLS.values())
    assert {CELLS[cell] for cell in COUNTED} == {"yes"}


@pytest.mark.parametrize("name", matrix.ROWS)
def test_row_says_what_happens_when_it_is_tried(name):
    for column in matrix.COLUMNS:
        if (name, column) not in COUNTED | TRIED_AS_A_WHOLE:
            assert matrix.try_cell(name, column)[1] == CELLS[name, column], column
