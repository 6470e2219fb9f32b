"""The site of the documentation has every page."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"index.md", "api.md"}  # by .ci/site.py


def test_every_page_is_in_the_menu() -> None:
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert len(listed) == len(set(listed))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert pages - set(listed) == set(), "mkdocs build --strict fails for a page that the menu lacks"
    assert all((ROOT / name).is_file() for name in set(listed) - pages - GENERATED)
