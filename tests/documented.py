"""The commands that the documentation shows, as a reader would copy them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PYTHONS = ("python", "python3", ".venv/bin/python")
BEFORE = ("sudo", "taskset -c 3")  # words that may stand before a command


class Command(NamedTuple):
    """One command of a page: its words without environment variables, and the place for messages."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"

    @property
    def module(self) -> str:
        """`r23d_jax`, `pytest`, `launch.py`, ...: what Python is to run; "" for another program."""
        first, *rest = self.words
        if first == "r23d-jax":
            return "r23d_jax"
        if first not in PYTHONS or not rest:
            return ""
        return rest[1] if rest[0] == "-m" else rest[0]

    @property
    def arguments(self) -> list[str]:
        """The words after the module's name."""
        return list(self.words[1 if self.words[0] == "r23d-jax" else 3 if self.words[1] == "-m" else 2 :])


def commands(pages: list[Path] = PAGES) -> Iterator[Command]:
    """Every command in the blocks of shell code of some pages, in order."""
    for page in pages:
        for number, text in _blocks(page.read_text(encoding="utf-8")):
            for line, joined in _lines(number, text):
                for part in re.split(r"\s&&\s|\s\|\s|;", re.sub(r"(^|\s)#.*", "", joined)):
                    words = shlex.split(part)
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words.pop(0)
                    for before in BEFORE:
                        if words[: len(before.split())] == before.split():
                            words = words[len(before.split()) :]
                    if words and words[0] not in ("cd", "export"):
                        kept = tuple(word for word in words if word != "...")
                        yield Command(page.relative_to(ROOT).as_posix(), line, kept)


def configs(pages: list[Path] = PAGES) -> Iterator[tuple[str, str]]:
    """Every config with a variant that a page names, e.g. `r2plus1d.py:18,tv`, with the page."""
    for page in pages:
        for found in re.findall(r"`(?:configs/)?([a-z0-9_]+\.py:[a-z0-9_,]+)`", page.read_text(encoding="utf-8")):
            yield page.name, found


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        yield text[: match.start(1)].count("\n") + 1, match[1]


def _lines(number: int, text: str) -> Iterator[tuple[int, str]]:
    lines = text.splitlines()
    while lines:
        start, joined = number, lines.pop(0)
        while joined.endswith("\\") and lines:
            joined, number = joined[:-1] + " " + lines.pop(0).strip(), number + 1
        number += 1
        yield start, joined.strip()
