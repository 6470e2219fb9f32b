"""Packs videos with Apache Beam, whose runners (Dataflow, Flink, Spark, or processes here) decode them.

Importing this module imports apache-beam and tensorflow-datasets; only `prepare --beam-runner` does.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam  # type: ignore[import-not-found]
import cv2
from apache_beam.options.pipeline_options import PipelineOptions  # type: ignore[import-not-found]
from apache_beam.runners.runner import create_runner  # type: ignore[import-not-found]

from r23d_jax.config import UserError
from r23d_jax.data.make.jobs import Job, PrepareError, encoded_frames
from r23d_jax.data.make.packed_builder import example, write_examples
from r23d_jax.data.make.video import VideoError, rate_at_most
from r23d_jax.runtime import disk


@dataclasses.dataclass(frozen=True)
class BeamSource:
    """One video to decode and pack."""

    name: str  # as in the lists
    class_name: str
    job: Job  # its folder is not used
    needed: bool  # whether the video is in the shards that are replaced, and so must not be left out


def write_packed_with_beam(
    out: Path,
    sources: Sequence[BeamSource],
    class_names: Sequence[str],
    num_shards: int,
    *,
    runner: str,
    options: Sequence[str],
    staging: Path,
) -> dict[str, str]:
    """Does the same as `write_packed`, but a Beam runner's workers, which must see the same files, decode the videos.

    Args:
      out, class_names, num_shards: as in `write_packed`.
      sources: the videos; (class, name) must be unique.
      runner: e.g. "DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner".
      options: options of Beam or the runner, e.g. "direct_num_workers=4".
      staging: an empty folder, in which workers record the videos that they cannot decode.

    Returns:
      The reasons why videos are left out, by file.

    Raises:
      UserError: there is no such runner, or a value has the wrong type for its option; Apache Beam passes options that
        it does not know to the runner, with a warning. `out` is unchanged after this or another error.
      PrepareError: the pipeline failed, or a needed video cannot be decoded.
    """
    printed = io.StringIO()
    try:
        beam_runner, beam_options = create_runner(runner), PipelineOptions([f"--{option}" for option in options])
        with contextlib.redirect_stderr(printed):
            beam_options.get_all_options()  # checked now, because Beam would exit in the middle of its work
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam-runner {runner}: {error}") from error
    except SystemExit as error:
        why = (printed.getvalue().strip().splitlines() or ["not understood"])[-1].rpartition("error: ")[2]
        raise UserError(f"--beam-options {','.join(options)}: {why}") from error
    staging.mkdir(parents=True, exist_ok=True)
    try:
        beam_config = {"beam_runner": beam_runner, "beam_options": beam_options}
        write_examples(out, _Examples(sources, staging), class_names, num_shards=num_shards, **beam_config)
    except UserError:
        raise
    except Exception as error:  # runners wrap the errors of workers in their own
        if len(broken := _noted(staging)) == len(sources):
            return broken
        raise PrepareError(f"Apache Beam's {runner} failed: {' '.join(str(error).split())[-600:]}") from error
    return _noted(staging)


class _Examples(beam.PTransform):
    def __init__(self, sources: Sequence[BeamSource], staging: Path):
        super().__init__()
        self._sources, self._staging = list(sources), staging

    def expand(self, input_or_inputs: Any) -> Any:
        # Without the shuffle one worker would get all sources as one piece.
        return input_or_inputs | beam.Create(self._sources) | beam.Reshuffle() | beam.ParDo(_Decode(self._staging))


class _Decode(beam.DoFn):
    def __init__(self, staging: Path):
        self._staging = staging

    def setup(self) -> None:
        cv2.setNumThreads(1)  # videos are decoded side by side

    def process(self, element: BeamSource) -> Iterator[tuple[str, dict[str, Any]]]:
        try:
            frames = list(encoded_frames(element.job))
            rate = rate_at_most(Path(element.job.video), element.job.fps)
        except (VideoError, OSError) as error:
            video = element.job.video
            if element.needed:
                raise PrepareError(f"{error}, but it is in the existing shards, which were not changed") from error
            note = self._staging / f"{hashlib.sha256(video.encode(errors='surrogateescape')).hexdigest()}.json"
            disk.write_atomically(note, json.dumps([video, str(error)]))
        else:
            yield example(element.name, element.class_name, frames, rate)


def _noted(staging: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text()) for path in staging.glob("[!.]*.json"))
