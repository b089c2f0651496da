"""Pictures of a benchmark that was broken off."""

import pytest
import torch

from catome_bench.models.artist import Artist, Drawing
from catome_bench.races.kept import KeptDrawings
from catome_bench.races.pictures import run_pictures

pytestmark = pytest.mark.thorough

KEY = ["dit", "1/4 lattice, near 1", "MagCache 0.12"]
MACHINE = {"device": "a CPU", "threads": 1}
SMALL = {"arch": "dit", "steps": (2,), "size": 16, "only": ["ToDo"]}


def never() -> list[Drawing]:
    raise AssertionError


def draw(seconds: float = 1.5) -> list[Drawing]:
    pictures = torch.linspace(0, 1, 384).reshape(2, 3, 8, 8)
    return [Drawing(picture, [seconds], removed=0.25) for picture in pictures]


def test_what_was_drawn_is_read_as_it_was(tmp_path):
    KeptDrawings(tmp_path, MACHINE).of(KEY, draw)
    for again, first in zip(KeptDrawings(tmp_path, MACHINE).of(KEY, never), draw(), strict=True):
        assert torch.equal(again.picture, first.picture)
        assert again[1:] == first[1:]


def test_every_key_has_a_picture_of_its_own(tmp_path):
    kept = KeptDrawings(tmp_path, MACHINE)
    others = [KEY, ["dit", "1", "4 lattice, near 1"], ["dit", "1/4 lattice, near 1", "MagCache 0.1"], ["dit"]]
    for seconds, key in enumerate(others):
        kept.of(key, lambda seconds=seconds: draw(seconds))
    assert [kept.of(key, never)[0].seconds for key in others] == [0, 1, 2, 3]


def test_without_a_folder_every_picture_is_drawn():
    kept = KeptDrawings(None, MACHINE)
    assert [kept.of(KEY, lambda one=one: draw(one))[0].seconds for one in (1.0, 2.0)] == [1.0, 2.0]


def test_a_folder_keeps_pictures_of_one_machine(tmp_path):
    KeptDrawings(tmp_path, MACHINE).of(KEY, draw)
    with pytest.raises(ValueError, match=r"drawn with threads 1, not 2, whose times cannot be compared; delete it"):
        KeptDrawings(tmp_path, MACHINE | {"threads": 2})
    assert KeptDrawings(tmp_path, MACHINE).of(KEY, never)


def test_a_run_that_goes_on_is_timed_beside_an_unmerged_run_of_its_own(tmp_path, monkeypatch):
    """A machine that has become twice as slow makes nothing look faster or slower."""
    slow = 1.0
    real = Artist.draw_batch

    def timed(self, names, seeds, label):
        return [
            one._replace(steps=[slow * (1 if label == "unmerged" else 2)]) for one in real(self, names, seeds, label)
        ]

    monkeypatch.setattr(Artist, "draw_batch", timed)
    run_pictures(**SMALL | {"only": ["ToDo"]}, images=1, partial=tmp_path)
    slow = 7.0
    results = run_pictures(**SMALL | {"only": ["ToDo", "tomesd"]}, images=1, partial=tmp_path)
    assert {row["subject"]: row["speedup"]["median"] for row in results["rows"]} == {
        "unmerged": 1,
        "ToDo": 0.5,
        "tomesd": 0.5,
    }
    assert {row["undisturbed"] for row in results["rows"]} == {1, 0.5}


def test_a_picture_that_is_not_finite_is_a_note_and_the_others_keep_their_rows(monkeypatch):
    real = Artist.draw_batch

    def broken(self, names, seeds, label):
        return [
            one._replace(picture=one.picture * (float("nan") if label == "ToDo" else 1))
            for one in real(self, names, seeds, label)
        ]

    monkeypatch.setattr(Artist, "draw_batch", broken)
    _, other, todo = run_pictures(**SMALL | {"only": ["ToDo", "tomesd"]}, images=1)["rows"]
    assert "psnr" in other and todo["note"] == "draws values that are not finite"


def test_another_file_is_an_error_that_names_it(tmp_path):
    KeptDrawings(tmp_path, MACHINE).of(["a"], draw)
    (tmp_path / "a.pt").write_text("something else")
    with pytest.raises(ValueError, match=r"a\.pt holds no picture .*delete it"):
        KeptDrawings(tmp_path, MACHINE).of(["a"], never)


def test_a_broken_run_goes_on_with_the_pictures_that_it_has(tmp_path, monkeypatch):
    """The second run draws what the first did not, and takes the times of what it did."""
    drawn = []
    real = KeptDrawings.of

    def of(self, key, draw):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(self, key, lambda: drawn.append(key) or draw())

    monkeypatch.setattr(KeptDrawings, "of", of)
    with pytest.raises(KeyboardInterrupt):
        run_pictures(**SMALL, images=2, partial=tmp_path)
    assert drawn == [["unmerged", "0"], ["ToDo", "0"], ["unmerged", "1"]]
    drawn.clear()
    both = run_pictures(**SMALL, images=2, partial=tmp_path)
    assert drawn == [["ToDo", "1"]]
    drawn.clear()
    assert run_pictures(**SMALL, images=2, partial=tmp_path) == both
    assert not drawn
