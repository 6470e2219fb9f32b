"""`predict`: classifies video files with a trained network."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r23d_jax.config import UserError
from r23d_jax.runtime.progress import printable

if TYPE_CHECKING:
    from r23d_jax.evaluation.single import Prediction

EXIT_OK, EXIT_SKIPPED = 0, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--workdir", required=True, help="a run's folder (its best checkpoint is used), or one checkpoint"
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file, or a folder of numbered frames")
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--clips",
        type=int,
        default=0,
        help="evenly spaced clips per video; 0: as the run was evaluated, but at least 10 (default: 0)",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="clips per call of the network (default: 8)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per video")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      0: every video was classified; 3: some could not be read, and a line names the reason for each.

    Raises:
      UserError: a wrong option, or no usable checkpoint.
    """
    for option, least in (("top", 1), ("clips", 0), ("batch_size", 1)):
        if getattr(args, option) < least:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least {least}")
    from r23d_jax.checkpoint.checkpoint import load_checkpoint
    from r23d_jax.data.make.video import VideoError
    from r23d_jax.evaluation.single import Predictor, clips_of

    loaded = load_checkpoint(Path(args.workdir))
    if not loaded.class_names:
        raise UserError(f"{loaded.path}: has no classifier; train one with --config.init_from={args.workdir}")
    if loaded.model.in_channels != 3:
        raise UserError(f"{loaded.path}: reads {loaded.model.in_channels} channels of optical flow, not RGB")
    views = clips_of(loaded.config.eval)
    if args.clips:
        views = dataclasses.replace(views, views="uniform", num_clips=args.clips)
    predictor = Predictor(loaded.model, loaded.preprocessing, views, args.batch_size)
    if not args.json:
        accuracy = loaded.metrics.get("val/top1_video")
        known = "" if accuracy is None else f", video top-1 {100 * accuracy:.2f} %"
        print(f"{loaded.name}, {len(loaded.class_names)} classes, step {loaded.step:,}{known}")
    failed = 0
    for name in args.videos:
        try:
            prediction = predictor(Path(name))
        except VideoError as error:
            failed += 1
            _print_error(name, str(error), args.json)
            continue
        order = np.argsort(-prediction.probabilities, kind="stable")[: args.top]
        ranking = [(loaded.class_names[k], float(prediction.probabilities[k])) for k in order.tolist()]
        _print_ranking(name, ranking, prediction, args.json)
    return EXIT_SKIPPED if failed else EXIT_OK


def _print_ranking(name: str, ranking: list[tuple[str, float]], prediction: "Prediction", as_json: bool) -> None:
    frames, clips, seen = prediction.num_frames, prediction.num_clips, prediction.seen
    if as_json:
        classes = [{"class": class_name, "probability": probability} for class_name, probability in ranking]
        row = {"video": name, "frames": frames, "clips": clips, "seen": round(seen, 4), "predictions": classes}
        row |= {"note": f"not used: {prediction.note}"} if prediction.note else {}
        print(json.dumps(row), flush=True)
        return
    noun = "clip" if clips == 1 else "clips"
    print(f"{printable(name)}  ({frames:,} frames, {clips:,} {noun}, {100 * seen:.0f} % of the video seen)")
    if prediction.note:
        print(f"  not used: {printable(prediction.note)}")
    shown = [(printable(class_name), probability) for class_name, probability in ranking]
    width = max(len(class_name) for class_name, _ in shown)
    for class_name, probability in shown:
        print(f"  {class_name:<{width}}  {100 * probability:6.2f} %")
    sys.stdout.flush()


def _print_error(name: str, reason: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"video": name, "error": reason}), flush=True)
    else:
        print(f"{printable(name)}  not recognized: {printable(reason.removeprefix(f'{name}: '))}", flush=True)
