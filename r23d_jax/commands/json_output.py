"""`--json`: one JSON object on standard output, and everything else on standard error (docs/json.md)."""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from typing import Any


def add_json(parser: argparse.ArgumentParser | argparse._ArgumentGroup, each: str = "") -> None:
    """Declares --json; `each` says what has an object of its own, e.g. "video"."""
    about = f"print one JSON object for each {each}" if each else "print one JSON object"
    parser.add_argument("--json", action="store_true", help=f"{about}; all else goes to standard error")


@contextlib.contextmanager
def json_document(wanted: bool) -> Iterator[dict[str, Any]]:
    """A dict to fill, which is printed at the end if that is wanted; what is printed inside goes to standard error."""
    told: dict[str, Any] = {}
    if not wanted:
        yield told
        return
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield told
    with contextlib.redirect_stdout(output):
        print_json(told)


def print_json(told: dict[str, Any]) -> None:
    """Prints an object on one line. JSON has no NaN, so a number that is not finite becomes null; a path is text."""
    print(json.dumps(_plain(told), allow_nan=False, default=str), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's, which may be missing here
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
