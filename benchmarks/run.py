"""All measurements, side by side with PyTorch in one run.

    python -m benchmarks.run [input|loading|index|shards|step|forward|eval|convert|start|scale|all] [--peer] [--out DIR]

Writes results.json, results.md and results.svg; docs/performance.md says what they mean. The exit status is 1 if an
index takes more memory or time than it may.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import evaluating, indexing, loading, scaling, shards, shipped, starting, steps
from benchmarks.measure import environment
from r23d_jax.runtime import backend

PARTS = ("input", "loading", "index", "shards", "step", "forward", "eval", "convert", "start", "scale")


def main() -> int:
    """Runs the chosen parts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--peer", action="store_true", help="against torch, which must be installed")
    parser.add_argument("--out", default="benchmarks/results", help="folder of the results; earlier parts are kept")
    parser.add_argument("--rounds", type=int, default=7, help="of A B A B")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--networks", default=",".join(steps.NETWORKS), help="for step and forward")
    parser.add_argument("--variants", default=",".join(steps.TORCH_VARIANTS), help="of torch, for step and forward")
    parser.add_argument("--videos", type=int, default=240_000, help="for index")
    parser.add_argument("--frames", type=int, default=300, help="of each video, for index")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    args = parser.parse_args()
    backend.prepare_process()
    workers = len(os.sched_getaffinity(0))
    clips = steps.Clips(8, 8, 32) if args.tiny else steps.Clips(args.batch)
    variants = args.variants.split(",") if args.peer else []
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results = _read(out / "results.json")
    for part in PARTS if args.part == "all" else (args.part,):
        print(f"-- {part} --", flush=True)
        started = time.monotonic()
        if part == "input":
            found: Any = loading.run(args.rounds, workers, args.tiny, args.peer)
        elif part == "loading":
            found = shipped.run(args.rounds, workers, args.tiny, args.peer)
        elif part == "index":
            found = indexing.run(*((200, 20, 8) if args.tiny else (args.videos, args.frames, 64)))
        elif part == "shards":
            found = shards.run(args.rounds, args.tiny)
        elif part in ("step", "forward"):
            found = steps.run(part, args.rounds, clips, args.networks.split(","), variants)
        elif part == "eval":
            found = evaluating.run(args.rounds, workers, args.tiny, args.peer)
        elif part == "convert":
            found = starting.convert(args.rounds, args.tiny, args.peer)
        elif part == "start":
            found = starting.run(args.rounds, args.tiny)
        else:
            found = scaling.run(args.rounds, args.tiny)
        results[part] = {"environment": environment(), "rounds": args.rounds, "found": found}
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"   {time.monotonic() - started:.0f} s", flush=True)
    text = markdown(results)
    (out / "results.md").write_text(text)
    (out / "results.svg").write_text(picture(results))
    print(text)
    if args.part not in ("index", "all"):
        return 0
    print(indexing.summary(results["index"]["found"]))
    return int(indexing.exceeds(results["index"]["found"]))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _range(pair: list[float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.2f} to {pair[1]:.2f}"


def markdown(results: dict[str, Any]) -> str:
    """A table for each part, below the machine that ran it."""
    lines = ["# Measurements", ""]
    for part in PARTS:
        if part not in results:
            continue
        about, found = results[part]["environment"], results[part]["found"]
        lines += [f"## {part}", "", ", ".join(f"{name} {value}" for name, value in about.items()) + ".", ""]
        lines.append(f"Medians of {results[part]['rounds']} rounds in alternation; ratios are within a round.")
        lines.append("")
        lines += {
            "input": _input_lines,
            "loading": _loading_lines,
            "index": _index_lines,
            "shards": _shards_lines,
            "step": _step_lines,
            "forward": _step_lines,
            "eval": _eval_lines,
            "convert": _time_lines,
            "start": _time_lines,
            "scale": _scale_lines,
        }[part](found)
        lines.append("")
    return "\n".join(lines)


def _input_lines(found: dict[str, Any]) -> list[str]:
    lines = ["| pipeline | clips/s | against the usual loader (spread) | against one with the same shortcuts |"]
    lines.append("|---|---:|---:|---:|")
    for row in found["rows"]:
        usual = f"{_number(row['ratio_usual'])} ({_range(row['ratio_usual_spread'])})" if row["ratio_usual"] else ""
        lines.append(f"| {row['name']} | {row['clips_per_second']:.0f} | {usual} | {_number(row['ratio_same'])} |")
    lines += ["", "| resize, 320x240 to 171x128 | PSNR against PIL, dB | aliasing, PIL = 1 |", "|---|---:|---:|"]
    lines += [f"| {row['name']} | {_number(row['psnr'], 1)} | {_number(row['alias'])} |" for row in found["quality"]]
    held = ", ".join(f"{held / 2**20:.0f}" for held in found["memory"]["bytes"])
    lines += ["", f"Memory after each epoch of the packed pipeline, MiB: {held}.", ""]
    return [*lines, *(f"- {name}: {text}" for name, text in found["work"].items())]


def _loading_lines(found: dict[str, Any]) -> list[str]:
    lines = ["| host's half | clips/s | torchvision's preset = 1 | processor time a clip, ms | decoding alone = 1 |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in found["rows"]:
        cells = [f"{row['clips_per_second']:.0f}", *(_number(row[name]) for name in ("ratio_peer", "processor"))]
        lines.append(f"| {row['name']} | {' | '.join(cells)} | {_number(row['ratio_decoding'])} |")
    return [*lines, "", *(f"- {name}: {text}" for name, text in found["work"].items())]


def _index_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| index | videos | frames of each | MiB above the imports | s to the first batch | of processor time |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in found:
        cells = (f"{row['mib']:.0f}", f"{row['seconds']:.1f}", f"{row['processor']:.1f}")
        lines.append(f"| {row['name']} | {row['videos']} | {row['frames']} | {' | '.join(cells)} |")
    return lines


def _shards_lines(found: dict[str, Any]) -> list[str]:
    lines = ["| shards in a window | shards in use | clips that a cache of 32 has | reads of a shard in an epoch |"]
    lines.append("|---:|---:|---:|---:|")
    for row in found["order"]:
        lines.append(f"| {row['window']} | {row['used']} | {row['hits']:.1%} | {row['reads']:.2f} |")
    lines += ["", "| shards | clips/s | first = 1 (spread) | processor time a clip, ms | requests a clip |"]
    lines.append("|---|---:|---:|---:|---:|")
    for row in found["speed"]:
        ratio = f"{_number(row['ratio'])} ({_range(row['spread'])})"
        cells = (f"{row['clips_per_second']:.0f}", ratio, _number(row["processor"]), _number(row["requests"]))
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def _step_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| network | clips | candidate | seconds | fastest torch = 1 (spread) | GFLOP/s |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for row in found:
        ratio = f"{_number(row['ratio'])} ({_range(row['spread'])})" if row["ratio"] else ""
        cells = [row["network"], row["clips"], row["candidate"], f"{row['seconds']:.2f}", ratio, f"{row['gflops']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _eval_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| pipeline | views/s | first = 1 (spread) |", "|---|---:|---:|"]
    for row in found:
        ratio = f"{_number(row['ratio'])} ({_range(row['spread'])})"
        lines.append(f"| {row['name']} | {row['views_per_second']:.0f} | {ratio} |")
    return lines


def _time_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | seconds | from, to |", "|---|---:|---:|"]
    return lines + [f"| {row['name']} | {row['seconds']:.2f} | {_range(row['spread'])} |" for row in found]


def _scale_lines(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | clips | seconds | times the first of its kind |", "|---|---|---:|---:|"]
    return lines + [f"| {row['what']} | {row['clips']} | {row['seconds']:.3f} | {row['ratio']:.2f} |" for row in found]


def picture(results: dict[str, Any]) -> str:
    """Speed against the reference, as bars in one SVG; a longer bar is faster."""
    import io

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot

    groups: list[tuple[str, list[tuple[str, float, list[float]]]]] = []
    if "input" in results:
        rows = [row for row in results["input"]["found"]["rows"] if row["ratio_usual"]]
        bars = [(row["name"], row["ratio_usual"], row["ratio_usual_spread"]) for row in rows]
        groups.append(("Loading clips; the usual torch loader = 1", bars))
    for part, title in (("step", "Training step"), ("forward", "Forward pass")):
        rows = [row for row in results.get(part, {}).get("found", []) if row["ratio"]]
        bars = [(f"{row['network']}, {row['candidate']}", row["ratio"], row["spread"]) for row in rows]
        groups.append((f"{title}; the fastest torch = 1", bars))
    if "eval" in results:
        bars = [(row["name"], row["ratio"], row["spread"]) for row in results["eval"]["found"]]
        groups.append(("Views of an evaluation; the first = 1", bars))
    groups = [(title, bars) for title, bars in groups if bars] or [("Nothing was compared", [("", 0.0, [0.0, 0.0])])]
    heights = [len(bars) + 1 for _, bars in groups]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(8, 0.36 * sum(heights)), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axis, (title, bars) in zip(axes[:, 0], groups, strict=True):
        values = [value for _, value, _ in bars]
        low = [value - spread[0] for _, value, spread in bars]
        high = [spread[1] - value for _, value, spread in bars]
        colors = ["#8A929C" if "torch" in name else "#0072B2" for name, _, _ in bars]
        drawn = axis.barh([name for name, _, _ in bars], values, color=colors, xerr=[low, high], ecolor="#1F2933")
        axis.bar_label(drawn, fmt="%.2f", padding=12, fontsize=8)
        axis.axvline(1, color="#1F2933", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=10)
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg")
    pyplot.close(figure)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
