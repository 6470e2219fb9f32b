"""`new`: makes a project of a folder of class folders: frames, lists, a config, and a page to look at."""

import argparse
import functools
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.commands.network import PLACES
from r23d_jax.config import Config, UserError, validate
from r23d_jax.data.find.class_folders import LISTS, write_lists
from r23d_jax.data.find.splits import read_list
from r23d_jax.data.make.record import BROKEN, FRAMES
from r23d_jax.runtime import disk, remote
from r23d_jax.runtime.mirror import weights_at
from r23d_jax.runtime.program import command

if TYPE_CHECKING:
    from r23d_jax.data.make.search import VideoFile
    from r23d_jax.data.make.survey import Seen
    from r23d_jax.weights.state_dicts import Converted

CONFIG, PAGE, README = "config.py", "look.html", "README.md"
UNFINISHED = ".unfinished"  # is there until a project is complete
FEW = 5  # videos of a class below which a warning is logged
_MOST_NAMED = 10  # files in the log
EXIT_OK, EXIT_SKIPPED = 0, 3

Log = Callable[[str], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("videos", metavar="FOLDER", help="a folder with a folder of videos for each class; it is only read")
    add("--out", required=True, metavar="FOLDER", help="the project's folder; nothing is written elsewhere")
    add("--weights", default="", metavar="WEIGHTS", help=f"pretrained weights to start from: {PLACES}")
    add("--scratch", action="store_true", help="use no weights, although published ones are in the cache")
    add("--workers", type=int, default=0, help="processes that decode; 0: one per core")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command. After an interruption, the same command continues.

    Returns:
      0: all videos are used; 3: some are left out, and the log names them.

    Raises:
      UserError: there are no videos, or of one class only; the folder holds something else; the weights do not fit.
      PrepareError: the disk is full, or the like.
    """
    with json_document(args.json) as told:
        return _run(args, told)


def _run(args: argparse.Namespace, told: dict[str, Any]) -> int:
    from r23d_jax.config.files import call_file
    from r23d_jax.data.make import survey
    from r23d_jax.evaluation.preview import write_preview
    from r23d_jax.training import recipes

    log: Log = print
    notes: list[str] = []  # what the page and the README repeat

    def note(line: str) -> None:
        notes.append(line)
        log(line)

    out = Path(args.out)
    _check(args, out)
    begun, network = _begun(args), None  # before the cache names weights
    if args.weights:
        network = _read_weights(args.weights)
        note(f"weights: {network.origin}")
    elif not args.scratch:
        network = _from_cache(args, note)
    videos, seen, left_out = _survey(Path(args.videos), out, note)
    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(out / UNFINISHED, f"{begun}\n")
    _list(args, videos, seen, note)
    listed = read_list(out / LISTS, "train")
    facts = recipes.Facts(len(listed.entries), len(listed.class_names), network is not None, _on_cpu())
    name = recipes.choose(facts)
    note(f'recipe "{name}", for {facts.num_clips:,} training clips of {facts.num_classes} classes: {_why(name)}')
    broken = _decode(args, videos, _short_side(name, network), note)
    if broken:
        left_out |= broken
        videos = [video for video in videos if str(video.path) not in broken]
        _check_classes(videos)
        _list(args, videos, seen, note)
    counts = {video.target: len(os.listdir(out / FRAMES / video.target)) for video in videos}
    for line in survey.describe(videos, seen, counts):
        note(line)
    for path, reason in list(left_out.items())[:_MOST_NAMED]:
        note(f"left out: {path}: {reason}")
    if len(left_out) > _MOST_NAMED:
        note(f"left out: {len(left_out) - _MOST_NAMED} more; --json names all of them")
    fields = recipes.network_fields(network.config, network.preprocessing) if network else {}
    rates = [seen[video.target].rate for video in videos]
    trained = network.preprocessing.frame_rate if network else 0.0
    text = recipes.config_text(name, fields, args.weights, Path(args.videos).absolute(), rates, trained)
    disk.write_atomically(out / CONFIG, text)
    cfg = validate(call_file(str(out / CONFIG), "get_config", Config))
    write_preview(out / PAGE, cfg, notes, log)
    log(f"{out / PAGE} shows a clip of every class as the network will see it: look at it first")
    steps = _steps(args, videos)
    disk.write_atomically(out / README, _readme(args, notes, _steps(args, videos, absolute=True)))
    (out / UNFINISHED).unlink()
    for what, words in steps:
        log(f"next, {what}:\n  {words}")
    classes = dict(sorted(Counter(video.class_name for video in videos).items()))
    told |= {"out": args.out, "classes": classes, "left_out": left_out, "recipe": name, "weights": args.weights}
    told |= {"notes": notes, "next": [words for _, words in steps]}
    return EXIT_SKIPPED if left_out else EXIT_OK


def _check(args: argparse.Namespace, out: Path) -> None:
    remote.refuse("--out", args.out)
    if not os.path.isdir(args.videos):
        raise UserError(f"{args.videos}: no such folder; give a folder with a folder of videos for each class")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    if out.exists() and os.listdir(out) and not (out / UNFINISHED).exists():
        raise UserError(f"--out {out}: holds something already; give another folder, or delete it")
    if (out / UNFINISHED).is_file() and (before := (out / UNFINISHED).read_text().strip()) not in ("", _begun(args)):
        raise UserError(
            f"--out {out}: was begun with {before}, and has frames of it: give the same, another --out, or delete it"
        )
    if ":" in str(out.absolute()):
        raise UserError(
            f"--out {out.absolute()}: holds a colon, which would end the name of its config.py; give another"
        )
    if args.weights and args.scratch:
        raise UserError("--scratch: uses no weights, and --weights names some; drop one")
    if args.workers < 0:
        raise UserError(f"--workers {args.workers}: must be at least 0")


def _begun(args: argparse.Namespace) -> str:
    """What the frames of a project depend on, as the user gave it."""
    words = [shlex.quote(str(Path(args.videos).absolute()))]
    words += ["--weights", shlex.quote(args.weights)] if args.weights else ["--scratch"] if args.scratch else []
    return " ".join(words)


def _read_weights(path: str) -> "Converted":
    from r23d_jax.checkpoint.read import read_network, refuse_image_network

    network = read_network(weights_at(path), refuse_image_network(path), log=functools.partial(print, file=sys.stderr))
    if network.preprocessing.input == "flow" or network.config.in_channels == 2:
        raise UserError(f"--weights {path}: the network reads optical flow; a project has frames, so give others")
    return network


def _from_cache(args: argparse.Namespace, note: Log) -> "Converted | None":
    """The best network of the cache to start from that this project can use; sets `args.weights`."""
    from r23d_jax.weights import pretrained

    on_cpu = _on_cpu()
    rule = "the fewest there, for a CPU" if on_cpu else "the highest there, for an accelerator"
    for name, figure in pretrained.cached(on_cpu).items():
        try:
            network = _read_weights(f"{pretrained.PREFIX}{name}")
        except UserError as error:
            note(f"{name} is in the cache of weights, and is not used: {error}")
            continue
        args.weights = f"{pretrained.PREFIX}{name}"
        why = figure if figure == pretrained.NOT_PUBLISHED else f"{figure}, {rule}"
        note(f"weights: {name}, from the cache ({why}); --weights NAME takes others, --scratch takes none")
        return network
    return None


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


def _why(name: str) -> str:
    from r23d_jax.training.recipes import RECIPES

    return RECIPES[name].why


def _short_side(name: str, network: "Converted | None") -> int:
    from r23d_jax.training.recipes import RECIPES

    return max(RECIPES[name].short_side, network.preprocessing.short_side if network else 0)


# -- videos ------------------------------------------------------------------------------------------------------------


def _survey(folder: Path, out: Path, note: Log) -> tuple[list["VideoFile"], dict[str, "Seen"], dict[str, str]]:
    """The videos that can be used, what was seen of them, and why others cannot be used."""
    from r23d_jax.data.make import survey
    from r23d_jax.data.make.search import find_videos

    found = find_videos(folder, out, log=note)
    left_out = found.broken | survey.find_copies(found.videos)
    seen, broken = survey.look([video for video in found.videos if str(video.path) not in left_out])
    left_out |= broken
    videos = [video for video in found.videos if video.target in seen]
    _check_classes(videos)
    counts = Counter(video.class_name for video in videos)
    if few := [f"{name} ({count})" for name, count in sorted(counts.items()) if count < FEW]:
        note(f"WARNING: classes of fewer than {FEW} videos, which say little about a network: {', '.join(few)}")
    if empty := sorted(set(found.class_names) - set(counts)):
        note(f"WARNING: no video of these classes can be used: {', '.join(empty)}")
    return videos, seen, left_out


def _check_classes(videos: Sequence["VideoFile"]) -> None:
    names = sorted({video.class_name for video in videos})
    if len(names) < 2:
        has = f"one class only, {names[0]}" if names else "no video that can be used"
        raise UserError(f"there is {has}; give a folder with two class folders or more, each with its videos")


def _list(args: argparse.Namespace, videos: Sequence["VideoFile"], seen: dict[str, "Seen"], note: Log) -> None:
    """Divides the videos by their recordings, and writes the lists."""
    from r23d_jax.data.make.search import clips_of
    from r23d_jax.data.make.survey import find_groups

    clips, words = find_groups(clips_of(videos, Path(args.videos)), seen)
    folder = Path(args.out, LISTS)
    shutil.rmtree(folder, ignore_errors=True)  # of an unfinished project
    for line in (*words, *write_lists(folder, clips)):
        note(line)
    sides: dict[str, set[str]] = {"train": set(), "test": set()}
    for clip in clips:  # folders train/, val/ and test/ are taken as they are
        if clip.side:
            sides["train" if clip.side == "train" else "test"].add(clip.group)
    if both := sorted(sides["train"] & sides["test"]):
        note(
            f"WARNING: {len(both)} recordings have clips in train/ and also in val/ or test/, e.g. {both[0]}: if that "
            "is so, the test accuracy is too high"
        )


def _decode(args: argparse.Namespace, videos: Sequence["VideoFile"], short_side: int, note: Log) -> dict[str, str]:
    """Writes the frames of the listed videos; returns why some could not be decoded, by path."""
    from r23d_jax.data.make.flow import DEFAULT_BOUND
    from r23d_jax.data.make.prepare import Settings, prepare

    settings = Settings(
        videos=args.videos,
        out=args.out,
        format="frames",
        quality=95,
        short_side=short_side,
        flow="",
        flow_bound=DEFAULT_BOUND,
        fps=0.0,
        lists=str(Path(args.out, LISTS)),
        workers=args.workers,
        shards=0,
        beam_runner="",
        beam_options="",
        overwrite=False,
    )
    # Else it says again what the survey has said
    prepare(settings, log=lambda line: note(line) if line.startswith("WARNING") else None)
    path = Path(args.out, BROKEN)
    reasons = dict(line.split("\t", 1) for line in path.read_text().splitlines()) if path.exists() else {}
    lost = [str(video.path) for video in videos if not Path(args.out, FRAMES, video.target).is_dir()]
    return {name: reasons.get(name, "could not be decoded").removeprefix(f"{name}: ") for name in lost}


# -- what comes next ---------------------------------------------------------------------------------------------------


def _steps(args: argparse.Namespace, videos: Sequence["VideoFile"], absolute: bool = False) -> list[tuple[str, str]]:
    """What to run next, in words and as command lines."""
    top = Path(args.out).absolute() if absolute else Path(args.out)

    def quoted(path: str | Path) -> str:
        text = str(Path(path).absolute() if absolute and Path(path).exists() else path)
        return shlex.quote(f"./{text}" if text.startswith("-") else text)  # or it would be read as an option

    config, run = f"--config {quoted(top / CONFIG)}", quoted(top / "run")
    train = ("to train, and to resume", f"{command('train')} {config} --workdir {run}")
    if args.weights:
        files = [f"--{name} {quoted(top / file)}" for name, file in (("map", "map.png"), ("nearest", "nearest.png"))]
        probe = f"{config} --weights {quoted(args.weights)} --out {quoted(top / 'features.npz')} --probe"
        return [("what the weights know already", f"{command('features')} {probe} {' '.join(files)}"), train]
    tested = {entry.name for entry in read_list(Path(args.out, LISTS), "test").entries}
    video = next((video for video in videos if video.target in tested), videos[0])
    return [train, ("to try it on a test video", f"{command('predict')} --workdir {run} {quoted(video.path)}")]


def _readme(args: argparse.Namespace, notes: Sequence[str], steps: Sequence[tuple[str, str]]) -> str:
    shown = "\n\n".join(f"# {what}\n{words}" for what, words in steps)
    told = "\n".join(notes)
    return f"""# {Path(args.out).absolute().name}

| file | what it is |
|---|---|
| `{PAGE}` | a clip of every class as the network will see it; look at it first |
| `{CONFIG}` | how to train: change it as you like |
| `{LISTS}/` | which videos are for training and for testing, and which belong to one recording (`group`) |
| `{FRAMES}/` | the frames of all videos |

```bash
{shown}
```

What was found:

```text
{told}
```
"""
