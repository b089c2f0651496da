"""The page of errors quotes messages that the code really has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "errors.md").read_text()
QUOTED = re.findall(r"\*\*`(.+?)`\*\*", PAGE)
CODE = [*(ROOT / "catome_core").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")]


def messages() -> set[str]:
    """Every string of the code; what is filled in is a blank."""
    found = set()
    for file in CODE:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add(
                    "".join(
                        str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else " "
                        for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


MESSAGES = messages()


def test_several_are_quoted():
    assert len(QUOTED) > 10


@pytest.mark.parametrize("quoted", QUOTED)
def test_message_is_one_of_the_code(quoted: str):
    for words in filter(None, (part.strip() for part in quoted.split("..."))):
        assert any(words in message for message in MESSAGES), words
