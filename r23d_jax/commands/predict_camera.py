"""`predict --camera`: what a camera shows at the moment."""

import argparse
import collections
import contextlib
import sys

import numpy as np

from r23d_jax.commands.json_output import print_json
from r23d_jax.commands.predict_output import as_dicts, print_moment
from r23d_jax.config import UserError
from r23d_jax.evaluation.answer import ranked
from r23d_jax.evaluation.camera import LiveClips, open_camera, ticks
from r23d_jax.evaluation.single import Predictor

_NOT_LIVE = ("videos", "second", "clips", "timeline", "every", "min_score", "csv", "srt", "annotated", "picture")


def check(args: argparse.Namespace) -> None:
    """Raises UserError for options that a camera does not have."""
    for name in _NOT_LIVE:
        if getattr(args, name):
            option = "videos" if name == "videos" else f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: not with --camera, which shows one network's answer of the moment; drop it")
    for name in ("seconds", "smooth"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: must be above 0")
    args.batch_size = 1  # one clip at a time


def watch(args: argparse.Namespace, predictor: Predictor, class_names: tuple[str, ...]) -> int:
    """Prints an answer a second, until the time is over, the camera ends, or Ctrl-C; returns the exit status."""
    recent: collections.deque[tuple[float, np.ndarray]] = collections.deque()
    with contextlib.suppress(KeyboardInterrupt), LiveClips(open_camera(args.camera), predictor.preprocessing) as live:
        for time in ticks(float("inf") if args.seconds is None else args.seconds):
            ended, clip = live.ended, live.latest()
            if clip is not None:
                recent.append((time, predictor.probabilities(clip)))
                while recent[0][0] <= time - (args.smooth or 0.0) and len(recent) > 1:
                    recent.popleft()
                best = ranked(class_names, np.mean([scores for _, scores in recent], axis=0), args.top)
                if args.json:
                    row = {"camera": args.camera, "time": time, "predictions": as_dicts(best)}
                    print_json(row)
                else:
                    print_moment(time, best)
            if ended:
                print(f"--camera {args.camera}: ended", file=sys.stderr)
                break
    return 0
