"""Every view is scored once, whatever the batch and the number of devices, and the sums are the right ones."""

import contextlib
import functools
import math
import time
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r23d_jax.config import Config, UserError, preprocessing
from r23d_jax.data.find.frames import FrameFiles, VideoIndex, index_frames
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.data.read.broken import BrokenLog
from r23d_jax.data.read.views import make_views
from r23d_jax.evaluation import evaluate as module
from r23d_jax.evaluation import run as run_module
from r23d_jax.evaluation.result import EvalResult
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models import create_model
from r23d_jax.models.functional import Network, split_model
from r23d_jax.runtime import parallel
from r23d_jax.runtime.progress import announced
from tests.data.find.frame_sets import videos

NUM_CLASSES = 6
SIZE = 4


class MeanColor(Network):
    """A network whose logits are a linear function of the mean pixel: each row's scores depend on that row only."""

    def __init__(self):
        pass

    def apply_eval(self, params, batch_stats, video):
        features = video.reshape(video.shape[0], -1)
        return jnp.tanh(features @ params["kernel"]) * 5 + batch_stats["mean"][None, :]


class Broken(BrokenLog):
    """Stands in for the log of broken samples."""

    def __init__(self, files=()):
        self._files = list(files)

    @property
    def files(self):
        return self._files


def make_config(**eval_fields):
    cfg = Config()
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 2, SIZE, SIZE
    for name, value in eval_fields.items():
        setattr(cfg.eval, name, value)
    return cfg


def make_index(num_frames):
    count = len(num_frames)
    labels = np.arange(count, dtype=np.int32) % NUM_CLASSES
    none = FrameFiles(*(np.array([]) for _ in range(6)))
    names = np.array([f"v{k}" for k in range(count)])
    classes = tuple("abcdef")
    return VideoIndex(classes, names, labels, np.array(num_frames, np.int32), none, "made for a test", ("v_gone",))


def clip_of(view):
    """The made-up pixels of a view."""
    return np.random.default_rng(view).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)


@pytest.fixture
def made_up_batches(monkeypatch):
    """Replaces reading from disk; returns the sets of broken views and the sizes of batches seen."""
    seen = {"broken": set(), "sizes": []}

    def eval_batches(index, views, cfg, *, batch_size, host=0, num_hosts=1, broken=None, crops=0, canvas=None):
        assert crops == max(views.crop) + 1 and canvas is None  # on a CPU the host cuts them
        for first in range(0, len(views), batch_size):
            rows = range(first, min(first + batch_size, len(views)))
            batch = {
                "video": np.zeros((batch_size, 2, SIZE, SIZE, 3), np.uint8),
                "label": np.zeros(batch_size, np.int32),
                "mask": np.zeros(batch_size, np.float32),
                "video_id": np.zeros(batch_size, np.int32),
                "view": np.zeros(batch_size, np.int32),
            }
            for k, view in enumerate(rows):
                batch["view"][k] = view
                if view not in seen["broken"]:
                    batch["video"][k], batch["mask"][k] = clip_of(view), 1
            seen["sizes"].append(batch_size)
            yield batch

    monkeypatch.setattr(module.pipeline, "eval_batches", eval_batches)
    return seen


def weights():
    rng = np.random.default_rng(7)
    kernel = rng.normal(0, 0.2, (2 * SIZE * SIZE * 3, NUM_CLASSES)).astype(np.float32)
    return {"kernel": kernel}, {"mean": np.zeros(NUM_CLASSES, np.float32)}


def run_or_stop(index, cfg, num_devices=1, step=None, **kwargs):
    mesh = parallel.make_mesh(devices=jax.devices()[:num_devices])
    step = step or make_eval_step(MeanColor(), preprocessing(cfg.data), mesh)
    return module.evaluate(step, *weights(), index, cfg, mesh, broken=Broken(), log=lambda line: None, **kwargs)


def run(*args, **kwargs) -> EvalResult:
    result = run_or_stop(*args, **kwargs)
    assert result is not None
    return result


def expected(index, cfg, broken=()):
    """The same in plain float64 numpy, one view at a time."""
    params, _ = weights()
    pre = preprocessing(cfg.data)
    views = make_views(index.num_frames, pre, cfg.eval)
    logits, softmax = np.zeros((2, len(index.names), NUM_CLASSES))
    correct, loss, counts = 0, 0.0, np.zeros(len(index.names), int)
    for k, video in enumerate(views.video):
        if k in broken:
            continue
        pixels = (clip_of(k) / 255 - np.array(pre.mean)) / np.array(pre.std)
        score = np.tanh(pixels.reshape(-1) @ params["kernel"].astype(np.float64)) * 5
        share = np.exp(score) / np.exp(score).sum()
        logits[video] += score
        softmax[video] += share
        counts[video] += 1
        correct += score.argmax() == index.labels[video]
        loss -= np.log(share[index.labels[video]])
    return logits, softmax, counts, correct / counts.sum(), loss / counts.sum()


def check(result, want):
    logits, softmax, counts, clip, loss = want
    np.testing.assert_array_equal(result.num_views, counts)
    np.testing.assert_allclose(result.logits, logits, atol=1e-4)  # float32 against float64, sums of up to 12 views
    np.testing.assert_allclose(result.softmax, softmax, atol=1e-4)
    assert result.metrics["val/top1_clip"] == clip
    assert result.metrics["val/loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize(
    ("num_frames", "batch_size", "views", "crops"),
    [
        ([2] * 7, 8, "dense", 1),  # less than one batch
        ([2] * 8, 8, "dense", 1),  # exactly one
        ([2] * 9, 8, "dense", 1),  # one more
        ([1, 3, 24, 7, 2, 11, 5], 16, "dense", 3),
        ([1, 3, 24, 7, 2, 11, 5], 3, "uniform", 1),  # a batch that 8 devices cannot share
        ([9], 32, "dense", 10),
    ],
)
def test_every_view_counts_once(made_up_batches, num_frames, batch_size, views, crops, num_devices):
    index = make_index(num_frames)
    cfg = make_config(batch_size=batch_size, views=views, num_clips=5, crops=crops)
    check(run(index, cfg, num_devices), expected(index, cfg))
    multiple = math.lcm(num_devices, crops)  # whole clips
    assert set(made_up_batches["sizes"]) == {-(-batch_size // multiple) * multiple}


def test_one_device_equals_eight(made_up_batches):
    index = make_index([5, 1, 18, 7, 9, 2, 30])
    one, eight = (run(index, make_config(batch_size=5), devices) for devices in (1, 8))
    np.testing.assert_array_equal(one.num_views, eight.num_views)
    # the same sums in the same order; the devices' matrix products may round differently
    np.testing.assert_allclose(one.logits, eight.logits, atol=1e-5)
    np.testing.assert_array_equal(one.confusion, eight.confusion)
    assert one.metrics == pytest.approx(eight.metrics, abs=1e-6)


def test_broken_views_are_left_out_and_videos_without_any_are_named(made_up_batches):
    index, cfg = make_index([4, 4, 2, 4]), make_config(batch_size=8)
    made_up_batches["broken"] = {0, 2, 3}  # one of video 0, both of video 1
    lines = []
    mesh = parallel.make_mesh()
    step = make_eval_step(MeanColor(), preprocessing(cfg.data), mesh)
    broken = Broken([("v1", "frame 0: the file is empty")])
    result = module.evaluate(step, *weights(), index, cfg, mesh, broken=broken, log=lines.append)
    assert result is not None
    logits, softmax, counts, clip, loss = expected(index, cfg, broken={0, 2, 3})
    check(result, (logits, softmax, counts, clip, loss))
    assert result.num_views.tolist() == [1, 0, 1, 2]
    assert result.not_evaluated == ("v1",)
    assert result.broken_views == 3
    assert result.broken == (("v1", "frame 0: the file is empty"),)
    assert result.missing == ("v_gone",)
    assert lines == ["not evaluated, because no view could be read: v1"]
    seen = counts > 0
    assert result.metrics["val/top1_video"] == np.mean(logits[seen].argmax(axis=1) == index.labels[seen])
    assert result.confusion.sum() == 3


def test_nothing_readable_gives_no_accuracy_and_no_crash(made_up_batches):
    made_up_batches["broken"] = {0, 1}
    result = run(make_index([2, 2]), make_config(batch_size=8))
    assert np.isnan(result.metrics["val/top1_video"]) and np.isnan(result.metrics["val/top1_clip"])
    assert result.not_evaluated == ("v0", "v1")


def test_one_compilation_for_all_batches_and_evaluations(made_up_batches):
    cfg = make_config(batch_size=8)
    mesh = parallel.make_mesh()
    step: Any = make_eval_step(MeanColor(), preprocessing(cfg.data), mesh)
    for num_frames in ([2] * 21, [3, 5, 7], [2] * 8):
        module.evaluate(step, *weights(), make_index(num_frames), cfg, mesh, broken=Broken())
    # values on the mesh from a training run, instead of on the host, make no difference either
    params, stats = jax.device_put(weights(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    module.evaluate(step, params, stats, make_index([2, 2]), cfg, mesh, broken=Broken())
    assert step._cache_size() == 1


def test_a_compilation_is_announced_once(made_up_batches, monkeypatch, capsys):
    monkeypatch.setattr(module, "announced", functools.partial(announced, after=0.05))
    cfg = make_config(batch_size=2)
    compiled, calls = (
        make_eval_step(MeanColor(), preprocessing(cfg.data), parallel.make_mesh(devices=jax.devices()[:1])),
        [],
    )

    def slow(*args):
        calls.append(args)
        time.sleep(0.2)
        return compiled(*args)

    run(make_index([8, 4]), cfg, step=slow)
    assert len(calls) == 3
    assert capsys.readouterr().err.count("compiling the network, which may take a minute the first time\n") == 1


def test_the_next_batch_is_dispatched_before_the_last_is_read(made_up_batches, monkeypatch):
    cfg, events = make_config(batch_size=1), []
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    compiled = make_eval_step(MeanColor(), preprocessing(cfg.data), mesh)

    def step(*args):
        events.append("dispatch")
        return compiled(*args)

    fetch = jax.device_get

    def device_get(values):
        events.append("read")
        return fetch(values)

    monkeypatch.setattr(jax, "device_get", device_get)
    module.evaluate(step, *weights(), make_index([2] * 5), cfg, mesh, broken=Broken())
    assert events == ["dispatch"] * 3 + ["read", "dispatch"] * 2 + ["read"] * 3


def test_stop_ends_without_a_result(made_up_batches):
    answers = iter([False, True])
    assert run_or_stop(make_index([2] * 9), make_config(batch_size=2), should_stop=lambda: next(answers)) is None
    assert run_or_stop(make_index([2] * 9), make_config(batch_size=2), should_stop=lambda: False) is not None


def test_scores_that_are_not_finite_are_refused(made_up_batches):
    class Diverged(MeanColor):
        def apply_eval(self, params, batch_stats, video):
            return super().apply_eval(params, batch_stats, video) * jnp.nan

    cfg = make_config(batch_size=8)
    step = make_eval_step(Diverged(), preprocessing(cfg.data), parallel.make_mesh(devices=jax.devices()[:1]))
    with pytest.raises(UserError, match="the scores of video v0 are not finite: training has diverged"):
        run(make_index([2, 2]), cfg, step=step)


def test_overlapping_batches_are_refused(made_up_batches, monkeypatch):
    batches = module.pipeline.eval_batches

    def twice(*args, **kwargs):
        yield from batches(*args, **kwargs)
        yield from batches(*args, **kwargs)

    monkeypatch.setattr(module.pipeline, "eval_batches", twice)
    with pytest.raises(RuntimeError, match="a view was scored twice"):
        run(make_index([2, 2]), make_config(batch_size=8))


# -- with a real network, real frames and the real pipeline ------------------------------------------------------------


def test_real_frames_on_one_and_eight_devices(tmp_path):
    cfg = make_config(batch_size=6, crops=3)
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 4, 16, 20
    cfg.data.max_broken_fraction = 1.0
    rng = np.random.default_rng(0)
    entries = []
    for k, count in enumerate((9, 4, 2, 13, 5, 8, 6)):
        folder = tmp_path / f"v{k}"
        folder.mkdir()
        for i in range(count):
            image = cv2.resize(rng.integers(0, 256, (4, 6, 3), np.uint8), (40, 24))
            cv2.imwrite(str(folder / f"{i:03d}.jpg"), image)
        entries.append(Entry(f"v{k}", k % 3, "abc"[k % 3], ""))
    (tmp_path / "v1" / "002.jpg").write_bytes(b"")
    index = index_frames(tmp_path, VideoList(("a", "b", "c"), tuple(entries)), cache=False)
    network, params, batch_stats = split_model(
        nnx.eval_shape(
            lambda: create_model(
                "r2plus3d_10", num_classes=3, widths=(8, 8, 8, 8), crop_size=16, num_frames=4, rngs=nnx.Rngs(0)
            )
        )
    )

    def value(leaf):
        if len(leaf.shape) < 2:
            return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(leaf.dtype)

    params, batch_stats = jax.tree.map(value, (params, batch_stats))
    results: list[Any] = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = parallel.make_mesh(devices=devices)
        step: Any = make_eval_step(network, preprocessing(cfg.data), mesh)
        broken = BrokenLog(cfg.data, log=lambda line: None)
        results.append(
            module.evaluate(step, params, batch_stats, index, cfg, mesh, broken=broken, log=lambda line: None)
        )
        assert step._cache_size() == 1
    one, eight = results
    assert one.num_views.tolist() == [6, 0, 3, 9, 3, 6, 3], "v1 has one clip, and that is broken"
    np.testing.assert_array_equal(one.num_views, eight.num_views)
    np.testing.assert_allclose(one.logits, eight.logits, rtol=1e-4, atol=1e-5)  # float32 sums in another order
    assert one.not_evaluated == eight.not_evaluated == ("v1",)
    assert one.broken[0][0].endswith("002.jpg") and "empty" in one.broken[0][1]
    assert np.ptp(one.probabilities[one.evaluated], axis=0).max() > 1e-3, "videos score differently"
    assert one.metrics == pytest.approx(eight.metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["a", "b"], ""),
        (["a"], r"^the processes of this job have different train videos: 2 in process 0, 1 in process 1, or others"),
        (["a", "c"], r"2 in process 0, 2 in process 1, or others, or with other frames\. All need the same data and"),
        (None, r"^process 1 of the job: config\.data\.root=data: no such folder"),
    ],
)
def test_all_processes_of_a_job_need_the_same_videos(
    other: list[str] | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def find(names: list[str] | None) -> Any:
        if names is None:
            raise UserError("config.data.root=data: no such folder")
        return videos(names)

    def ask(names: list[str] | None) -> Any:
        with contextlib.suppress(UserError):
            return run_module._same_everywhere(lambda: find(names), "train")

    monkeypatch.setattr(parallel, "from_processes", lambda value: told.append(value) or [value, value])
    for names in (["a", "b"], other):
        ask(names)
    monkeypatch.setattr(parallel, "from_processes", lambda value: told)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        assert len(run_module._same_everywhere(lambda: find(["a", "b"]), "train")) == 2
    if other is None:
        with pytest.raises(UserError, match=r"^config\.data\.root=data: no such folder"):
            run_module._same_everywhere(lambda: find(None), "train")
