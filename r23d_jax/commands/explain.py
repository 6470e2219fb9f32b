"""`explain`: shows where and when a trained network looks in a video."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r23d_jax.commands.json_output import add_json, print_json
from r23d_jax.commands.network import add_weights
from r23d_jax.config import UserError, look_up
from r23d_jax.runtime.progress import printable

if TYPE_CHECKING:
    from r23d_jax.evaluation.explain import Explanation
    from r23d_jax.evaluation.overlay import Moments

_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("input", metavar="VIDEO", help="a video file, an address, or a folder of numbered frames")
    add_weights(parser)
    parser.add_argument(
        "--class", dest="target", default="", metavar="NAME", help="class to explain (default: the predicted one)"
    )
    parser.add_argument(
        "--method",
        default="gradcam",
        help="gradcam: what raises the class's score, for any network; attention: what a vit or attention_pool head "
        "looks at, whatever the class (default: gradcam)",
    )
    parser.add_argument("--video", type=Path, metavar="OUT.mp4", help="write the frames beside their maps as a video")
    parser.add_argument("--picture", type=Path, metavar="OUT.png", help="write eight frames with their maps")
    parser.add_argument("--batch-size", type=int, default=8, help="clips per call of the network (default: 8)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns 0, or raises UserError for a wrong option, checkpoint or video."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    for option, suffix in (("video", ".mp4"), ("picture", ".png")):
        path = getattr(args, option)
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"--{option} {path}: must end in {suffix}")
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"--{option} {path}: there is no folder {path.absolute().parent}; make it first")
        if path is not None and path.is_dir():
            raise UserError(f"--{option} {path}: is a folder; give the name of a file")
        if path is not None and Path(args.input).resolve() in (path.resolve(), path.resolve().parent):
            raise UserError(f"--{option} {path}: is the video itself, or among its frames; give another file")
    from r23d_jax.data.find.video_names import named_video
    from r23d_jax.evaluation import overlay
    from r23d_jax.evaluation.explain import Explainer
    from r23d_jax.evaluation.trained import load_model
    from r23d_jax.evaluation.video_source import open_source, stride_of

    loaded = load_model(args.weights)
    names, pre = loaded.class_names, loaded.preprocessing
    if not names:
        raise UserError(f"{loaded.path}: has no classifier; train one with --config.init_from={loaded.path}")
    if args.target and args.method == "attention":
        raise UserError("--class: the attention is the same for every class; leave it out, or use --method gradcam")
    print(loaded.title, file=sys.stderr if args.json else sys.stdout)
    target = look_up({name: k for k, name in enumerate(names)}, args.target, "--class") if args.target else None
    explainer = Explainer(loaded.model, pre, args.method, args.batch_size)
    video = named_video(args.input)
    source = open_source(video, pre)
    count, stride = source.count(), stride_of(pre, source.rate)
    starts = overlay.whole_video(count, pre, stride)
    found = explainer(source.clips(starts), target, total=len(starts))
    seen = overlay.moments(found.maps, starts, count, pre, stride)
    if args.video or args.picture:
        frames, rate = overlay.open_frames(video, pre), overlay.rate_of(video, source) / stride
        overlay.write_maps(frames, starts, found.maps, seen, pre, rate, picture=args.picture, video=args.video)
    _print(args, found, names, seen, len(starts), count)
    return 0


def _print(
    args: argparse.Namespace, found: "Explanation", names: tuple[str, ...], seen: "Moments", clips: int, count: int
) -> None:
    probabilities = found.probabilities
    predicted, peak = int(probabilities.argmax()), int(seen.heat.argmax())
    written = {option: str(path) for option in ("video", "picture") if (path := getattr(args, option))}
    if args.json:
        row = {
            "input": args.input,
            "method": args.method,
            "class": names[found.target],
            "probability": float(probabilities[found.target]),
            "predicted": names[predicted],
            "frames": count,
            "clips": clips,
            "peak_frame": int(seen.number[peak]),
            "over_time": list(zip(seen.number.tolist(), seen.heat.round(4).tolist(), strict=True)),
            "written": written,
        }
        print_json(row)
        return
    noun = "clip" if clips == 1 else "clips"
    print(f"{printable(args.input)}  ({count:,} frames, {clips:,} {noun})")
    print(f"  {printable(names[found.target])}  {100 * probabilities[found.target]:.2f} %", end="")
    print("" if found.target == predicted else f"  (predicted: {printable(names[predicted])})")
    if found.maps.any():
        step = -(-len(seen.heat) // _MOST_BARS)
        groups = np.array([group.max() for group in np.array_split(seen.heat, -(-len(seen.heat) // step))])
        bars = "".join(_BARS[int(share * 7.999)] for share in groups / max(groups.max(), 1e-12))
        print(f"  {args.method} over time  {bars}  highest at frame {seen.number[peak]:,}")
    else:
        print("  no place of any clip raises the score of this class")
    for option, path in written.items():
        print(f"  {option}: {printable(path)}")
