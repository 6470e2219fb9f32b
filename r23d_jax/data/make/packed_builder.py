"""Writes packed datasets: a tensorflow-datasets builder whose examples are whole videos of encoded frames.

Importing this module imports tensorflow-datasets; only `prepare --format packed` does.
"""

import contextlib
import dataclasses
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from r23d_jax.data.find.packed_scan import RATE_FEATURE
from r23d_jax.runtime import disk
from r23d_jax.runtime.progress import Progress

Example = tuple[str, dict[str, Any]]  # key of a video, and the values of its features
SPLIT = "videos"  # one split; the lists say which videos are for training


@dataclasses.dataclass(frozen=True)
class PackSource:
    """One video to pack."""

    name: str  # as in the lists
    class_name: str
    read: Callable[[], list[bytes]]  # returns the encoded JPEG frames, in order
    rate: float = 0.0  # frames per second; 0: not known


class R23dVideos(tfds.core.GeneratorBasedBuilder):
    """Videos as sequences of encoded JPEG frames, one video per record.

    `tfds.builder_from_directory` reads the result. The bytes of the frames are stored unchanged.
    """

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "Frames per second."}

    def __init__(self, *, data_dir: str, examples: Iterator[Example], class_names: Sequence[str]):
        """Writes `examples` to a folder inside `data_dir`."""
        self._examples, self._class_names = examples, list(class_names)
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "video": tfds.features.Video(shape=(None, None, None, 3), encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=self._class_names),
                "name": tfds.features.Text(),
                RATE_FEATURE: np.float32,
            }
        )
        return self.dataset_info_from_configs(
            description="Videos for action recognition, as sequences of JPEG frames.", features=features
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[Example]:
        return self._examples


def write_packed(
    out: Path,
    sources: Sequence[PackSource],
    class_names: Sequence[str],
    num_shards: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes a packed dataset, all or nothing; replaces `out` at the end.

    Args:
      sources: the videos; (class, name) must be unique.
      class_names: names of all classes, in label order.
      num_shards: number of files; 0: as many as keep each below about 1 GiB.

    Returns:
      The dataset's own folder, below `out`, which is unchanged after a WriteError.
    """

    def examples() -> Iterator[Example]:
        for source in sources:
            video = {"video": source.read(), "label": source.class_name, "name": source.name, RATE_FEATURE: source.rate}
            yield f"{source.class_name}/{source.name}", video
            if progress is not None:
                progress.update()

    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # tensorflow-datasets warns about its own deprecations
    with disk.replacing(out) as partial:
        builder = R23dVideos(data_dir=str(partial), examples=examples(), class_names=class_names)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints "Downloading", though it downloads nothing
                config = tfds.download.DownloadConfig(num_shards=num_shards or None)
                builder.download_and_prepare(download_config=config)
        except RuntimeError as error:  # TensorFlow's error if it cannot write, wrapped, without an errno
            for number in disk.REMEDIES:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number)) from error
            raise
        finally:
            logging.set_verbosity(verbosity)
        shutil.rmtree(partial / "downloads", ignore_errors=True)  # an empty folder made by tensorflow-datasets
        return out / Path(os.fspath(builder.data_dir)).relative_to(partial)
