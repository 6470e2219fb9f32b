"""`features`: what a layer of a network gives for every video, as a file; and a probe and pictures of it."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r23d_jax import config
from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.commands.network import add_weights
from r23d_jax.config import Config, UserError
from r23d_jax.runtime.mirror import weights_at

if TYPE_CHECKING:
    from r23d_jax.evaluation.features import Extractor, Rows, Videos
    from r23d_jax.evaluation.probe import Score
    from r23d_jax.weights.state_dicts import Converted

EXIT_OK, EXIT_SKIPPED = 0, 3
SPLITS = {"train": ("train",), "test": ("test",), "both": ("train", "test")}
PICTURES = (".png", ".svg", ".pdf")

# Row of a video -> a frame of it, (H, W, 3) uint8
Picture = Callable[[int], np.ndarray | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "videos",
        nargs="*",
        metavar="VIDEO",
        help="videos, addresses, folders of frames; or one folder of class folders",
    )
    add_weights(parser)
    add("--out", required=True, metavar="FILE.npz", help="file to write (docs/features.md lists its arrays)")
    add("--config", default="", metavar="NAME_OR_FILE", help="instead of videos: the prepared videos of this config")
    add("--root", default="", help="with --config: folder of frames or shards; default: that of the config")
    add("--lists", default="", help="with --config: folder of split lists; default: that of the config")
    add("--split", choices=SPLITS, default="both", help="with --config: which videos (default: both)")
    layers = "stem, stage1 to stage4, or classifier: what the last linear layer reads"
    add("--layer", default="classifier", help=f"{layers} (default: classifier)")
    add("--steps", action="store_true", help="a row for each time step of the layer, instead of one for each video")
    add("--clips", type=int, default=5, help="evenly spaced clips per video (default: 5)")
    add("--batch-size", type=int, default=8, help="clips per call of the network (default: 8)")
    add("--probe", action="store_true", help="accuracy of a linear probe and of nearest neighbors on the test videos")
    add("--map", default="", metavar="FILE.png", help="write a map of all videos, with a color for each class")
    add("--map-method", choices=("tsne", "pca"), default="tsne", help="how to draw the map (default: tsne)")
    add(
        "--nearest",
        default="",
        metavar="FILE.png",
        help="write a picture of some test videos, each with its nearest training videos",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
      0: all videos were read; 3: some were left out, and a line names the reason for each.

    Raises:
      UserError: a wrong option, no usable network, or no videos.
    """
    _check(args)
    with json_document(args.json) as told:
        return _run(args, told)


def _run(args: argparse.Namespace, told: dict[str, Any]) -> int:
    log = print
    from r23d_jax.checkpoint.read import read_network, refuse_image_network
    from r23d_jax.evaluation import features

    path = weights_at(args.weights)
    network = read_network(path, refuse_image_network(path), log=lambda line: print(line, file=sys.stderr))
    log(network.origin)
    extractor = features.Extractor(network.model, network.preprocessing, args.layer, args.steps, args.batch_size)
    read = _of_config if args.config else _of_files
    rows, videos, picture = read(args, network, extractor, log)
    if not len(rows.values):
        raise UserError("no video could be read")
    if not np.isfinite(rows.values).all():
        raise UserError(
            f"--weights {args.weights}: the network gives values that are not numbers, because its training diverged; "
            "take an earlier checkpoint"
        )
    protocol = _protocol(args, network)
    features.save(Path(args.out), rows, videos, protocol)
    num_rows, width = rows.values.shape
    what = "time steps" if args.steps else "videos"
    log(f"{num_rows:,} {what} of {width:,} features ({network.name}, {args.layer}) in {args.out}")
    left_out = videos.left_out + len(videos) - len(np.unique(rows.video))
    told |= {"out": args.out, "rows": num_rows, "features": width, "protocol": protocol, "left_out": left_out}
    if args.probe:
        scores = _probe(rows, videos)
        told["probe"] = [{k: v for k, v in vars(score).items() if k != "predicted"} for score in scores]
        for line in _lines(scores, rows, videos):
            log(line)
    _draw(args, rows, videos, picture, log)
    return EXIT_SKIPPED if left_out else EXIT_OK


def _check(args: argparse.Namespace) -> None:
    for option in ("clips", "batch_size"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: must be at least 1")
    if bool(args.videos) == bool(args.config):
        raise UserError("give either videos, or --config with a config of prepared videos")
    for option in ("root", "lists"):
        if getattr(args, option) and not args.config:
            raise UserError(f"--{option}: is for --config, which is not given")
    if not args.out.endswith(".npz"):
        raise UserError(f"--out {args.out}: must end in .npz")
    for option in ("map", "nearest"):
        if (path := getattr(args, option)) and not path.lower().endswith(PICTURES):
            raise UserError(f"--{option} {path}: must end in {' or '.join(PICTURES)}")
    videos = {Path(video).resolve() for video in args.videos if os.path.exists(video)}
    taken: set[Path] = set()
    for path in filter(None, (args.out, args.map, args.nearest)):
        place = Path(path).resolve()
        if place in videos or (place.parent in videos and place.exists()):
            raise UserError(f"{path}: is one of the videos, or among the frames of one; give another file")
        if place in taken:
            raise UserError(f"{path}: is named for two files; give each its own")
        taken.add(place)
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {Path(path).absolute().parent}; make it first")
        if Path(path).is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
    if args.steps and (args.probe or args.map or args.nearest):
        raise UserError("--steps: --probe, --map and --nearest take one row for each video; leave it out")
    if args.probe or (args.map and args.map_method == "tsne"):
        import sklearn  # noqa: F401  its absence is reported before anything is computed
    if args.map or args.nearest:
        import matplotlib  # noqa: F401


def _protocol(args: argparse.Namespace, network: "Converted") -> dict[str, Any]:
    """How the features were made."""
    return {
        "network": network.name,
        "weights": network.origin,
        "layer": args.layer,
        "rows": "time steps" if args.steps else "videos, averaged over time, space and clips",
        "clips": args.clips,
        "preprocessing": dataclasses.asdict(network.preprocessing),
        "source": {name: getattr(args, name) for name in ("videos", "config", "root", "lists", "split")},
    }


# -- videos ------------------------------------------------------------------------------------------------------------


def _of_config(
    args: argparse.Namespace, network: "Converted", extractor: "Extractor", log: Callable[[str], None]
) -> tuple["Rows", "Videos", Picture]:
    from r23d_jax.config.files import call_file
    from r23d_jax.data.sources import groups_of
    from r23d_jax.evaluation import features, film
    from r23d_jax.evaluation.run import open_videos
    from r23d_jax.runtime.program import find_config

    path, colon, variant = find_config(args.config).partition(":")
    cfg = call_file(path, "get_config", Config, *([variant] if colon else []))
    for option in ("root", "lists"):
        if getattr(args, option):
            setattr(cfg.data, option, getattr(args, option))
    config.validate(cfg)
    cfg.data = config.with_preprocessing(cfg.data, network.preprocessing)
    parts, places, videos = [], [], None
    for subset in SPLITS[args.split]:
        index = open_videos(cfg, subset, log)
        part = features.of_index(extractor, index, cfg.data, args.clips, log)
        names, groups = index.names.tolist(), groups_of(cfg.data, subset, index)
        found = features.Videos(names, index.labels, index.class_names, groups, [subset] * len(index))
        parts.append(dataclasses.replace(part, video=part.video + len(places)))
        places += [(index, number) for number in range(len(index))]
        videos = found if videos is None else videos + found
    assert videos is not None, "there is a side"

    def picture(row: int) -> np.ndarray | None:
        index, number = places[row]
        frames = film.sample_frames(index, number, 3)
        return frames[len(frames) // 2] if frames else None

    rows = features.Rows(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "video", "frame"))
    )
    return rows, videos, picture


def _of_files(
    args: argparse.Namespace, network: "Converted", extractor: "Extractor", log: Callable[[str], None]
) -> tuple["Rows", "Videos", Picture]:
    from r23d_jax.data.make.video import VideoError
    from r23d_jax.evaluation import features
    from r23d_jax.evaluation.video_source import open_source

    paths, videos = _find(args, log)
    rows, _ = features.of_files(extractor, paths, args.clips, log)

    def picture(row: int) -> np.ndarray | None:
        try:
            source = open_source(paths[row], network.preprocessing)
            clip = next(source.clips(np.array([source.count() // 2])))
        except (VideoError, StopIteration):
            return None
        return clip[0] if clip.shape[-1] == 3 else np.repeat(clip[0, ..., :1], 3, axis=-1)  # flow: its x

    return rows, videos, picture


def _find(args: argparse.Namespace, log: Callable[[str], None]) -> tuple[Sequence[Path | str], "Videos"]:
    """The videos that the arguments name, with their classes if they are in class folders."""
    from r23d_jax.data.find.class_folders import divide
    from r23d_jax.data.find.errors import DataError
    from r23d_jax.data.find.frame_folder import read_folder
    from r23d_jax.data.find.video_names import named_video
    from r23d_jax.data.make.search import clips_of, find_videos
    from r23d_jax.evaluation.features import Videos

    first = Path(args.videos[0])
    if len(args.videos) > 1 or not os.path.isdir(first) or not isinstance(read_folder(first), str):
        names = list(args.videos)
        return [named_video(name) for name in names], Videos(
            names, np.full(len(names), -1, np.int32), (), names, [""] * len(names)
        )
    search = find_videos(first, Path(args.out), log=log)
    for path, reason in search.broken.items():
        log(f"left out: {path}: {reason}")
    clips = clips_of(search.videos, first)
    side_of, group_of = {}, {}
    try:
        divided = divide(clips)
        for note in divided.notes:
            log(note)
        for side, listed in divided.sides.items():
            side_of |= {clip.path: "train" if side == "train" else "test" for clip in listed}
            group_of |= {clip.path: clip.key for clip in listed}
    except DataError as error:
        log(f"no split for training and testing: {error}")
    labels = np.array([search.class_names.index(video.class_name) for video in search.videos], np.int32)
    targets = [video.target for video in search.videos]
    groups = [group_of.get(target, target) for target in targets]
    sides = [side_of.get(target, "") for target in targets]
    classes = tuple(search.class_names)
    videos = Videos(targets, labels, classes, groups, sides, left_out=len(search.broken))
    return [video.path for video in search.videos], videos


# -- what they tell ----------------------------------------------------------------------------------------------------


def _sides(rows: "Rows", videos: "Videos") -> tuple[np.ndarray, np.ndarray]:
    """The rows of the training videos, and those of the test videos."""
    side = np.array(list(videos.sides), dtype=np.str_)[rows.video]
    return np.flatnonzero(side == "train"), np.flatnonzero(side == "test")


def _probe(rows: "Rows", videos: "Videos") -> list["Score"]:
    from r23d_jax.evaluation.probe import probe

    train, test = _sides(rows, videos)
    if not len(train) or not len(test):
        raise UserError(
            "--probe: needs training and test videos: give a folder of class folders with several recordings each, or "
            "--config with --split both"
        )
    labels = videos.labels[rows.video]
    groups = [videos.groups[int(row)] for row in rows.video[train]]
    return probe(rows.values[train], labels[train], groups, rows.values[test], labels[test])


def _lines(scores: list["Score"], rows: "Rows", videos: "Videos") -> list[str]:
    train, test = _sides(rows, videos)
    lines = [f"probe: fitted on {len(train):,} training videos, scored on {len(test):,} test videos"]
    for score in scores:
        at = "" if np.isnan(score.chosen_at) else f", where it recognized {100 * score.chosen_at:.2f} %"
        lines.append(
            f"  {score.method:<18} video top-1 {100 * score.top1:6.2f} %, mean class {100 * score.mean_class:6.2f} %"
            f"  ({score.setting}, {score.choice}{at})"
        )
    return lines


def _draw(
    args: argparse.Namespace, rows: "Rows", videos: "Videos", picture: Picture, log: Callable[[str], None]
) -> None:
    if not args.map and not args.nearest:
        return
    from r23d_jax.evaluation import feature_pictures

    labels = videos.labels[rows.video]
    groups, sides = ([column[int(k)] for k in rows.video] for column in (videos.groups, videos.sides))
    for option in ("map", "nearest"):
        if getattr(args, option) and len(rows.values) < 3:
            raise UserError(f"--{option}: needs three videos or more, and {len(rows.values)} could be read")
    if args.map:
        feature_pictures.write_map(Path(args.map), rows.values, labels, videos.classes, sides, args.map_method)
        log(f"map: {args.map}")
    if args.nearest:
        feature_pictures.write_nearest(
            Path(args.nearest),
            rows.values,
            labels,
            videos.classes,
            groups,
            sides,
            lambda row: picture(int(rows.video[row])),
        )
        log(f"nearest videos: {args.nearest}")
