"""`study`: runs a grid of trainings, and makes tables and pictures of the results."""

import argparse
from pathlib import Path
from typing import Any

from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.config import UserError
from r23d_jax.runtime import program, remote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a file with get_study(arg)")
    parser.add_argument("--workdir", help="folder for results.md and a folder per training")
    parser.add_argument("--list", action="store_true", help="show the grid, its progress, and the cost of the rest")
    parser.add_argument("--shard", default="", metavar="i/n", help="run the i-th of n parts, e.g. one per machine")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only trainings whose name contains TEXT")
    override = "set a field of the base config, e.g. data.root=FRAMES (an axis may override it), or name a file"
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=override)
    add_json(parser)
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # starts the process of one training


def run(args: argparse.Namespace) -> int:
    """Runs the trainings that are not done yet and writes the results; returns 3 if one is not done at the end."""
    from r23d_jax.study.run import run_cells, train_cell

    if args.cell:
        return train_cell(Path(args.cell))
    if not args.config or not args.workdir:
        raise UserError("--config and --workdir are needed: study --config=configs/study.py --workdir=runs/study")
    from r23d_jax.study.grid import cells, load_study, shard, with_settings
    from r23d_jax.study.results import write_results

    path, _, arg = program.find_config(args.config).partition(":")
    study = with_settings(load_study(path, arg), args.set)
    grid = cells(study)
    part = shard(grid, args.shard)
    if not part:
        raise UserError(f"--shard {args.shard}: is empty, because the study has {len(grid)} trainings only")
    chosen = [cell for cell in part if args.only in cell.name]
    if not chosen:
        raise UserError(f"--only {args.only}: no training's name contains it, e.g. {grid[0].name}")
    remote.refuse("--workdir", args.workdir)
    workdir = Path(args.workdir)
    with json_document(args.json) as told:
        if args.list:
            told |= show_grid(chosen, workdir)
            return 0
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            done, failed = run_cells(chosen, workdir)
        finally:
            page = write_results(study, grid, workdir, print)
        print(f"{done} of {len(chosen)} trainings are done" + (f", {failed} failed" if failed else "") + f": {page}")
        told |= {"trainings": len(chosen), "done": done, "failed": failed, "results": str(page)}
        return 3 if done < len(chosen) else 0


def show_grid(grid: list, workdir: Path) -> dict[str, Any]:
    """Prints the grid with the hours of each training, at the rate of finished ones if any; returns it for JSON."""
    import os

    import jax

    from r23d_jax.runtime.progress import format_seconds
    from r23d_jax.study.costs import CORE_RATE, GPU_RATE, cost_of
    from r23d_jax.study.run import outcome_of

    rows = [(cell, cost_of(cell), outcome_of(cell, workdir)) for cell in grid]
    done = [(cost.pmacs, outcome.seconds) for _, cost, outcome in rows if outcome and outcome.status == "done"]
    worked, spent = sum(pmacs or 0 for pmacs, _ in done), sum(seconds for pmacs, seconds in done if pmacs)
    cores = os.cpu_count() or 1
    rate = 1e15 * worked / spent if worked and spent else GPU_RATE
    if not worked and jax.default_backend() == "cpu":
        rate = CORE_RATE * cores

    width = max(len(cell.name) for cell in grid)
    print(f"{'cell':{width}}  {'status':8} {'parameters':>12} {'GMACs/clip':>11} {'clips':>12} {'hours':>9}  took")
    left, unknown, told = 0.0, 0, []
    for cell, cost, outcome in rows:
        status, took = (outcome.status, format_seconds(outcome.seconds)) if outcome else ("waiting", "")
        clips = hours = "?"
        duration = None if cost.pmacs is None else 1e15 * cost.pmacs / rate
        if duration is not None:
            clips, hours = f"{cost.clips:,}", f"{duration / 3600:,.2f}"
        if cell.needs and status == "waiting":
            status = "missing"
        elif status != "done":
            left, unknown = left + (cost.pmacs or 0), unknown + (cost.pmacs is None)
        row = f"{cost.parameters:>12,} {cost.gmacs:>11.3f} {clips:>12} {hours:>9}"
        print(f"{cell.name:{width}}  {status:8} {row}  {took}".rstrip())
        known = {"parameters": cost.parameters, "gmacs": cost.gmacs, "clips": cost.clips, "seconds_expected": duration}
        told.append({"name": cell.name, "status": status} | known | {"seconds": outcome and outcome.seconds})
    for text in dict.fromkeys(text for cell in grid for text in cell.needs.values()):
        print(f"missing: {text}")
    print(f"{len(grid)} trainings; left: {left:,.4g} PMACs (10^15 multiply-adds, forward and backward)")
    if unknown:
        print(f"{unknown} of them have neither dataset nor lists on disk yet, so their length is unknown")
    if left and worked:
        print(f"about {format_seconds(1e15 * left / rate)} at the rate of the finished ones")
    elif left:
        gpu, cpu = (1e15 * left / per_second / 3600 for per_second in (GPU_RATE, CORE_RATE * cores))
        print(f"a rough estimate: {gpu:,.1f} hours on one H100 or H200, {cpu:,.0f} hours on {cores} CPU cores")
    missing = sorted({text for cell in grid for text in cell.needs.values()})
    return {"trainings": told, "missing": missing, "pmacs_left": left}
