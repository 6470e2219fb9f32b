"""`predict`: classifies video files with a trained network."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r23d_jax.config import FUSED_SCORES, FusionConfig, UserError
from r23d_jax.runtime.progress import printable

if TYPE_CHECKING:
    from r23d_jax.evaluation.single import Prediction

EXIT_OK, EXIT_SKIPPED = 0, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--workdir",
        "--weights",
        required=True,
        metavar="WEIGHTS",
        help="a run's folder (its best checkpoint is used), a checkpoint, a file of weights, or a name: "
        "r2plus1d_18.kinetics400",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="a video file, or a folder of numbered frames")
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--clips",
        type=int,
        default=0,
        help="evenly spaced clips per video; 0: as the run was evaluated, but at least 10 (default: 0)",
    )
    parser.add_argument(
        "--second", default="", metavar="WORKDIR", help="a second stream, e.g. of optical flow, whose scores are added"
    )
    parser.add_argument(
        "--weight",
        type=float,
        default=FusionConfig.weight,
        help=f"with --second: weight of the first stream, 0 to 1 (default: {FusionConfig.weight})",
    )
    parser.add_argument("--scores", choices=FUSED_SCORES, default=FusionConfig.scores, help="scores to add")
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
    if not 0 <= args.weight <= 1:
        raise UserError(f"--weight {args.weight:g}: must be between 0 and 1")
    from r23d_jax.data.make.video import VideoError
    from r23d_jax.evaluation.single import Predictor, clips_of, fuse
    from r23d_jax.evaluation.trained import load_model

    loaded = load_model(args.workdir)
    streams = [loaded, *([load_model(args.second)] if args.second else [])]
    predictors = []
    for stream in streams:
        if not stream.class_names:
            raise UserError(f"{stream.path}: has no classifier; train one with --config.init_from={stream.path}")
        if stream.class_names != loaded.class_names:
            raise UserError(
                f"--second {args.second}: was trained on other classes than {args.workdir}, or in another order; train "
                "both streams on the same lists"
            )
        views = clips_of(stream.config.eval)
        if args.clips:
            views = dataclasses.replace(views, views="uniform", num_clips=args.clips)
        predictors.append(Predictor(stream.model, stream.preprocessing, views, args.batch_size))
        if not args.json:
            accuracy = stream.metrics.get("val/top1_video")
            known = "" if accuracy is None else f", video top-1 {100 * accuracy:.2f} %"
            which = f"step {stream.step:,}{known}" if stream.step else stream.path
            print(f"{stream.name}, {len(stream.class_names)} classes, {which}")
    failed = 0
    for name in args.videos:
        try:
            prediction, *second = (predictor(Path(name)) for predictor in predictors)
            if second:
                prediction = fuse(prediction, second[0], args.weight, args.scores)
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
        row = {"video": name, "frames": frames, "clips": clips, "seen": round(seen, 4), "stride": prediction.stride}
        row |= {"predictions": classes}
        row |= {"note": f"not used: {prediction.note}"} if prediction.note else {}
        row |= {"pace": prediction.pace} if prediction.pace else {}
        print(json.dumps(row), flush=True)
        return
    noun = "clip" if clips == 1 else "clips"
    print(f"{printable(name)}  ({frames:,} frames, {clips:,} {noun}, {100 * seen:.0f} % of the video seen)")
    if prediction.note:
        print(f"  not used: {printable(prediction.note)}")
    if prediction.pace:
        print(f"  {prediction.pace}")
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
