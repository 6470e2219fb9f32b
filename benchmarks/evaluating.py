"""Views of an evaluation from disk, ten clips of three crops a video: one decoding for all crops, and one for each."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import loading, measure
from r23d_jax.config import DataConfig, EvalConfig, preprocessing

_NUM_FRAMES, _CROP, _SHORT_SIDE, _WIDTH = 16, 112, 128, 171
_CLIPS, _CROPS = 10, 3
_TOGETHER, _ALONE = 24, 32  # views in a batch: whole clips, and not


def run(rounds: int, workers: int, tiny: bool, peer: bool) -> list[dict[str, Any]]:
    """Times all views of some videos of 320 x 240, through each pipeline in turn.

    Args:
      rounds: how often each is timed.
      workers: threads of r23d_jax, processes of the peer.
      tiny: few views, to see that it works.
      peer: measure torch's DataLoader too; the program needs a main guard.

    Returns:
      "name", "views_per_second", "ratio" against the first, and "spread" (smallest and largest) of each pipeline.
    """
    from r23d_jax.data import sources
    from r23d_jax.data.read import pipeline
    from r23d_jax.data.read.broken import BrokenLog
    from r23d_jax.data.read.views import make_views

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        loading.write_videos(root, 2 if tiny else 48, 20 if tiny else 40)  # many, because each call builds its pipeline
        cfg = DataConfig(
            root=str(root / "frames"),
            lists=str(root / "lists"),
            num_frames=_NUM_FRAMES,
            short_side=_SHORT_SIDE,
            crop_size=_CROP,
            num_workers=workers,
        )
        index = sources.open_index(cfg, "train")
        views = make_views(
            index.num_frames, preprocessing(cfg), EvalConfig(views="uniform", num_clips=_CLIPS, crops=_CROPS)
        )
        assert len(views) == len(index.names) * _CLIPS * _CROPS  # as many as the peer reads

        def ours(batch_size: int) -> Callable[[], None]:
            def drain() -> None:
                broken = BrokenLog(cfg)
                batches = pipeline.eval_batches(index, views, cfg, batch_size=batch_size, broken=broken, crops=_CROPS)
                assert sum(int(batch["mask"].sum()) for batch in batches) == len(views)

            return drain

        candidates: dict[str, Callable[[], object]] = {}
        if peer:
            candidates["torch, PIL, a view at a time"] = _peer(root / "frames", len(index.names), workers)
        candidates["ours, a decoding for each crop"] = ours(_ALONE)
        candidates["ours, one decoding for all crops"] = ours(_TOGETHER)
        times = measure.alternate(candidates, rounds)
    return [
        {
            "name": one.name,
            "views_per_second": len(views) / one.median,
            "ratio": one.ratio,
            "spread": list(one.spread),
        }
        for one in times
    ]


class _Views:
    """A dataset for torch's DataLoader: every view opens its frames for itself, in uint8."""

    def __init__(self, root: Path):
        self._videos = [sorted(map(str, folder.glob("*.jpg"))) for folder in sorted(root.glob("v_*"))]

    def __len__(self) -> int:
        return len(self._videos) * _CLIPS * _CROPS

    def __getitem__(self, number: int) -> tuple[Any, int]:
        import torch

        video, view = divmod(number, _CLIPS * _CROPS)
        clip, crop = divmod(view, _CROPS)
        paths = self._videos[video]
        start = round((len(paths) - _NUM_FRAMES) * clip / (_CLIPS - 1))
        pixels = np.empty((_NUM_FRAMES, _CROP, _CROP, 3), np.uint8)
        for row, path in zip(pixels, paths[start : start + _NUM_FRAMES], strict=True):
            with Image.open(path) as file:
                picture = file.convert("RGB").resize((_WIDTH, _SHORT_SIDE), Image.Resampling.BILINEAR)
            left, top = crop * (_WIDTH - _CROP) // 2, (_SHORT_SIDE - _CROP) // 2
            row[:] = np.asarray(picture.crop((left, top, left + _CROP, top + _CROP)))
        return torch.from_numpy(pixels), video


def _peer(root: Path, videos: int, workers: int) -> Callable[[], None]:
    from torch.utils.data import DataLoader

    clips: Any = _Views(root)
    loader = DataLoader(
        clips, batch_size=_TOGETHER, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn"
    )

    def drain() -> None:
        assert sum(len(labels) for _, labels in loader) == videos * _CLIPS * _CROPS

    return drain
