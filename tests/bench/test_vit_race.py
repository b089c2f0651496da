"""`catome vits`: both methods with as many tokens, and the table of them."""

import pytest
import torch
from typer.testing import CliRunner

from catome_bench.cli import app
from catome_bench.commands import vits as command
from catome_bench.races.vits import FRACTIONS, Labeled, ViTRow, race_vit
from catome_bench.views.tables import render_vits

pytestmark = pytest.mark.thorough

timm = pytest.importorskip("timm")


def make_vit():
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(8, patch_size=1, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2).eval()


@pytest.fixture(scope="module")
def rows() -> list[ViTRow]:
    data = Labeled(torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2]))
    with torch.no_grad():
        return race_vit(make_vit(), data)


def test_every_fraction_has_both_methods_plain_and_proportional(rows):
    assert (rows[0].subject, rows[0].phase, rows[0].tokens) == ("unmerged", "", 65)
    assert rows[0].cosine == pytest.approx(1)
    names = ["ours", "published", "ours, proportional", "published, proportional"]
    assert [row.subject for row in rows[1:]] == names * len(FRACTIONS)
    assert all(row.timing and row.cosine == pytest.approx(1, abs=0.2) and 0 <= row.correct <= 1 for row in rows)


def test_both_methods_are_left_with_as_many_tokens(rows):
    for ours, published in zip(rows[1::2], rows[2::2], strict=True):
        assert ours.tokens == published.tokens <= 65
    assert rows[-1].tokens < rows[1].tokens


def test_the_table_has_a_line_for_each_row_under_its_fraction(rows):
    lines = render_vits([row.to_dict() for row in rows]).splitlines()
    assert lines[0].split() == ["tokens", "ms", "cosine", "correct"]
    assert len(lines) == 1 + len(rows) + len(FRACTIONS)
    assert lines[2] == "every block merges 2%"
    assert lines[1].split()[:2] == ["unmerged", "65"]


def test_the_command_prints_a_table_for_digits_and_photographs(rows, monkeypatch):
    monkeypatch.setattr(command, "train_vit", lambda data: make_vit())
    monkeypatch.setattr(timm, "create_model", lambda name: make_vit())
    monkeypatch.setattr(command, "load_photographs", lambda model: None)
    monkeypatch.setattr(command, "race_vit", lambda model, data: rows[:1])
    result = CliRunner().invoke(app, ["vits"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    table = render_vits([rows[0].to_dict()])
    assert result.output == f"digits\n{table}\nphotographs\n{table}\n"
