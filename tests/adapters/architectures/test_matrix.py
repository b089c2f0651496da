"""The table in the documentation says what works today."""

import pytest

from tiers import tiered
from tools import matrix
from zoo.transformers import ARCHITECTURES, MORE_ARCHITECTURES

CELLS = matrix.read_matrix(matrix.PAGE.read_text())
WHOLE, BY_BLOCKS = COMPILED = [column for column in matrix.COLUMNS if column.startswith("compiled")]
# ARCHITECTURES are counted graph by graph in test_architectures_compiled and test_compile_blocks; of the others every
# kind of block is tried once, and what compiles as a whole not by blocks.
ALIKE = {one.blocks: name for name, one in reversed((ARCHITECTURES | MORE_ARCHITECTURES).items())}
REPEATED = {name for name, one in MORE_ARCHITECTURES.items() if ALIKE[one.blocks] != name}
TRIED = [name for name in matrix.ROWS if name not in ARCHITECTURES.keys() | REPEATED]


def test_every_architecture_and_column_is_there():
    assert list(CELLS) == [(name, column) for name in matrix.ROWS for column in matrix.COLUMNS]
    assert all(CELLS.values())
    assert {CELLS[name, column] for name in ARCHITECTURES for column in COMPILED} == {"yes"}


@pytest.mark.parametrize("name", tiered(matrix.ROWS, [*matrix.ROWS][::16]))
def test_row_says_what_happens_when_it_is_tried(name):
    for column in matrix.COLUMNS:
        if column not in COMPILED:
            assert matrix.try_cell(name, column)[1] == CELLS[name, column], column


@pytest.mark.thorough
@pytest.mark.parametrize("name", TRIED)
def test_row_says_whether_it_compiles(name):
    if CELLS[name, WHOLE] == "yes":
        assert matrix.try_cell(name, WHOLE) == (True, "yes")
    else:
        assert [matrix.try_cell(name, column)[1] for column in COMPILED] == [CELLS[name, WHOLE], CELLS[name, BY_BLOCKS]]
