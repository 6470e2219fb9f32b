"""docs/robustness.md lists what users see: a row for every kind of bad file, with the message the tests expect."""

import re
from pathlib import Path

import pytest

from tests.hostile.bad_files.corpus import PICTURES, VIDEOS, WEIGHTS, BadFile

PAGE = Path(__file__).resolve().parents[3] / "docs" / "robustness.md"


def rows(title: str) -> dict[str, str]:
    section = PAGE.read_text(encoding="utf-8").split(f"### {title}\n")[1].split("\n#")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return dict(cells[1:])  # type: ignore[arg-type]


@pytest.mark.parametrize(("title", "kinds"), [("Frames", PICTURES), ("Videos", VIDEOS), ("Weights", WEIGHTS)])
def test_the_table_says_what_is_said(title: str, kinds: dict[str, BadFile]) -> None:
    said = rows(title)
    assert list(said) == [file.what for file in kinds.values()]
    for file in kinds.values():
        if file.reason:
            assert re.search(file.reason, said[file.what].replace("'X9'", "`X9`").strip("`")), file.what
        else:
            assert said[file.what] == "works"
