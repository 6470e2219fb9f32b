"""The files that `predict` writes about each video: subtitles, the annotated video, a picture."""

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from r23d_jax.commands.predict_output import subtitles
from r23d_jax.config import UserError
from r23d_jax.data.find.video_names import named_video
from r23d_jax.data.make.video import picture_delay
from r23d_jax.evaluation.answer import Answer
from r23d_jax.runtime.disk import write_atomically


class _Writer(NamedTuple):
    """Writes a file about a video."""

    suffixes: tuple[str, ...]
    write: Callable[[Path, str, Answer], str]  # returns what the user should know, or ""
    needs: str = ""  # a package that may be missing


def _write_subtitles(path: Path, name: str, answer: Answer) -> str:
    delay = 0.0 if os.path.isdir(name) else picture_delay(named_video(name))
    write_atomically(path, subtitles(answer, delay))
    return ""


def _write_video(path: Path, name: str, answer: Answer) -> str:
    from r23d_jax.evaluation.annotate import annotate

    return annotate(named_video(name), answer, path)


def _write_picture(path: Path, name: str, answer: Answer) -> str:
    from r23d_jax.evaluation.timeline_picture import draw_timeline

    draw_timeline(named_video(name), answer, path)
    return ""


# Options that name a file to write for each video
WRITERS = {
    "srt": _Writer((".srt",), _write_subtitles),
    "annotated": _Writer((".mp4", ".mkv", ".mov"), _write_video),
    "picture": _Writer((".png",), _write_picture, needs="matplotlib"),
}


def files_of(args: argparse.Namespace, names: list[str]) -> dict[str, dict[str, Path]]:
    """The files to write for each video, by option; several videos are written into a folder under their own names.

    Raises:
      UserError: a folder does not exist, two videos would be written to one file, or a suffix is wrong.
    """
    files: dict[str, dict[str, Path]] = {name: {} for name in names}
    for option, writer in WRITERS.items():
        given = getattr(args, option)
        if given is None:
            continue
        if writer.needs:
            importlib.import_module(writer.needs)  # before hours of work
        taken: dict[Path, str] = {}
        for name in files:
            path = Path(given)
            if path.is_dir():
                path /= _stem(name) + writer.suffixes[0]
                if os.path.lexists(path) and os.path.exists(name) and path.parent.samefile(Path(name).parent):
                    raise UserError(
                        f"--{option} {given}: {path} exists already, beside the video, and may be yours; give another "
                        f"folder{'' if len(names) > 1 else ', or the file by name'}"
                    )
            elif len(names) > 1:
                raise UserError(f"--{option} {given}: is no folder, and {len(names)} videos need one; create it first")
            if os.path.exists(name) and Path(name).resolve() in (path.resolve(), path.resolve().parent):
                raise UserError(f"--{option} {path}: is the video itself, or among its frames; give another file")
            if path.suffix.lower() not in writer.suffixes:
                raise UserError(f"--{option} {given}: must end in {' or '.join(writer.suffixes)}")
            if (other := taken.setdefault(path, name)) != name:
                raise UserError(f"--{option} {given}: {other} and {name} would both be {path}; give them one by one")
            files[name][option] = path
            check_place(option, path)
    return files


def _stem(name: str) -> str:
    """The name of a video without its suffix, or that of a folder of frames, which may have a dot."""
    if os.path.isdir(name):
        return Path(name).absolute().name
    return Path(name.partition("?")[0] if isinstance(named_video(name), str) else name).stem


def check_place(option: str, path: Path) -> None:
    """Raises UserError if the folder of a file does not exist, or the file is a folder."""
    if not path.parent.is_dir():
        raise UserError(f"--{option} {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise UserError(f"--{option} {path}: is a folder; give the name of a file")
