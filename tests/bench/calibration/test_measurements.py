"""Measurements that survive the run that made them."""

import json
from pathlib import Path

import pytest

from catome_bench.calibration.measurements import Measurements

SETTINGS = {"seeds": [0, 1], "calls": [{"prompt": "a cat"}]}


def never() -> None:
    raise AssertionError("it was measured again")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "recipe-measurements.jsonl"


def test_a_value_is_measured_once_also_by_later_runs(path):
    first = Measurements(path, SETTINGS)
    assert first.of(["a", "late"], lambda: (0.5, 1.0)) == [0.5, 1.0]
    first.of(["b"], lambda: None)
    assert first.of(["a", "late"], never) == [0.5, 1.0]
    second = Measurements(path, SETTINGS)
    assert second.of(["a", "late"], never) == [0.5, 1.0] and second.of(["b"], never) is None
    second.of(["c"], lambda: {"x": 1})
    assert Measurements(path, SETTINGS).of(["c"], never) == {"x": 1}
    assert json.loads(path.read_text().splitlines()[0]) == SETTINGS


def test_what_raises_is_not_kept(path):
    measurements = Measurements(path, SETTINGS)
    with pytest.raises(AssertionError):
        measurements.of(["a"], never)
    assert measurements.of(["a"], lambda: 1) == Measurements(path, SETTINGS).of(["a"], never) == 1


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_was_cut_off_is_measured_again(path, cut):
    first = Measurements(path, SETTINGS)
    first.of(["a"], lambda: 1)
    first.of(["b"], lambda: "x" * 40)
    path.write_text(path.read_text()[:-cut])
    second = Measurements(path, SETTINGS)
    assert second.of(["a"], never) == 1 and second.of(["b"], lambda: 2) == 2
    third = Measurements(path, SETTINGS)
    assert third.of(["a"], never) == 1 and third.of(["b"], never) == 2


def test_an_empty_file_is_a_beginning(path):
    path.write_text('{"seeds"')
    Measurements(path, SETTINGS).of(["a"], lambda: 1)
    assert Measurements(path, SETTINGS).of(["a"], never) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(SETTINGS | {"seeds": [3]}) + "\n", r"with seeds=\[3\], not \[0, 1\]; delete it, or pass another"),
        (json.dumps(SETTINGS | {"size": 8}) + "\n", r"with size=8, not None; delete it"),
        ("a shopping list\n", "holds no measurements; delete it, or pass another output"),
        ("[1]\n", "holds no measurements"),
    ],
)
def test_a_file_of_other_settings_is_refused_and_kept(path, text, message):
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Measurements(path, SETTINGS)
    assert path.read_text() == text


def test_without_a_file_nothing_is_written(tmp_path):
    assert Measurements(None, SETTINGS).of(["a"], lambda: 1) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_found_before_anything_is_measured(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Measurements(tmp_path / "file" / "fit.jsonl", SETTINGS)
    Measurements(tmp_path / "new" / "fit.jsonl", SETTINGS)
    assert list((tmp_path / "new").iterdir()) == []
