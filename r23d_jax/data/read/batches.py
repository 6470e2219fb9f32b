"""Reads the rows of batches in parallel, handles unreadable rows, and ends all threads."""

import atexit
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import tensorflow as tf

from r23d_jax.config import DataConfig
from r23d_jax.data.read.decode import Plan, Reader

Batch = dict[str, np.ndarray]
Sample = dict[str, tf.Tensor]

# Conditions here are TensorFlow operations. AutoGraph, which translates Python's conditions, warns on Python 3.13 about
# each function that it cannot translate, and never frees the objects that the function refers to.
_untranslated = tf.autograph.experimental.do_not_convert

_PREFETCH = 2  # batches
_TOGETHER = 8  # samples fetched at once
_IN_FLIGHT = 4  # fetches at once that wait for an object store, or as many as decode; eight took a tenth more processor


class BatchIterator:
    """Iterates over batches; `close`, or dropping the iterator, ends its threads.

    After the first read error it switches to a mode that tries substitutes (`first_readable`) and is up to a third
    slower.

    Args:
      make_dataset: (first batch, substitute) -> the dataset from that batch on.
      observe: receives `tried` and `delivered` of every batch; see `BrokenLog.observe`.
      reader: its `failed` is raised, once it is set: no other video replaces one that could not be fetched.
    """

    def __init__(
        self,
        make_dataset: Callable[[int, bool], tf.data.Dataset],
        num_batches: int,
        observe: Callable[[np.ndarray, np.ndarray], None],
        reader: Reader,
    ):
        self._make_dataset, self._num_batches, self._observe = make_dataset, num_batches, observe
        self._reader = reader
        self._given = 0
        self._substitute = False
        self._iterator: Iterator[Batch] | None = None
        _living.add(self)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._given == self._num_batches:
            self.close()
            raise StopIteration
        try:
            batch = self._read()
        except tf.errors.OpError:
            self._raise_failed()
            if self._substitute:
                raise
            self._substitute, self._iterator = True, None
            batch = self._read()
        self._raise_failed()
        self._given += 1
        try:
            tried, delivered = batch.pop("tried"), batch.pop("delivered")
            self._observe(tried.reshape(-1, tried.shape[-1]), delivered.reshape(-1))
        except Exception:
            self.close()
            raise
        return batch

    def close(self) -> None:
        """Ends reading; there are no further batches."""
        self._num_batches, self._iterator = self._given, None

    def _raise_failed(self) -> None:
        if (error := self._reader.failed) is not None:
            self.close()
            raise error

    def _read(self) -> Batch:
        if self._iterator is None:
            dataset = self._make_dataset(self._given, self._substitute)
            self._iterator = cast(Iterator[Batch], dataset.as_numpy_iterator())
        return next(self._iterator)


_living: weakref.WeakSet[BatchIterator] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Ends all threads, because those that read shards call Python and must end before the interpreter does."""
    for batches in list(_living):
        batches.close()


def dataset_maker(
    plan: Callable[..., Plan],
    reader: Reader,
    sample: Callable[[Plan, bool], Sample],
    rows: int,
    first: int,
    end: int,
    cfg: DataConfig,
    group: int = 0,
    choose: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Callable[[int, bool], tf.data.Dataset]:
    """(batch, substitute) -> batches `first + batch` to `end`; row i of batch k is number k * rows + i.

    Args:
      plan: number -> the plan of a sample; with `choose`, (number, what that gives for it) -> the plan.
      sample: (plan, substitute) -> the sample.
      rows: samples in a batch.
      first: number of the first batch.
      end: number after that of the last batch.
      group: if not 0, each sample gives this many rows, stacked; `rows` still counts samples.
      choose: Python, called for several numbers at once: (n,) int64 -> (n,) int64.
    """
    workers = cfg.num_workers or os.cpu_count() or 1
    waiting = max(_IN_FLIGHT, workers) if reader.waits else 0

    def make(batch: int, substitute: bool) -> tf.data.Dataset:
        def parallel(dataset: tf.data.Dataset, function: Callable[..., Any], calls: int = workers) -> tf.data.Dataset:
            return dataset.map(_untranslated(function), num_parallel_calls=calls, deterministic=True)

        def chosen(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return number, tf.ensure_shape(tf.numpy_function(choose, [number], tf.int64, stateful=False), number.shape)

        numbers = tf.data.Dataset.range((first + batch) * rows, end * rows)
        if choose is not None:
            numbers = parallel(numbers.batch(_TOGETHER), chosen).unbatch()
        fetched = parallel(parallel(numbers, plan).batch(_TOGETHER), reader.fetch, waiting or workers).unbatch()
        samples = parallel(fetched, lambda found: sample(found, substitute))
        batches = samples.batch(rows, drop_remainder=True)
        if group:

            def flatten(stacked: Sample) -> Sample:
                return {name: tf.reshape(value, (rows * group, *value.shape[2:])) for name, value in stacked.items()}

            batches = batches.map(_untranslated(flatten))
        return batches.prefetch(_PREFETCH).with_options(_options(workers + waiting))

    return make


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    # Sizes are given; a tuner that grows buffers would grow memory use with them.
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return options


def first_readable(load: Callable[[tf.Tensor], Sample], attempts: int | tf.Tensor) -> tuple[Sample, tf.Tensor]:
    """The first of load(0), load(1), ... that does not fail, and its number; zeros and `attempts` if all fail.

    A TensorFlow graph cannot catch an error, but a dataset can drop elements that fail. This one is created and
    consumed within the `map` of the outer dataset. It is lazy: a second attempt is made only if the first one fails.
    """
    numbers = tf.data.Dataset.range(attempts)
    loaded = numbers.map(lambda number: (load(number), tf.cast(number, tf.int32))).ignore_errors()
    spec: Any = loaded.element_spec
    nothing = tf.nest.map_structure(lambda part: tf.zeros(part.shape, part.dtype), spec[0])
    last = tf.data.Dataset.from_tensors((nothing, tf.cast(attempts, tf.int32)))
    return loaded.concatenate(last).take(1).get_single_element()
