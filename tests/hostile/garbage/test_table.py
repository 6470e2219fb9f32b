"""docs/robustness.md says what users see: every kind of garbage has a row there, and it is what the tests want."""

import re
from pathlib import Path

import pytest

from tests.hostile.garbage.corpus import PICTURES, VIDEOS, WEIGHTS, Garbage

PAGE = Path(__file__).resolve().parents[3] / "docs" / "robustness.md"


def rows(title: str) -> dict[str, str]:
    section = PAGE.read_text(encoding="utf-8").split(f"### {title}\n")[1].split("\n#")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return dict(cells[1:])  # type: ignore[arg-type]


@pytest.mark.parametrize(("title", "kinds"), [("Frames", PICTURES), ("Videos", VIDEOS), ("Weights", WEIGHTS)])
def test_the_table_says_what_is_said(title: str, kinds: dict[str, Garbage]) -> None:
    said = rows(title)
    assert list(said) == [garbage.what for garbage in kinds.values()]
    for garbage in kinds.values():
        if garbage.reason:
            assert re.search(garbage.reason, said[garbage.what].replace("'X9'", "`X9`").strip("`")), garbage.what
        else:
            assert said[garbage.what] == "works"
