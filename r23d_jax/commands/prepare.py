"""`python -m r23d_jax prepare`: video files to JPEG frame folders, packed shards, or both."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r23d_jax.commands import requirements
from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.config import UserError
from r23d_jax.data.find.class_folders import LISTS
from r23d_jax.data.find.splits import available_splits
from r23d_jax.data.find.video_names import VIDEO_SUFFIXES
from r23d_jax.data.make.flow import DEFAULT_BOUND, METHODS
from r23d_jax.data.make.jobs import PrepareError
from r23d_jax.data.make.prepare import Settings, prepare
from r23d_jax.data.make.record import BROKEN, FRAMES, PACKED
from r23d_jax.data.make.upload import built_for
from r23d_jax.runtime import remote
from r23d_jax.runtime.interrupts import terminate_as_interrupt
from r23d_jax.runtime.program import command

EXIT_OK, EXIT_FAILED, EXIT_SKIPPED, EXIT_STOPPED = 0, 2, 3, 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--videos", required=True, help=f"folder or URL searched for videos ({' '.join(VIDEO_SUFFIXES)})")
    add(
        "--out",
        required=True,
        help=f"folder to write: {FRAMES}/<Class>/<video>/image_00001.jpg, {PACKED}/; with --format packed also a URL",
    )
    add("--format", choices=("frames", "packed", "both"), default="frames", help="frame folders, shards, or both")
    add("--quality", type=int, default=95, help="JPEG quality, 1 to 100 (default: 95)")
    add("--short-side", type=int, default=0, help="pixels to which the shorter side is reduced; 0 keeps the size")
    add(
        "--flow",
        nargs="?",
        const="dis",
        choices=METHODS,
        default="",
        help="write the optical flow between frames instead of the frames; without a method by dis, the fastest",
    )
    add(
        "--flow-bound",
        type=float,
        default=DEFAULT_BOUND,
        help=f"displacement in pixels that becomes the largest stored value (default: {DEFAULT_BOUND:g})",
    )
    add(
        "--lists",
        default="",
        help="folder of split lists: prepare only the videos they name; without it, the videos are split by group",
    )
    add(
        "--fps",
        type=float,
        default=0.0,
        help="frames per second to keep, each the nearest in time, of videos that have more; 0: all frames",
    )
    add("--workers", type=int, default=0, help="number of processes; 0: one per core")
    add("--shards", type=int, default=0, help="number of shards; 0: as many as keep each below about 1 GiB")
    add(
        "--beam-runner",
        default="",
        metavar="NAME",
        help="with --format packed: decode on this Apache Beam runner, e.g. DirectRunner, DaskRunner, DataflowRunner, "
        "FlinkRunner, SparkRunner, whose workers must see --videos and --out under the same paths or URLs",
    )
    add("--beam-options", default="", metavar="OPTION=VALUE,...", help="options of Beam or its runner, without dashes")
    add("--overwrite", action="store_true", help="remove the results of earlier runs in --out")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      0: all videos are done; 3: some could not be decoded (they are in broken.txt); 2: wrong use, or the run cannot
      continue, e.g. because the disk is full; 130: stopped by Ctrl-C or SIGTERM. The same command then resumes.
    """
    try:
        with terminate_as_interrupt():
            with json_document(args.json) as told:
                return _run(args, told)
    except PrepareError as error:
        print(f"prepare: {error}. Finished work is kept; run the same command again to continue.", file=sys.stderr)
        return EXIT_FAILED
    except UserError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("prepare: stopped. Finished work is kept; run the same command again to continue.", file=sys.stderr)
        return EXIT_STOPPED


def _run(args: argparse.Namespace, told: dict[str, Any]) -> int:
    if args.format != "frames":  # before anything is decoded
        for name in requirements.NEEDS["prepare --format packed"]:
            if not requirements.is_installed(name):
                raise UserError(str(requirements.explain("prepare", ModuleNotFoundError(name=name))))
    names = {field.name for field in dataclasses.fields(Settings)} - {"url"}
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    with built_for(args.out, args.format) as here:
        given["out"] = str(here)
        given["url"] = args.out if remote.is_remote(args.out) else ""
        summary = prepare(Settings(**given))
        splits = available_splits(Path(summary.lists)) if summary.num_ready and summary.lists else ()
    out = args.out
    lists = remote.join(out, LISTS) if summary.lists and not args.lists else summary.lists
    new = f"{summary.num_new} of them new, with {summary.num_frames} frames"
    print(f"{summary.num_ready} videos are ready in {out} ({new})")
    if summary.num_broken:
        where = remote.join(out, BROKEN)
        print(f"skipped {summary.num_broken} videos that could not be used; they are listed in {where}")
    told |= {"out": out, "ready": summary.num_ready, "new": summary.num_new, "frames": summary.num_frames}
    told |= {"broken": summary.num_broken, "lists": lists, "next": ""}
    if splits:
        told["next"] = _next_command(args, lists, splits)
        print(f"next: {told['next']}")
    return EXIT_SKIPPED if summary.num_broken else EXIT_OK


def _next_command(args: argparse.Namespace, lists: str, splits: Sequence[int]) -> str:
    settings = {
        "source": PACKED if args.format == "packed" else "",
        "root": remote.join(args.out, PACKED if args.format == "packed" else FRAMES),
        "lists": lists,
        "split": "" if 1 in splits else str(splits[0]),
    }
    config = f"--config=configs/r23d.py{':flow' if args.flow else ''}"
    chosen = [f"--config.data.{name}={shlex.quote(value)}" for name, value in settings.items() if value]
    return " ".join([command("train"), config, *chosen])
