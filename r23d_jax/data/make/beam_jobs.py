"""Decodes videos on the workers of an Apache Beam runner, such as Dask, Dataflow, Flink or Spark.

The pipeline is one step without an output: workers leave the frames, and a note about each video, in a folder that the
caller sees too. So it needs no side inputs, groups or combinations, which Beam's DaskRunner 2.77 gets wrong, and what a
killed worker had finished is not decoded again.

Importing this module imports apache-beam; only `prepare --beam-runner` does.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Generator, Sequence
from pathlib import Path

import apache_beam as beam  # type: ignore[import-not-found]
import cv2
from apache_beam.options.pipeline_options import PipelineOptions  # type: ignore[import-not-found]
from apache_beam.runners.runner import create_runner  # type: ignore[import-not-found]

from r23d_jax.config import UserError
from r23d_jax.data.make.jobs import Job, PrepareError, Result, run_job
from r23d_jax.runtime import disk

_MODULES = {"DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner"}  # of runners that Beam knows no name for


def run_jobs_with_beam(
    jobs: Sequence[Job], *, runner: str, options: Sequence[str], notes: Path
) -> Generator[tuple[Job, Result], None, None]:
    """Does the same as `run_jobs`, but a Beam runner's workers, which must see the same files, decode the videos.

    Args:
      jobs: the videos.
      runner: e.g. "DirectRunner", "DaskRunner", "DataflowRunner", "FlinkRunner", "SparkRunner".
      options: options of Beam or the runner, e.g. "direct_num_workers=4".
      notes: a folder for the results, which is emptied first.

    Yields:
      (job, result), all at the end.

    Raises:
      UserError: there is no such runner, or a value has the wrong type for its option; Apache Beam passes options that
        it does not know to the runner, with a warning.
      PrepareError: the pipeline failed.
    """
    printed = io.StringIO()
    try:
        beam_runner = create_runner(_MODULES.get(runner, runner))
        beam_options = PipelineOptions([f"--{option}" for option in options])
        with contextlib.redirect_stderr(printed):
            beam_options.get_all_options()  # checked now, because Beam would exit in the middle of its work
    except (ValueError, ImportError) as error:
        raise UserError(f"--beam-runner {runner}: {error}") from error
    except SystemExit as error:
        why = (printed.getvalue().strip().splitlines() or ["not understood"])[-1].rpartition("error: ")[2]
        raise UserError(f"--beam-options {','.join(options)}: {why}") from error
    shutil.rmtree(notes, ignore_errors=True)
    notes.mkdir(parents=True)
    try:
        with beam.Pipeline(runner=beam_runner, options=beam_options) as pipeline:
            # Without the shuffle one worker would get all jobs as one piece.
            _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.ParDo(_Decode(notes))
        for job in jobs:
            yield job, Result(**json.loads(_note(notes, job).read_text()))
    except Exception as error:  # runners wrap the errors of workers in their own
        raise PrepareError(f"Apache Beam's {runner} failed: {' '.join(str(error).split())[-600:]}") from error


class _Decode(beam.DoFn):
    def __init__(self, notes: Path):
        self._notes = notes

    def setup(self) -> None:
        cv2.setNumThreads(1)  # videos are decoded side by side

    def process(self, element: Job) -> None:
        note = json.dumps(dataclasses.asdict(run_job(element)))
        disk.write_atomically(_note(self._notes, element), note, durable=False)


def _note(notes: Path, job: Job) -> Path:
    return notes / f"{hashlib.sha256(job.folder.encode(errors='surrogateescape')).hexdigest()}.json"
