"""Decodes videos on the workers of an Apache Beam runner, such as Dask, Dataflow, Flink or Spark.

The pipeline is one step without an output: workers leave the frames, and a note about each video, in a folder or an
object store that the caller sees too. So it needs no side inputs, groups or combinations, which Beam's DaskRunner 2.77
gets wrong, and what a killed worker had finished is not decoded again.

Importing this module imports apache-beam; only `prepare --beam-runner` does.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apache_beam as beam  # type: ignore[import-not-found]
import cv2
from apache_beam.options.pipeline_options import PipelineOptions  # type: ignore[import-not-found]
from apache_beam.runners.runner import create_runner  # type: ignore[import-not-found]

from r23d_jax.config import UserError
from r23d_jax.data.make.jobs import Job, PrepareError, Result, run_job
from r23d_jax.runtime import disk, remote

_AT_ONCE = 8  # results to fetch
_MODULES = {"DaskRunner": "apache_beam.runners.dask.dask_runner.DaskRunner"}  # of runners that Beam knows no name for


def run_jobs_with_beam(
    jobs: Sequence[Job], *, runner: str, options: Sequence[str], shared: str
) -> Generator[tuple[Job, Result], None, None]:
    """Does the same as `run_jobs`, but a Beam runner's workers, which must see the same files, decode the videos.

    What an earlier call has left in `shared` is not decoded again.

    Args:
      runner: e.g. "DirectRunner", "DaskRunner", "DataflowRunner", "FlinkRunner", "SparkRunner".
      options: options of Beam or the runner, e.g. "direct_num_workers=4".
      shared: a folder for the notes, or a URL for the notes and the frames, which then need not see the same disk.

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
    if not remote.is_remote(shared):
        Path(shared).mkdir(parents=True, exist_ok=True)
    try:
        with beam.Pipeline(runner=beam_runner, options=beam_options) as pipeline:
            # Without the shuffle one worker would get all jobs as one piece.
            _ = pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.ParDo(_Decode(shared))
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            yield from zip(jobs, pool.map(lambda job: _collect(shared, job), jobs), strict=True)
    except Exception as error:  # runners wrap the errors of workers in their own
        raise PrepareError(f"Apache Beam's {runner} failed: {' '.join(str(error).split())[-600:]}") from error


class _Decode(beam.DoFn):
    def __init__(self, shared: str):
        self._shared = shared

    def setup(self) -> None:
        cv2.setNumThreads(1)  # videos are decoded side by side

    def process(self, element: Job) -> None:
        place = _place(self._shared, element)
        if not remote.is_remote(place):
            disk.write_atomically(Path(f"{place}.json"), _note(run_job(element)), durable=False)
        elif not (note := remote.read(f"{place}.json")) or json.loads(note)["error"]:
            with tempfile.TemporaryDirectory(prefix="r23d_jax-") as folder:
                here = dataclasses.replace(element, folder=f"{folder}/frames.zip")
                result = run_job(here)
                if not result.error:
                    remote.upload(Path(here.folder), f"{place}.zip")
            remote.write(_note(result), f"{place}.json")


def _place(shared: str, job: Job) -> str:
    """Where the note about a job is, without its ending; differs if another setting does."""
    values = json.dumps(dataclasses.asdict(job) | {"folder": ""})
    return remote.join(shared, hashlib.sha256(values.encode()).hexdigest())


def _note(result: Result) -> bytes:
    return json.dumps(dataclasses.asdict(result)).encode()


def _collect(shared: str, job: Job) -> Result:
    """Reads the note about a job; brings its frames here."""
    place = _place(shared, job)
    if not remote.is_remote(place):
        return Result(**json.loads(Path(f"{place}.json").read_bytes()))
    result, folder = Result(**json.loads(remote.read(f"{place}.json") or b"{}")), Path(job.folder)
    if not result.error and not os.path.exists(folder):
        frames = remote.read(f"{place}.zip")
        if frames is None:
            raise PrepareError(f"{place}.zip: there is no such file; run the same command again")
        folder.parent.mkdir(parents=True, exist_ok=True)
        disk.write_atomically(folder, frames)
    return result
