"""python -m tests.hostile.fuzz TARGET --seconds N: fuzzes one parser, guided by coverage, with atheris (optional).

What is found new is kept in --corpus (a folder outside of the repository by default); an input that fails is written to
`crash-*` there, and shown. `tests/hostile/fuzz/corpus/TARGET` holds a small minimized set, which ordinary tests replay.
"""

import argparse
import hashlib
import importlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

SEEDS = Path(__file__).with_name("corpus")
PARSERS = ("splits", "index_cache", "frames", "packed", "tfrecord", "picture_header")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("target", choices=("lists", "index", "records", "weights"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="where inputs are kept (default: a temporary folder)")
    parser.add_argument("--minimize", action="store_true", help="keep those of --corpus that matter as seeds")
    args = parser.parse_args()
    if args.minimize:
        return minimize(args.target, args.corpus)
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("fuzzing needs atheris, which is not installed: pip install atheris", file=sys.stderr)
        return 2
    corpus = args.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["r23d_jax"], enable_loader_override=False):
        for name in PARSERS:
            importlib.import_module(f"r23d_jax.data.find.{name}")
        if args.target == "weights":
            importlib.import_module("r23d_jax.weights.state_dicts")
    from tests.hostile.fuzz.targets import TARGETS, starting_inputs

    for number, content in enumerate(starting_inputs(args.target)):
        (corpus / f"start-{number}").write_bytes(content)

    options = [sys.argv[0], f"-artifact_prefix={corpus}/", "-timeout=20", "-rss_limit_mb=3000", "-print_final_stats=1"]
    options += [f"-max_total_time={args.seconds}", "-max_len=2048", str(corpus)]
    seeds = SEEDS / args.target
    atheris.Setup(options + [str(seeds)] * seeds.is_dir(), TARGETS[args.target])
    atheris.Fuzz()  # ends the process
    return 0


def minimize(target: str, corpus: Path) -> int:
    """Makes those inputs the seeds, smallest first, that run a line of ours that none before ran."""
    from tests.hostile.fuzz.targets import TARGETS

    contents = sorted({path.read_bytes() for path in corpus.iterdir()}, key=lambda content: (len(content), content))
    seeds, seen = SEEDS / target, set()
    shutil.rmtree(seeds, ignore_errors=True)
    seeds.mkdir(parents=True)
    for content in contents:
        lines = _lines_run(TARGETS[target], content)
        if not lines <= seen:
            seen |= lines
            (seeds / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)
    print(f"{len(list(seeds.iterdir()))} of {len(contents)} inputs run all of {len(seen)} lines")
    return 0


def _lines_run(function: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    lines = set()

    def trace(frame: FrameType, event: str, arg: object) -> Callable | None:
        if "r23d_jax/" not in frame.f_code.co_filename:
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        function(data)
    finally:
        sys.settrace(None)
    return lines


if __name__ == "__main__":
    sys.exit(main())
