"""`study`: runs a grid of trainings, and makes tables and pictures of the results."""

import argparse
from pathlib import Path

from r23d_jax.config import UserError
from r23d_jax.runtime import program


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("--config", metavar="FILE[:ARG]", help="a file with get_study(arg)")
    parser.add_argument("--workdir", help="folder for results.md and a folder per training")
    parser.add_argument("--list", action="store_true", help="show the grid, its progress, and the cost of the rest")
    parser.add_argument("--shard", default="", metavar="i/n", help="run the i-th of n parts, e.g. one per machine")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only trainings whose name contains TEXT")
    override = "set a field of the base config, e.g. data.root=FRAMES; an axis may override it again"
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=override)
    parser.add_argument("--cell", help=argparse.SUPPRESS)  # starts the process of one training


def run(args: argparse.Namespace) -> int:
    """Runs the trainings that are not done yet and writes the results; returns 3 if one failed."""
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
    chosen = [cell for cell in shard(grid, args.shard) if args.only in cell.name]
    if not chosen:
        raise UserError(f"--only {args.only}: no cell's name contains it, e.g. {grid[0].name}")
    workdir = Path(args.workdir)
    if args.list:
        _show(chosen, workdir)
        return 0
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        done, failed = run_cells(chosen, workdir)
    finally:
        page = write_results(study, grid, workdir)
    print(f"{done} of {len(chosen)} trainings are done" + (f", {failed} failed" if failed else "") + f": {page}")
    return 3 if failed else 0


def _show(grid: list, workdir: Path) -> None:
    """Prints the grid as a table, and the time left at the rate of the finished trainings."""
    from r23d_jax.runtime.progress import format_seconds
    from r23d_jax.study.costs import cost_of
    from r23d_jax.study.run import read_outcome

    width = max(len(cell.name) for cell in grid)
    print(f"{'cell':{width}}  {'status':8} {'parameters':>12} {'GMACs/clip':>11} {'clips':>12} {'PMACs':>9}  took")
    worked = spent = left = 0.0
    unknown = 0
    for cell in grid:
        cost, outcome = cost_of(cell), read_outcome(workdir / cell.name)
        pmacs = cost.pmacs
        status, took = (outcome.status, format_seconds(outcome.seconds)) if outcome else ("waiting", "")
        if status == "done" and outcome is not None and pmacs:
            worked, spent = worked + pmacs, spent + outcome.seconds
        elif pmacs is None:
            unknown += 1
        else:
            left += pmacs
        clips, amount = ("?", "?") if pmacs is None else (f"{cost.clips:,}", f"{pmacs:.3g}")
        row = f"{cost.parameters:>12,} {cost.gmacs:>11.3f} {clips:>12} {amount:>9}"
        print(f"{cell.name:{width}}  {status:8} {row}  {took}".rstrip())
    total = f" of {worked + left:.3g} PMACs" if worked + left else ""
    print(f"{len(grid)} trainings{total}; PMACs are million billions of multiply-adds, forward and backward")
    if unknown:
        print(f"{unknown} of them have neither dataset nor lists on disk yet, so their length is unknown")
    if worked and left:
        print(f"left: {left:.3g} PMACs, about {format_seconds(left * spent / worked)} at the rate so far")
