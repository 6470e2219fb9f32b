"""`predict`: classifies videos with a trained network, and says what happens when."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from r23d_jax.commands.json_output import add_json
from r23d_jax.commands.network import add_weights
from r23d_jax.config import FUSED_SCORES, FusionConfig, UserError
from r23d_jax.runtime.progress import Progress

if TYPE_CHECKING:
    from r23d_jax.evaluation.answer import Answer
    from r23d_jax.evaluation.single import Predictor
    from r23d_jax.evaluation.timeline import TimelineOptions

EXIT_OK, EXIT_SKIPPED = 0, 3
# Options that ask for a timeline
_OF_TIMELINES = ("every", "smooth", "min_score", "srt", "annotated", "picture")
_LONG_WORK = 5.0  # seconds after which the progress of a single video is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_weights(parser)
    parser.add_argument(
        "videos",
        nargs="*",
        metavar="VIDEO",
        help="a video file, a folder of numbered frames, a folder of videos with its subfolders, a pattern such as "
        "'clips/**/*.mp4', or an address with http:// or https://",
    )
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--clips",
        type=int,
        default=0,
        help="evenly spaced clips of a video without a timeline; 0: as its run was evaluated, but at least 10 "
        "(default: 0)",
    )
    parser.add_argument(
        "--second",
        default="",
        metavar="WEIGHTS",
        help="a second network, e.g. on optical flow, whose scores are added; takes what --weights takes",
    )
    parser.add_argument(
        "--weight",
        type=float,
        help=f"with --second: weight of the first stream, 0 to 1 (default: {FusionConfig.weight})",
    )
    parser.add_argument("--scores", choices=FUSED_SCORES, help="with --second: scores to add")
    parser.add_argument("--batch-size", type=int, default=8, help="clips per call of the network (default: 8)")
    group = parser.add_argument_group("timeline")
    group.add_argument(
        "--timeline",
        action=argparse.BooleanOptionalAction,
        help="say what happens when (default: for videos of more than a minute, or with --every, --smooth, "
        "--min-score, --srt, --annotated or --picture)",
    )
    group.add_argument("--every", type=float, metavar="SECONDS", help="from clip to clip (default: half a clip)")
    group.add_argument(
        "--smooth", type=float, metavar="SECONDS", help="time over which scores are averaged (default: two clips)"
    )
    group.add_argument(
        "--min-score", type=float, help="least score of a class, 0 to 1; below is no action (default: 0.5)"
    )
    group = parser.add_argument_group("camera")
    group.add_argument(
        "--camera",
        metavar="CAMERA",
        help="instead of videos: a number (0 is /dev/video0), a device, or an address (rtsp://, http://); prints an "
        "answer a second until Ctrl-C",
    )
    group.add_argument("--seconds", type=float, metavar="SECONDS", help="stop after so long (default: never)")
    group = parser.add_argument_group("output")
    add_json(group, each="video")
    group.add_argument(
        "--csv", metavar="FILE.csv", help="write a table instead of printing: a row a video, or a segment"
    )
    group.add_argument(
        "--annotated",
        metavar="FILE",
        help="write the video (.mp4, .mkv, .mov) with its class and bars of the best five; for several "
        "videos, a folder",
    )
    group.add_argument(
        "--picture",
        metavar="FILE",
        help="draw frames over the curves of the classes (.png); for several videos, a folder",
    )
    group.add_argument("--srt", metavar="FILE", help="write the timeline as subtitles; for several videos, a folder")


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      0: every video was classified; 3: some could not be read, or files not be written, and a line names the reason
        for each.

    Raises:
      UserError: a wrong option, or no usable checkpoint.
    """
    for option, least in (("top", 1), ("clips", 0), ("batch_size", 1)):
        if getattr(args, option) < least:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least {least}")
    for option in ("weight", "scores"):
        if getattr(args, option) is not None and not args.second:
            raise UserError(f"--{option} {getattr(args, option)}: is for --second, which is not given")
    if args.weight is not None and not 0 <= args.weight <= 1:
        raise UserError(f"--weight {args.weight:g}: must be between 0 and 1")
    if args.camera is not None:
        from r23d_jax.commands import predict_camera

        predict_camera.check(args)
        (predictor,), class_names = _load(args)
        return predict_camera.watch(args, predictor, class_names)
    if args.seconds is not None:
        raise UserError("--seconds: is for --camera; name one, or drop it")
    if not args.videos:
        raise UserError("no video is named: give files, folders, patterns or addresses, or --camera 0")
    from r23d_jax.commands import predict_files, predict_output
    from r23d_jax.data.make.video import VideoError
    from r23d_jax.evaluation.inputs import expand
    from r23d_jax.runtime.disk import write_atomically

    timeline = _timeline(args)
    if args.csv:
        if not args.csv.lower().endswith(".csv"):  # a forgotten name must not make it replace a video
            raise UserError(f"--csv {args.csv}: must end in .csv")
        predict_files.check_place("csv", Path(args.csv))
    names = expand(args.videos)
    files = predict_files.files_of(args, names)
    predictors, class_names = _load(args)
    table = predict_output.Csv(args.top) if args.csv else None
    kinds = (args.json, predict_output.Json), (not args.json and not args.csv, predict_output.Text)
    outputs: list[predict_output.Output] = [kind(args.top) for wanted, kind in kinds if wanted]
    outputs += [table] if table else []
    failed, unwritten, single = 0, 0, len(names) == 1
    if single:
        progress = Progress(100, "%", "predict", after=_LONG_WORK)
    else:  # lines that appear one by one on a terminal show the progress, too
        progress = Progress(len(names), "videos", "predict", shown=bool(args.csv) or not sys.stdout.isatty())
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)

        def scored(share: float) -> None:
            if single:
                progress.update(max(int(100 * share) - progress.done, 0))

        for name, answer in _answers(predictors, names, timeline, args, class_names, scored):
            if single:
                progress.update(100 - progress.done)
                stack.close()  # a bar makes room for the answer
            else:
                progress.update()
            if isinstance(answer, str):
                failed += 1
                for output in outputs:
                    output.error(name, answer)
                if args.csv and not args.json:
                    progress.message(f"{name}  not recognized: {answer.removeprefix(f'{name}: ')}")
                continue
            for output in outputs:
                output.answer(name, answer)
            for option, path in files[name].items():
                try:
                    note = predict_files.WRITERS[option].write(path, name, answer)
                except VideoError as error:
                    unwritten, note = unwritten + 1, f"not written: {error}"
                if note:
                    progress.message(f"{path}: {note}")
    if table is not None:
        write_atomically(Path(args.csv), table.text())
    if failed and len(names) > 1:
        print(f"{failed:,} of {len(names):,} videos could not be recognized", file=sys.stderr)
    if unwritten and len(names) > 1:
        print(f"{unwritten:,} {'file' if unwritten == 1 else 'files'} could not be written", file=sys.stderr)
    return EXIT_SKIPPED if failed or unwritten else EXIT_OK


def _timeline(args: argparse.Namespace) -> "Callable[[float], TimelineOptions | None]":
    """From the duration of a video to how its timeline is made; None: it has none."""
    from r23d_jax.evaluation.single import only_long
    from r23d_jax.evaluation.timeline import TimelineOptions

    for name in ("every", "smooth"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value:g}: must be a number of seconds above 0")
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        raise UserError(f"--min-score {args.min_score:g}: must be between 0 and 1")
    given = [name for name in _OF_TIMELINES if getattr(args, name) is not None]
    if args.timeline is False and given:
        raise UserError(f"--{given[0].replace('_', '-')}: is of a timeline, and --no-timeline asks for none; drop one")
    least = TimelineOptions.min_score if args.min_score is None else args.min_score
    options = TimelineOptions(args.every or 0.0, args.smooth or 0.0, least)
    if args.timeline is None and not given:
        return only_long(options)
    return lambda seconds: options if args.timeline is not False else None


def _load(args: argparse.Namespace) -> "tuple[list[Predictor], tuple[str, ...]]":
    """The predictors of the one or two streams, and the names of their classes."""
    from r23d_jax.data.read.views import predicted_from
    from r23d_jax.evaluation.single import Predictor
    from r23d_jax.evaluation.trained import load_model

    loaded = load_model(args.weights)
    streams = [loaded, *([load_model(args.second)] if args.second else [])]
    predictors = []
    for stream in streams:
        if not stream.class_names:
            raise UserError(f"{stream.path}: has no classifier; train one with --config.init_from={stream.path}")
        if stream.class_names != loaded.class_names:
            raise UserError(
                f"--second {args.second}: was trained on other classes than {args.weights}, or in another order; train "
                "both streams on the same lists"
            )
        views = predicted_from(stream.config.eval)
        if args.clips:
            views = dataclasses.replace(views, views="uniform", num_clips=args.clips)
        predictors.append(Predictor(stream.model, stream.preprocessing, views, args.batch_size))
        print(stream.title, file=sys.stderr if args.json else sys.stdout)
    return predictors, loaded.class_names


def _answers(
    predictors: "list[Predictor]",
    names: list[str],
    timeline: "Callable[[float], TimelineOptions | None]",
    args: argparse.Namespace,
    class_names: tuple[str, ...],
    scored: Callable[[float], None],
) -> "Iterator[tuple[str, Answer | str]]":
    """Each video with its answer, or with the reason why it cannot be read."""
    from r23d_jax.data.find.video_names import named_video
    from r23d_jax.data.make.video import VideoError
    from r23d_jax.evaluation.answer import Answer
    from r23d_jax.evaluation.inputs import unmatched
    from r23d_jax.evaluation.single import fuse

    videos = [named_video(name) for name in names]
    streams = [predictor.many(videos, timeline, scored=scored) for predictor in predictors]
    for name, predictions in zip(names, zip(*streams, strict=True), strict=True):
        error = next((str(found) for found in predictions if isinstance(found, VideoError)), None)
        if error is not None:
            yield name, unmatched(name) or error
            continue
        first, *second = (found for found in predictions if not isinstance(found, VideoError))
        if second:
            weight = FusionConfig.weight if args.weight is None else args.weight
            first = fuse(first, second[0], weight, args.scores or FusionConfig.scores)
        yield name, Answer(class_names, first)
