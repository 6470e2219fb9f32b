"""A small motion dataset whose classes differ only in the order of their frames.

A frame shows a wallpaper: one bright shape on a dark background, repeated with the same period to the right and
downward. Two factors, a and b in Z4, give the shift of the wallpaper to the right and down, in quarters of that period.
A video has a period of 16 frames and shows all 16 pictures (a, b) in each. A class is an order of these pictures:

    Right   a + 1 with every frame (after 3 comes 0, a whole period); b moves after every fourth frame
    Left    a - 1
    Sway    a runs 0 1 2 3 and then 3 2 1 0
    Down    b + 1 with every frame; a moves after every fourth
    Up      b - 1
    Bounce  b runs 0 1 2 3 and then 3 2 1 0

Any 16 consecutive frames of any video therefore hold each of the 16 pictures exactly once, and a network that ignores
order cannot tell the classes apart. The direction of the slow factor and the starting phase are random per video.
Shape, size, colors, texture and uneven light are random per group, and brightness per clip. All classes share them:
`v_Right_g03_c01` and `v_Left_g03_c01` hold the same 16 pictures, byte for byte. The test groups look different.

This argument needs clips of 16 frames (or a multiple) at stride 1 with one crop for the whole clip. `flip` must be off,
because a mirrored "Right" is a "Left".
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from r23d_jax.config import UserError
from r23d_jax.runtime.disk import write_atomically
from r23d_jax.runtime.progress import Progress

CLASSES = ("Bounce", "Down", "Left", "Right", "Sway", "Up")
PERIOD = 16  # frames
NUM_SPLITS = 3
VERSION = 4  # raise it whenever the same arguments give other files
MARKER = "synthetic.json"

_LEAST_FRAMES, _MOST_FRAMES = 24, 40  # per video
_JPEG_QUALITY = 95
_PERIODS = 4  # repetitions of the wallpaper along the frame's height
_SUPERSAMPLE = 8
_STALE_SECONDS = 3600.0

# Corners of the shapes in [-1, 1].
_SHAPES = {
    "arrow": ((0.0, -1.0), (0.9, 0.0), (0.35, 0.0), (0.35, 1.0), (-0.35, 1.0), (-0.35, 0.0), (-0.9, 0.0)),
    "ell": ((-0.8, -1.0), (-0.1, -1.0), (-0.1, 0.3), (0.9, 0.3), (0.9, 1.0), (-0.8, 1.0)),
    "flag": ((-0.8, -1.0), (0.9, -0.5), (-0.4, 0.1), (-0.4, 1.0), (-0.8, 1.0)),
    "wedge": ((0.0, -1.0), (0.6, 0.9), (-0.6, 0.9)),
    "bolt": ((-0.7, -1.0), (0.5, -1.0), (0.0, -0.1), (0.8, -0.1), (-0.5, 1.0), (-0.1, 0.2), (-0.9, 0.2)),
    "dome": tuple((float(np.cos(t)), float(0.4 - 1.3 * np.sin(t))) for t in np.linspace(0, np.pi, 17)),
}


def write_synthetic(
    root: Path | str,
    *,
    seed: int = 0,
    num_groups: int = 40,
    clips_per_group: int = 2,
    height: int = 48,
    width: int = 56,
    test_groups: int = 10,
) -> None:
    """Writes the dataset in UCF101's layout, unless it exists already.

    Frames are `<root>/frames/<Class>/v_<Class>_gXX_cXX/image_00001.jpg`, 24 to 40 a video. The lists of three splits
    with different test groups are in `<root>/lists`. Everything is written beside `root` and then renamed, so a killed
    run leaves no partial dataset. The same arguments give the same bytes.

    Args:
      root: folder to make. A folder of an earlier call with other arguments is replaced.
      num_groups: number of appearances.
      clips_per_group: number of videos of a class that share an appearance.
      height: height of a frame in pixels, a multiple of 16; the wallpaper moves in steps of a sixteenth of it.
      width: width of a frame in pixels, at least `height`.
      test_groups: number of groups in the test list of each split.

    Raises:
      UserError: `root` holds something else, or an argument is out of range.
    """
    root = Path(root)
    arguments = {"seed": seed, "num_groups": num_groups, "clips_per_group": clips_per_group}
    arguments |= {"height": height, "width": width, "test_groups": test_groups}
    _check(arguments)
    if is_complete(root, arguments):
        return
    _refuse_foreign(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(root), dir=root.parent))
    try:
        partial.chmod(0o755)  # mkdtemp makes a private folder
        _write_all(partial, arguments)
        _move_into_place(partial, root, arguments)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_complete(root: Path, arguments: dict[str, int] | None = None) -> bool:
    """Whether `root` holds a complete dataset of this version, written with these arguments (None: any)."""
    try:
        found = json.loads((root / MARKER).read_text())
        return found["version"] == VERSION and arguments in (None, found["arguments"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def visiting_order(class_name: str, slow_direction: int, phase: int, num_frames: int) -> np.ndarray:
    """The picture that each frame of a video shows: (num_frames, 2) int64, the factors a and b.

    Args:
      class_name: one of `CLASSES`.
      slow_direction: +1 or -1, the direction of the factor that changes after every fourth frame.
      phase: 0..15, the video's starting point in the period.
    """
    time_step = (np.arange(num_frames) + phase) % PERIOD
    fast, lap = time_step % 4, time_step // 4
    if class_name in ("Left", "Up"):
        fast = 3 - fast
    elif class_name in ("Bounce", "Sway"):
        fast = np.where(lap % 2 == 0, fast, 3 - fast)
    slow = slow_direction * lap % 4
    a, b = (fast, slow) if class_name in ("Left", "Right", "Sway") else (slow, fast)
    return np.stack([a, b], axis=1)


@dataclasses.dataclass(frozen=True)
class _Appearance:
    """The look that all videos of a group share; RGB from 0 to 255."""

    wallpaper: np.ndarray  # (height, whole periods >= width, 3) float32, unshifted
    light: np.ndarray  # (height, width, 3) float32, uneven and fixed; added
    shift: int  # pixels that a step of a or b moves the wallpaper: a quarter of its period


def _appearance(rng: np.random.Generator, height: int, width: int) -> _Appearance:
    period = height // _PERIODS
    ground = rng.uniform(20, 90, 3)
    color = rng.uniform(150, 250, 3)
    second = np.clip(color + rng.uniform(-40, 40, 3), 130, 255)

    # One shape with stripes of two colors, drawn large and reduced
    size = round(period * rng.uniform(0.55, 0.8))
    side = size * _SUPERSAMPLE
    corners = np.array(_SHAPES[str(rng.choice(list(_SHAPES)))])
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round((corners * 0.96 + 1) * (side - 1) / 2).astype(np.int32)], (255,))
    stripes = np.sin(np.arange(side) * (2 * np.pi * rng.uniform(1.0, 3.0) / side))[:, None, None]
    texture = np.broadcast_to(np.where(stripes > 0.3, second, color), (side, side, 3)).astype(np.float32)
    alpha = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    shape = cv2.resize(texture, (size, size), interpolation=cv2.INTER_AREA)

    tile = np.broadcast_to(ground, (period, period, 3)).astype(np.float32)
    tile[:size, :size] += alpha * (shape - tile[:size, :size])
    tile = np.roll(tile, rng.integers(period, size=2), axis=(0, 1))
    coarse = rng.normal(0.0, 14.0, (4, 5, 3)).astype(np.float32)
    return _Appearance(
        wallpaper=np.tile(tile, (_PERIODS, -(-width // period), 1)),
        light=cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC),
        shift=period // 4,
    )


def _pictures(look: _Appearance, brightness: float) -> dict[tuple[int, int], bytes]:
    """Draws the 16 pictures of a clip as JPEG, by (a, b)."""
    height, width, _ = look.light.shape
    jpegs = {}
    for a, b in itertools.product(range(4), repeat=2):
        moved = np.roll(look.wallpaper, (b * look.shift, a * look.shift), axis=(0, 1))[:height, :width]
        frame = np.clip(np.round(moved + look.light + brightness), 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        jpegs[a, b] = jpeg.tobytes()
    return jpegs


def _write_all(root: Path, arguments: dict[str, int]) -> None:
    seed, num_groups, clips = arguments["seed"], arguments["num_groups"], arguments["clips_per_group"]
    total = len(CLASSES) * num_groups * clips
    with Progress(total, "videos", "write synthetic motion set") as progress:
        for group in range(1, num_groups + 1):
            look = _appearance(np.random.default_rng([seed, group]), arguments["height"], arguments["width"])
            for clip in range(1, clips + 1):
                # Drawn per (group, clip), not per class, because the classes share their pictures byte for byte.
                brightness = float(np.random.default_rng([seed, group, clip]).uniform(-12, 12))
                jpegs = _pictures(look, brightness)
                for number, class_name in enumerate(CLASSES):
                    rng = np.random.default_rng([seed, group, clip, 1 + number])
                    folder = root / "frames" / class_name / _video_name(class_name, group, clip)
                    _write_video(folder, class_name, jpegs, rng)
                    progress.update()
    _write_lists(root / "lists", num_groups, clips, arguments["test_groups"])
    write_atomically(root / MARKER, json.dumps({"version": VERSION, "arguments": arguments}, indent=2) + "\n")


def _write_video(folder: Path, class_name: str, jpegs: dict[tuple[int, int], bytes], rng: np.random.Generator) -> None:
    order = visiting_order(
        class_name,
        slow_direction=int(rng.choice((-1, 1))),
        phase=int(rng.integers(PERIOD)),
        num_frames=int(rng.integers(_LEAST_FRAMES, _MOST_FRAMES + 1)),
    )
    folder.mkdir(parents=True)
    for number, (a, b) in enumerate(order.tolist(), start=1):
        (folder / f"image_{number:05d}.jpg").write_bytes(jpegs[a, b])


def _video_name(class_name: str, group: int, clip: int) -> str:
    return f"v_{class_name}_g{group:02d}_c{clip:02d}"


def _write_lists(folder: Path, num_groups: int, clips: int, test_groups: int) -> None:
    folder.mkdir()
    lines = [f"{number} {name}\n" for number, name in enumerate(CLASSES, start=1)]
    (folder / "classInd.txt").write_text("".join(lines))
    for split in range(1, NUM_SPLITS + 1):
        first = (split - 1) * test_groups
        held_out = {(first + k) % num_groups + 1 for k in range(test_groups)}
        train = test = ""
        for number, class_name in enumerate(CLASSES, start=1):
            for group, clip in itertools.product(range(1, num_groups + 1), range(1, clips + 1)):
                path = f"{class_name}/{_video_name(class_name, group, clip)}.avi"
                if group in held_out:
                    test += f"{path}\n"  # as in UCF101, without the label
                else:
                    train += f"{path} {number}\n"
        (folder / f"trainlist{split:02d}.txt").write_text(train)
        (folder / f"testlist{split:02d}.txt").write_text(test)


def _check(arguments: dict[str, int]) -> None:
    num_groups, height = arguments["num_groups"], arguments["height"]
    rules = {
        "num_groups": (2 <= num_groups <= 99, "2 to 99"),
        "clips_per_group": (1 <= arguments["clips_per_group"] <= 99, "1 to 99"),
        "test_groups": (1 <= arguments["test_groups"] < num_groups, f"at least 1 and below num_groups={num_groups}"),
        "height": (height >= 32 and height % 16 == 0, "a multiple of 16 pixels, at least 32"),
        "width": (arguments["width"] >= height, f"at least height={height}"),
    }
    problems = [f"{name}={arguments[name]}: must be {rule}" for name, (ok, rule) in rules.items() if not ok]
    if problems:
        raise UserError("cannot write the synthetic dataset: " + "; ".join(problems))


def _refuse_foreign(root: Path) -> None:
    """Refuses to replace anything but a missing or empty folder, or a dataset of this module."""
    inside = sorted(path.name for path in root.iterdir()) if root.is_dir() else [root.name]
    own = (root / MARKER).is_file()
    foreign = [name for name in inside if not (own and (name in ("frames", "lists", MARKER) or name.startswith(".")))]
    if root.exists() and foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(
            f"{root}: holds something that is not the synthetic dataset ({shown}); nothing was written. Set "
            "config.data.root to a new folder, or empty this one."
        )


def _partial_prefix(root: Path) -> str:
    return f".{root.name}-partial-"


def _remove_stale(root: Path) -> None:
    """Removes what killed calls left beside `root`; a folder of the last hour may belong to a running call."""
    for path in root.parent.glob(_partial_prefix(root) + "*"):
        with contextlib.suppress(FileNotFoundError):  # its owner has just renamed or removed it
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _move_into_place(partial: Path, root: Path, arguments: dict[str, int]) -> None:
    """Replaces `root`, unless another process has written the same dataset meanwhile."""
    if root.exists() and not is_complete(root, arguments):
        _refuse_foreign(root)
        old = Path(tempfile.mkdtemp(prefix=_partial_prefix(root), dir=root.parent))
        os.rename(root, old / root.name)
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.rename(partial, root)
    except OSError:
        if not is_complete(root, arguments):
            raise
