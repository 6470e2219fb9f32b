"""Fails unless a quickstart run left what the README promises: python .ci/check_smoke.py WORKDIR."""

import json
import sys
from pathlib import Path

workdir = Path(sys.argv[1])
rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
top1 = [row["val/top1_video"] for row in rows if "val/top1_video" in row][-1]
assert (workdir / "report.html").stat().st_size > 50_000, "the report is missing or empty"
assert list((workdir / "checkpoints").iterdir()), "no checkpoint was written"
assert top1 >= 0.95, f"video top-1 is {top1:.3f}, the README promises at least 0.95"
print(f"smoke run: video top-1 {top1:.3f}")
