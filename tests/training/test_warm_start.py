"""Starting from other weights: what is taken, what stays random, what is said, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from r23d_jax import models
from r23d_jax.checkpoint.checkpoint import Checkpoints, create_configured_model, load_checkpoint, save_model
from r23d_jax.checkpoint.state import TrainState
from r23d_jax.config import Config, DataConfig, UserError, preprocessing
from r23d_jax.data.find.trained_videos import digests
from r23d_jax.models.functional import flatten, split_model, values
from r23d_jax.training.warm_start import (
    WarmStartError,
    _class_order,
    _problems,
    _seen,
    _with_gammas,
    check_source,
    warm_start,
)
from r23d_jax.weights import files
from r23d_jax.weights.state_dicts import Converted, to_arrays
from tests.data.find.frame_sets import videos
from tests.training.tiny import NUM_CLASSES, batch, start, tiny_config
from tests.weights.random_networks import as_image_network, trained


def source(cfg: Config, folder: Path, num_classes: int = NUM_CLASSES, **fields: Any) -> Path:
    """A safetensors file of a trained network that the config describes, but for `fields`."""
    fields = {"widths": cfg.model.widths, "head": cfg.model.head, "num_classes": num_classes} | fields
    fields |= {"num_frames": cfg.data.num_frames, "crop_size": cfg.data.crop_size}
    model = trained(models.model_name(cfg.model), **fields)
    described = dataclasses.replace(cfg.model, head=fields["head"])
    meta = {
        "config": dataclasses.asdict(described),
        "class_names": [f"class_{k}" for k in range(num_classes)],
        "preprocessing": dataclasses.asdict(r23d_jax.config.preprocessing(cfg.data)),
    }
    files.write(folder / "weights.safetensors", to_arrays(model), meta)
    return folder / "weights.safetensors"


def started(cfg: Config) -> tuple[TrainState, TrainState, list[str]]:
    """The state before and after a warm start, and what was said."""
    fresh, shardings, _, _ = start(cfg)
    said: list[str] = []
    return fresh, warm_start(cfg, fresh, shardings, NUM_CLASSES, said.append)[0], said


CLIP = jax.random.normal(jax.random.key(3), (2, 4, 16, 16, 3))
compiled = jax.jit(lambda model, clip: model(clip))  # operations one by one would be compiled one by one


def same(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_everything_is_taken_where_everything_fits(tmp_path: Path) -> None:
    cfg = tiny_config("r3d", "vit")
    cfg.train.ema_decay = 0.9
    cfg.init_from = str(source(cfg, tmp_path))
    fresh, state, said = started(cfg)
    expected = to_arrays(r23d_jax.from_torch(cfg.init_from))
    again = files.read(tmp_path / "weights.safetensors")[0]
    assert all(np.array_equal(expected[name], again[name]) for name in again)
    assert not same(state.params, fresh.params) and same(state.ema, state.params)
    np.testing.assert_array_equal(
        state.params["stem"]["conv"]["kernel"], again["stem.0.weight"].transpose(2, 3, 4, 1, 0)
    )
    np.testing.assert_array_equal(state.params["head"]["classifier"]["bias"], again["head.classifier.bias"])
    np.testing.assert_array_equal(state.batch_stats["stem"]["norm"]["norm"]["mean"], again["stem.1.running_mean"])
    count = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.batch_stats)))
    assert said[-1] == f"init: {count:,} of {count:,} values from {cfg.init_from}"


def test_another_number_of_classes_gets_a_random_classifier(tmp_path: Path) -> None:
    cfg = tiny_config("r3d", "vit")
    cfg.init_from = str(source(cfg, tmp_path, num_classes=9))
    fresh, state, said = started(cfg)
    assert "init: the classifier starts random: the weights have 9 classes, this run 3" in said
    assert same(state.params["head"]["classifier"], fresh.params["head"]["classifier"])
    assert not same(state.params["head"]["blocks"], fresh.params["head"]["blocks"])


def test_weights_of_i3d_without_gammas_fit_the_network_that_has_them() -> None:
    params, target = (
        values(nnx.eval_shape(lambda name=name: models.create_model(name, num_classes=3, rngs=nnx.Rngs(0))))[0]
        for name in ("i3d", "i3d_gamma")
    )
    assert _problems((params, {}), (target, {}), set())
    filled = _with_gammas(params, target)
    assert not _problems((filled, {}), (target, {}), set())
    new = {path: leaf for path, leaf in flatten(filled).items() if path not in flatten(params)}
    assert len(new) == 57 and all(path[-1] == "scale" and np.all(leaf == 1) for path, leaf in new.items())
    # Other differences are still refused
    assert _problems((_with_gammas(params | {"more": {"scale": params["stem"]}}, target), {}), (target, {}), set())


def test_another_head_stays_random(tmp_path: Path) -> None:
    cfg = tiny_config("r3d", "vit")
    cfg.init_from = str(source(tiny_config("r3d", "avgpool"), tmp_path))
    fresh, state, said = started(cfg)
    assert "init: the head starts random: the weights have another" in said
    assert same(state.params["head"], fresh.params["head"])
    assert not same(state.params["stages"], fresh.params["stages"])


@pytest.mark.parametrize("kind", ["vit", pytest.param("attention_pool", marks=pytest.mark.long)])
@pytest.mark.slow
def test_a_residual_head_starts_with_the_logits_of_a_trained_average_pool(kind: str, tmp_path: Path) -> None:
    cfg = tiny_config("r3d", kind)
    cfg.model.head.residual = True
    path = source(tiny_config("r3d", "avgpool"), tmp_path)
    cfg.init_from = str(path)
    fresh, state, said = started(cfg)
    assert "init: the head starts random, except for the classifier of the mean of all places" in said
    assert same(state.params["head"]["tokenizer"], fresh.params["head"]["tokenizer"])
    ours = nnx.eval_shape(lambda: create_configured_model(cfg, NUM_CLASSES))
    logits = jax.jit(split_model(ours)[0].apply_eval)(state.params, state.batch_stats, CLIP)
    # Two programs, which may round otherwise
    np.testing.assert_allclose(logits, compiled(r23d_jax.from_torch(path), CLIP), rtol=1e-6)
    cfg.model.head.residual = False
    fresh, state, said = started(cfg)
    assert "init: the head starts random: the weights have another" in said
    assert same(state.params["head"], fresh.params["head"])


@pytest.mark.slow
def test_the_classifier_stays_between_residual_heads_unless_the_classes_are_others(tmp_path: Path) -> None:
    theirs, cfg = tiny_config("r3d", "vit"), tiny_config("r3d", "attention_pool")
    theirs.model.head.residual = cfg.model.head.residual = True
    for num_classes, kept in ((NUM_CLASSES, True), (9, False)):
        cfg.init_from = str(source(theirs, tmp_path, num_classes=num_classes))
        fresh, state, said = started(cfg)
        assert same(state.params["head"]["classifier"], fresh.params["head"]["classifier"]) is not kept
        assert same(state.params["head"]["residual"], fresh.params["head"]["residual"])
        assert ("init: the classifier starts random: the weights have 9 classes, this run 3" in said) is not kept
        assert not any("positions" in line for line in said)


# Each stem and each input once: where the kernel is does not say which of its channels are zero
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kind", "channels"),
    [("r3d", "rgb", slice(0, 3)), ("r2plus1d", "rgb_diff", slice(3, 6))],
)
def test_frames_and_differences_start_from_a_network_of_one_of_them(
    family: str, kind: str, channels: slice, tmp_path: Path
) -> None:
    theirs, cfg = tiny_config(family), tiny_config(family)
    theirs.data.input = kind
    path = source(theirs, tmp_path)
    cfg.init_from, cfg.data.input, cfg.model.in_channels = str(path), "rgb_and_diff", 6
    _, state, said = started(cfg)
    zero = "differences" if kind == "rgb" else "frames"
    assert f"init: the stem's kernels start at zero for the {zero}" in said
    clip = jax.random.normal(jax.random.key(4), (*CLIP.shape[:4], 6)).at[..., channels].set(CLIP)
    network, _, _ = split_model(nnx.eval_shape(lambda: create_configured_model(cfg, NUM_CLASSES)))
    logits = jax.jit(network.apply_eval)(state.params, state.batch_stats, clip)
    # sums of as many products again, all zero
    np.testing.assert_allclose(logits, compiled(r23d_jax.from_torch(path), CLIP), atol=1e-5)
    cfg.init_skip = ("stem",)
    assert not any("start at zero" in line for line in started(cfg)[2])


def test_positions_are_interpolated(tmp_path: Path) -> None:
    cfg = tiny_config("f_r2d", "vit")
    path = source(cfg, tmp_path)
    cfg.init_from, cfg.data.num_frames, cfg.data.crop_size = str(path), 6, 32
    cfg.data.short_side = 32
    _, state, said = started(cfg)
    assert "init: positions are interpolated from 4 x 1 x 1 to 6 x 2 x 2" in said
    old = files.read(path)[0]["head.tokenizer.positions"]
    new = np.asarray(state.params["head"]["tokenizer"]["positions"])
    assert new.shape == (6, 2, 2, 64)
    np.testing.assert_allclose(new[0], np.broadcast_to(old[0], (2, 2, 64)), atol=1e-6)
    np.testing.assert_allclose(new[:, 0, 0].mean(axis=0), old[:, 0, 0].mean(axis=0), atol=1e-6)


def test_parts_can_be_left_out(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    cfg.init_from, cfg.init_skip = str(source(cfg, tmp_path)), ("stem", "stage2", "head")
    fresh, state, said = started(cfg)
    assert "init: stage2 stays random, as config.init_skip says" in said
    assert same(state.params["stem"], fresh.params["stem"]) and same(state.params["head"], fresh.params["head"])
    assert same(state.params["stages"]["1"], fresh.params["stages"]["1"])
    assert not same(state.params["stages"]["0"], fresh.params["stages"]["0"])


def test_what_no_shape_shows_is_said(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    path = source(cfg, tmp_path)
    cfg.init_from, cfg.model.stem_pool = str(path), "2d"
    _, _, said = started(cfg)
    assert "init: stem_pool is '2d', and the weights were trained with 'none'" in said


def test_a_checkpoint_and_a_converted_network_are_sources_too(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    model: Any = trained("r3d_10", widths=cfg.model.widths, num_classes=NUM_CLASSES)
    save_model(tmp_path / "run", model, cfg, ("a", "b", "c"))
    loaded = load_checkpoint(tmp_path / "run")
    assert loaded.class_names == ("a", "b", "c") and loaded.step == 0
    cfg.init_from = str(tmp_path / "run")
    _, state, said = started(cfg)
    np.testing.assert_array_equal(state.params["stem"]["conv"]["kernel"], model.stem.conv.kernel[...])
    assert any("r3d_10, avgpool head" in line for line in said)
    fresh, shardings, _, _ = start(cfg)
    checkpoints = Checkpoints(tmp_path / "run", log=said.append)
    with pytest.raises(UserError, match="holds converted weights, and no training to resume: give another --workdir"):
        checkpoints.restore_latest(shardings, fresh)
    checkpoints.close()


def test_an_image_network_is_inflated(tmp_path: Path) -> None:
    cfg = tiny_config("f_r2d")
    cfg.model.stem_pool = "2d"
    model: Any = trained("f_r2d_10", widths=cfg.model.widths, num_classes=NUM_CLASSES)
    flat = as_image_network(to_arrays(model))
    files.write(tmp_path / "resnet.safetensors", flat, {})
    cfg.init_from, cfg.init_skip = str(tmp_path / "resnet.safetensors"), ("stage3",)
    fresh, warm, said = started(cfg)
    np.testing.assert_array_equal(warm.params["stem"]["conv"]["kernel"], model.stem.conv.kernel[...])
    assert same(warm.params["stages"]["2"], fresh.params["stages"]["2"])
    assert any("an image network, inflated (repeat)" in line for line in said)
    np.testing.assert_array_equal(warm.params["head"]["classifier"]["bias"], model.head.classifier.bias[...])
    assert not any("the head starts random" in line for line in said)
    cfg.model.stem = "motion"
    _, warm, said = started(cfg)
    assert np.ptp(warm.params["stem"]["conv"]["kernel"], axis=0).max() > 0
    assert any("its stem is inflated by center: kernels that are the same at all times" in line for line in said)


def test_a_head_that_no_image_network_has_is_not_counted_as_loaded(tmp_path: Path) -> None:
    cfg = tiny_config("f_r2d", "vit")
    model: Any = trained("f_r2d_10", widths=cfg.model.widths, num_classes=NUM_CLASSES)
    cfg.init_from = str(tmp_path / "resnet.safetensors")
    files.write(Path(cfg.init_from), as_image_network(to_arrays(model)), {})
    fresh, warm, said = started(cfg)
    assert same(warm.params["head"], fresh.params["head"])
    assert "init: the head starts random: the weights have none" in said
    everything, head = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in ((warm.params, warm.batch_stats), warm.params["head"])
    )
    assert said[-1] == f"init: {everything - head:,} of {everything:,} values from {cfg.init_from}"


def test_other_networks_are_refused_with_what_differs(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    cfg.init_from = str(source(tiny_config("f_r2d"), tmp_path))
    with pytest.raises(
        WarmStartError,
        match=r"(?s)config.init_from=.*another network than r3d_10.*config.init_skip.*\n  stem/conv/kernel: "
        r"\[1, 7, 7, 3, 4\], expected \[3, 7, 7, 3, 4\]",
    ):
        started(cfg)
    cfg.init_from = str(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint in"):
        started(cfg)


def test_missing_weights_are_refused_before_anything_else(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    cfg.init_from = str(tmp_path / "no.pth")
    with pytest.raises(WarmStartError, match=r"config.init_from=.*no\.pth: there is no such file or folder"):
        check_source(cfg, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    check_source(cfg, tmp_path / "run")  # a run that resumes does not need them any more


def test_parts_that_are_not_trained_do_not_start_random(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    cfg.optimizer.freeze = ("stem", "stage1")
    with pytest.raises(
        WarmStartError,
        match=r"optimizer\.freeze: stem, stage1 would stay random for ever, because .*init_from is empty",
    ):
        check_source(cfg, tmp_path)
    cfg.init_from = str(tmp_path / "no.pth")
    with pytest.raises(WarmStartError, match=r"\(--config.init_from=FILE\); docs"):  # not: or random ones
        check_source(cfg, tmp_path)
    Path(cfg.init_from).touch()
    check_source(cfg, tmp_path)
    cfg.init_skip = ("stage1", "head")
    with pytest.raises(WarmStartError, match=r"freeze: stage1 would stay random for ever, because .*init_skip leaves"):
        check_source(cfg, tmp_path)


def test_other_pixels_pace_and_tokens_are_said(tmp_path: Path) -> None:
    cfg = tiny_config("f_r2d", "vit")
    path = source(cfg, tmp_path)
    cfg.init_from, cfg.data.byte_range, cfg.data.frame_stride = str(path), True, 8
    cfg.model.head.tokens = "time"
    said = started(cfg)[2]
    for field, here, there in (
        ("byte_range", True, False),
        ("frame_stride", 8, 1),
        ("head.tokens", "'time'", "'space_time'"),
    ):
        assert f"init: {field} is {here}, and the weights were trained with {there}" in said
    assert len([line for line in said if "were trained with" in line]) == 3


@pytest.mark.slow
def test_frozen_parts_keep_the_weights_they_started_from(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    cfg.init_from, cfg.optimizer.freeze = str(source(cfg, tmp_path, num_classes=9)), ("stem", "stage1", "stage2")
    cfg.optimizer.backbone_multiplier = 0.1
    fresh, shardings, step, mesh = start(cfg)
    warm = jax.device_get(warm_start(cfg, fresh, shardings, NUM_CLASSES, lambda line: None)[0])
    state, _ = step(jax.device_put(warm, shardings), batch(cfg, mesh))
    for part, frozen in (("0", True), ("1", True), ("2", False)):
        assert same(state.params["stages"][part], warm.params["stages"][part]) is frozen
        assert same(state.batch_stats["stages"][part], warm.batch_stats["stages"][part]) is frozen


@pytest.mark.slow
def test_the_classifiers_rows_follow_the_class_names(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    model: Any = trained("r3d_10", widths=cfg.model.widths, num_classes=NUM_CLASSES)
    save_model(tmp_path / "run", model, cfg, ("a", "b", "c"))
    cfg.init_from = str(tmp_path / "run")
    fresh, shardings, _, _ = start(cfg)
    kernel = np.asarray(model.head.classifier.kernel[...])
    for names, order, note in (
        (("a", "b", "c"), [0, 1, 2], ""),
        (("c", "a", "b"), [2, 0, 1], "init: the classes have another order here; the classifier's rows follow them"),
        (("A", "b ", "C"), [0, 1, 2], ""),
        (("0", "1", "2"), [0, 1, 2], ""),
        (("a", "b", "d"), None, "init: the classifier starts random: the weights have other classes, e.g. c"),
    ):
        said: list[str] = []
        state, _ = warm_start(cfg, fresh, shardings, NUM_CLASSES, said.append, names)
        classifier = state.params["head"]["classifier"]
        if order is None:
            assert same(classifier, fresh.params["head"]["classifier"])
        else:
            np.testing.assert_array_equal(classifier["kernel"], kernel[:, order])
            np.testing.assert_array_equal(classifier["bias"], model.head.classifier.bias[...][np.asarray(order)])
        assert note in said if note else not any(line.startswith("init: the class") for line in said)


@pytest.mark.parametrize(
    ("old", "new", "order"),
    [
        (("turn -90", "turn +90"), ("turn +90", "turn -90"), [1, 0]),
        (("C", "C++", "D"), ("D", "C", "C++"), [2, 0, 1]),
        (("C", "C++"), ("C", "C++"), []),
        (("C", "C++"), ("C", "C#"), None),
    ],
)
def test_classes_that_differ_in_punctuation_alone_are_told_apart(
    old: tuple[str, ...], new: tuple[str, ...], order: list[int] | None
) -> None:
    assert _class_order(old, new)[0] == order


def _source(data: DataConfig, names: tuple[str, ...], videos: str = "") -> Converted:
    model = create_configured_model(tiny_config("r3d"), NUM_CLASSES)
    return Converted(model, Config().model, len(names), "", names, preprocessing(data), data=data, videos=videos)


def test_weights_that_may_know_the_videos_they_are_scored_on() -> None:
    """A line for another split, which may share videos; a refusal of a fold that was trained on."""
    names = ("a", "b", "c")
    trained, cfg = Config().data, Config(init_from="runs/first")
    source = _source(trained, names)
    assert _seen(source, cfg, names, None) == ""
    cfg.data.split = 2
    assert _seen(source, cfg, names, None).startswith("trained on split 1, which may have test videos of split 2")
    assert _seen(_source(trained, ("x", "y")), cfg, names, None) == "", "another dataset"
    cfg.data.split, cfg.data.hold_out = 1, 0.2
    assert _seen(source, cfg, names, None).startswith("trained with config.data.hold_out=0, so it may know")
    cfg.data.hold_out, cfg.data.fold = 0.0, 1
    message = r"^config\.init_from=runs/first: was trained on the training list of split 1, and so on .*fold=1 and"
    with pytest.raises(WarmStartError, match=message):
        _seen(source, cfg, names, None)
    cfg.data.root = "data/own/frames"
    assert _seen(source, cfg, names, None).startswith("trained on the training list of split 1; if these are the same")
    trained.motion.speeds, trained.fold = (2, 4), 2
    still = _source(trained, ("still",))
    assert _seen(still, cfg, names, None).startswith("trained on the training list of split 1, but for fold 2; if")
    trained.source = "pictures"
    assert _seen(still, cfg, names, None) == ""


def test_weights_that_keep_their_videos_tell_what_they_know() -> None:
    names, cfg = ("a", "b", "c"), Config(init_from="runs/first")
    scored = videos(["v_Diving_g08_c01", "v_Diving_g09_c01", "clip"], names)
    cfg.data.split = 2
    others = _source(Config().data, names, digests(videos(["v_Diving_g01_c01", "other/clip"], names)))
    assert _seen(others, cfg, names, scored).startswith("trained on split 1, which may have test videos of split 2")
    known = _source(Config().data, names, digests(videos(["Diving/V_DIVING_G08_C01", "v_Diving_g01_c01"], names)))
    assert _seen(known, cfg, names, scored) == (
        "trained on the training list of split 1, which has 1 of the 3 videos that this run is evaluated on, by their "
        "names"
    )
    cfg.data.split, cfg.data.fold = 1, 1
    with pytest.raises(WarmStartError, match=r"and so on videos of fold 1 of split 1, on which this training is eval"):
        _seen(known, cfg, names, scored)
    cfg.data.root = "data/other/frames"  # of equal names, perhaps
    assert "which has 1 of the 3 videos" in _seen(known, cfg, names, scored)
    data = Config().data
    data.motion.speeds = (2, 4)
    moving = _source(data, ("still",), known.videos)
    assert _seen(moving, cfg, names, scored).endswith("by their names, without their labels")
    grown = dataclasses.replace(others, init_videos=known.videos)
    what = "trained on 1 of the 3 videos that this run is evaluated on, by their names"
    assert _seen(grown, cfg, names, scored) == f"started from weights that were {what}"
    assert _seen(dataclasses.replace(known, data=None), cfg, names, scored) == what, "a file keeps no data group"
    assert _seen(dataclasses.replace(others, data=None), cfg, names, scored) == ""


def test_a_run_is_not_resumed_with_exchanged_classes(tmp_path: Path) -> None:
    cfg = tiny_config("r3d")
    state, shardings, _, _ = start(cfg)
    checkpoints = Checkpoints(tmp_path, log=lambda line: None)
    checkpoints.save(state, {"class_names": ["a", "b", "c"]})
    checkpoints.wait()
    assert checkpoints.restore_latest(shardings, state, ("a", "b", "c")) is not None
    with pytest.raises(
        UserError,
        match=r"other classes, or in another order: class 1 is b there and c here\..*--config\.init_from",
    ):
        checkpoints.restore_latest(shardings, state, ("a", "c", "b"))
    checkpoints.close()
