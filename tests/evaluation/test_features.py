"""Features: those of the layers, alike from files and from prepared frames; the probe and the pictures."""

import argparse
import itertools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import save_model
from r23d_jax.commands import features as command
from r23d_jax.config import Config, UserError, preprocessing
from r23d_jax.data.make.video import iter_frames
from r23d_jax.evaluation import feature_pictures, features, probe
from r23d_jax.models.preprocess import prepare_video
from tests.hostile.reliability.harness import write_videos
from tests.weights.random_networks import trained

CLASSES = ("Diving", "Rowing")
WIDTHS = (8, 8, 12, 16)


def small_config() -> Config:
    cfg = Config()
    cfg.model.family, cfg.model.depth, cfg.model.widths = "r2plus3d", 10, WIDTHS
    cfg.model.head.kind = "avgpool"
    cfg.data.num_frames, cfg.data.crop_size, cfg.data.short_side = 8, 32, 36
    return cfg


@pytest.fixture(scope="module")
def cfg() -> Config:
    return small_config()


@pytest.fixture(scope="module")
def model():
    return trained("r2plus3d_10", num_classes=2, num_frames=8, widths=WIDTHS)


@pytest.fixture(scope="module")
def folder(model, cfg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, videos in class folders, and the same prepared without loss."""
    root = tmp_path_factory.mktemp("features")
    write_videos(root / "videos", count=16, num_frames=20, groups=4)
    save_model(root / "run", model, cfg, CLASSES)
    return root


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def clips_of(path: Path, cfg: Config, starts: list[int]) -> np.ndarray:
    """(B, 8, 32, 32, 3) uint8, the center of short side 36, cut by hand."""
    from r23d_jax.evaluation.video_source import FrameArray

    return np.stack(
        list(FrameArray(np.stack(list(iter_frames(path))), preprocessing(cfg.data)).clips(np.array(starts)))
    )


@pytest.mark.slow
def test_features_of_files_are_the_means_of_the_layer(folder: Path, model, cfg: Config) -> None:
    paths = sorted((folder / "videos").rglob("*.mp4"))[:3]
    pre = preprocessing(cfg.data)
    for layer, width in (("stage3", 12), ("classifier", 16)):
        extractor = features.Extractor(model, pre, layer, steps=False, batch_size=5)
        rows, failed = features.of_files(extractor, paths, 2, log=print)
        assert rows.values.shape == (3, width) and rows.values.dtype == np.float32 and not failed
        for path, got in zip(paths, rows.values, strict=True):
            video = prepare_video(jax.numpy.asarray(clips_of(path, cfg, [0, 12])), pre)
            x = model.stem(video)
            for stage in list(model.stages)[: 3 if layer == "stage3" else 4]:
                x = stage(x, None)
            np.testing.assert_allclose(got, np.asarray(x).mean((0, 1, 2, 3)), rtol=1e-4, atol=1e-5)
    assert np.abs(rows.values[0] - rows.values[1]).max() > 1e-2, "the videos differ, so equality means something"


def test_time_steps_and_their_frames(folder: Path, model, cfg: Config) -> None:
    paths, pre = sorted((folder / "videos").rglob("*.mp4"))[:2], preprocessing(cfg.data)
    mean, _ = features.of_files(features.Extractor(model, pre, "stage3", False, 3), paths, 2, log=print)
    rows, _ = features.of_files(features.Extractor(model, pre, "stage3", True, 3), paths, 2, log=print)
    steps = len(rows.values) // 4
    assert steps > 1 and rows.video.tolist() == [0] * 2 * steps + [1] * 2 * steps
    np.testing.assert_allclose(rows.values.reshape(2, -1, 12).mean(1), mean.values, rtol=1e-4, atol=1e-5)
    middle = (np.arange(steps) + 0.5) * 8 / steps - 0.5
    np.testing.assert_allclose(rows.frame[: 2 * steps], [*middle, *(middle + 12)])


def test_a_damaged_video_is_left_out_and_the_others_stay(folder: Path, model, cfg: Config, tmp_path: Path) -> None:
    good = sorted((folder / "videos").rglob("*.mp4"))[:2]
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good[0].read_bytes()[:2000])
    extractor, told = features.Extractor(model, preprocessing(cfg.data), "classifier", False, 4), []
    rows, failed = features.of_files(extractor, [good[0], bad, good[1]], 2, told.append)
    assert rows.video.tolist() == [0, 2] and list(failed) == [bad] and told[0].startswith(f"left out: {bad}: ")
    whole, _ = features.of_files(extractor, good, 2, told.append)
    np.testing.assert_allclose(rows.values, whole.values, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "steps", "message"),
    [
        ("stage5", False, "--layer='stage5': unknown; did you mean stage"),
        ("classifier", True, "--steps: the classifier reads one vector for a whole clip; add --layer stage4"),
    ],
)
def test_wrong_layers(model, cfg: Config, layer: str, steps: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        features.Extractor(model, preprocessing(cfg.data), layer, steps, 2)


def test_a_network_without_a_classifier(cfg: Config) -> None:
    bare = trained("r2plus3d_10", num_classes=2, num_frames=8, widths=WIDTHS, head="none")
    with pytest.raises(UserError, match="the network has no classifier; use --layer stage4"):
        features.Extractor(bare, preprocessing(cfg.data), "classifier", False, 2)
    assert features.Extractor(bare, preprocessing(cfg.data), "stage4", False, 2).batch_size == jax.device_count()


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_on_class_folders(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, map_, near = tmp_path / "f.npz", tmp_path / "map.png", tmp_path / "near.png"
    words = (folder / "videos", "--workdir", folder / "run", "--out", out, "--clips", 2, "--json", "--probe")
    assert call(*words, "--map", map_, "--map-method", "pca", "--nearest", near) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == 16 and told["features"] == 16 and told["left_out"] == 0
    linear, neighbors = told["probe"]
    assert linear["method"] == "linear probe" and linear["setting"].startswith("C = ")
    assert neighbors["setting"].startswith("k = ") and 0 <= neighbors["top1"] <= 1
    assert linear["choice"] == "chosen by 5-fold cross-validation on 6 training groups"
    with np.load(out, allow_pickle=False) as file:
        found = {name: file[name] for name in file}
    assert set(found) == {"features", "names", "labels", "groups", "sides", "classes", "layer", "protocol"}
    assert found["features"].dtype == np.float32 and found["classes"].tolist() == list(CLASSES)
    assert found["names"][0] == "Diving/v_Diving_g01_c00" and found["groups"][0] == "Diving_g01"
    assert [CLASSES[label] for label in found["labels"]] == [name.split("/")[0] for name in found["names"]]
    assert sorted(set(found["sides"].tolist())) == ["test", "train"] and str(found["layer"]) == "classifier"
    assert json.loads(str(found["protocol"]))["clips"] == 2
    assert map_.read_bytes()[:4] == near.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_prepared_frames_give_the_features_of_their_videos(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["prepare", "--videos", str(folder / "videos"), "--out", str(tmp_path / "data"), "--quality", "100"]) == 0
    )
    config = tmp_path / "mine.py"
    config.write_text(
        "from r23d_jax.config import Config\n\n\ndef get_config():\n    cfg = Config()\n"
        f"    cfg.data.root, cfg.data.lists = {str(tmp_path / 'data/frames')!r}, ''\n    return cfg\n"
    )
    common = ("--workdir", folder / "run", "--clips", 2)
    assert call("--config", config, *common, "--out", tmp_path / "a.npz", "--probe") == 0
    printed = capsys.readouterr().out
    assert (
        "probe: fitted on 12 training videos, scored on 4 test videos" in printed and "  nearest neighbors" in printed
    )
    assert call(folder / "videos", *common, "--out", tmp_path / "b.npz") == 0
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        row = {name.rpartition("/")[2]: k for k, name in enumerate(b["names"].tolist())}
        order = [row[name.rpartition("/")[2]] for name in a["names"].tolist()]
        assert (a["labels"] == b["labels"][order]).all() and (a["sides"] == b["sides"][order]).all()
        assert (a["groups"] == b["groups"][order]).all()
        ours, theirs = a["features"], b["features"][order]
        apart = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
        # By chance one; some have a near neighbor, and noise as JPEG moves them
        assert (apart.argmin(axis=1) == np.arange(16)).sum() >= 12, "a video is nearest to itself"
        assert (apart.diagonal() < 0.1 * np.linalg.norm(theirs, axis=1)).all()  # noise as JPEG


def test_single_videos_have_no_class(folder: Path, tmp_path: Path) -> None:
    paths = sorted((folder / "videos").rglob("*.mp4"))[:2]
    words = (*paths, "--workdir", folder / "run", "--clips", 1)
    assert call(*words, "--out", tmp_path / "f.npz", "--layer", "stage2", "--steps") == 0
    with np.load(tmp_path / "f.npz") as file:
        assert set(file["labels"].tolist()) == {-1} and file["frame"].shape == file["names"].shape
        assert set(file["names"].tolist()) == set(map(str, paths))
    with pytest.raises(UserError, match="--probe: needs training and test videos: give a folder of class folders"):
        call(*words, "--out", tmp_path / "g.npz", "--probe")


def test_a_file_of_weights_gives_the_features_of_its_network(folder: Path, tmp_path: Path) -> None:
    path = sorted((folder / "videos").rglob("*.mp4"))[0]
    assert main(["export", "--workdir", str(folder / "run"), "--to", str(tmp_path / "net.safetensors")]) == 0
    for name in ("run", tmp_path / "net.safetensors"):
        assert call(path, "--workdir", folder / name, "--out", tmp_path / f"{Path(name).stem}.npz") == 0
    with np.load(tmp_path / "run.npz") as a, np.load(tmp_path / "net.npz") as b:
        np.testing.assert_array_equal(a["features"], b["features"])
        assert json.loads(str(b["protocol"]))["weights"].startswith(f"{tmp_path}/net.safetensors: ")


def test_videos_of_a_folder_that_are_left_out_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((folder / "videos").rglob("*.*"))
    (tmp_path / "videos" / "a").mkdir(parents=True)
    for suffix in (".avi", ".mp4"):
        shutil.copy(video, tmp_path / "videos" / "a" / f"one{suffix}")
    words = ("--workdir", folder / "run", "--out", tmp_path / "f.npz", "--clips", 1, "--json")
    assert call(tmp_path / "videos", *words) == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["left_out"] == 1 and "has the same class and name as" in told.err
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=rf"^{tmp_path}/none: holds no video"):
        call(tmp_path / "none", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.npz"], "give either videos, or --config"),
        (["v.mp4", "--config", "r23d", "--out", "x.npz"], "give either videos, or --config"),
        (["v.mp4", "--out", "x.pt"], "--out x.pt: must end in .npz"),
        (["v.mp4", "--out", "nowhere/x.npz"], "nowhere/x.npz: there is no folder .*/nowhere; make it first"),
        (["v.mp4", "--out", "folder.npz"], "folder.npz: is a folder; give the name of a file"),
        (["v.mp4", "--out", "x.npz", "--map", "x.webp"], "--map x.webp: must end in .png or .svg or .pdf"),
        (
            ["v.mp4", "--out", "x.npz", "--map", "v.png", "--nearest", "v.png"],
            "v.png: is named for two files; give each",
        ),
        (["frames", "--out", "x.npz", "--map", "frames/1.png"], "frames/1.png: is one of the videos, or among the fra"),
        (["v.mp4", "--out", "x.npz", "--clips", "0"], "--clips 0: must be at least 1"),
        (["v.mp4", "--out", "x.npz", "--lists", "l"], "--lists: is for --config, which is not given"),
        (["v.mp4", "--out", "x.npz", "--steps", "--probe"], "--steps: --probe, --map and --nearest take one row"),
    ],
)
def test_wrong_options(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.png").touch()
    with pytest.raises(UserError, match=message):
        call("--workdir", "run", *words)


def test_without_scikit_learn_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["features", "v.mp4", "--workdir", "run", "--out", "x.npz", "--probe"]) == 2
    assert "features needs sklearn, which is not installed: pip install scikit-learn" in capsys.readouterr().err


# -- probe and pictures ------------------------------------------------------------------------------------------------


def blobs(seed: int, count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centers = np.random.default_rng(9).normal(size=(3, 20))
    return (centers[labels] + noise * rng.normal(size=(count, 20))).astype(np.float32), labels


def test_the_probe_recognizes_what_can_be_told_apart_and_nothing_else() -> None:
    (train, labels), (test, truth) = blobs(0, 90, 0.3), blobs(1, 60, 0.3)
    groups = [f"{k // 6}" for k in range(90)]
    for score in probe.probe(train, labels, groups, test, truth):
        assert score.top1 > 0.95 and score.mean_class > 0.95 and score.chosen_at > 0.95
        assert score.choice == "chosen by 5-fold cross-validation on 15 training groups"
    shuffled = np.random.default_rng(2).permutation(labels)
    assert all(score.top1 < 0.6 for score in probe.probe(train, shuffled, groups, test, truth))


def test_the_probe_chooses_by_groups_not_by_copies() -> None:
    """Copies of a clip in one group would make one neighbor look perfect, if the groups were cut through."""
    rng = np.random.default_rng(0)
    originals, labels = blobs(3, 30, 2.5)
    train, truth = np.repeat(originals, 4, 0) + rng.normal(0, 1e-3, (120, 20)).astype(np.float32), np.repeat(labels, 4)
    groups = [f"{k // 4}" for k in range(120)]
    neighbors = probe.probe(train, truth, groups, *blobs(4, 30, 2.5))[1]
    assert neighbors.chosen_at < 0.9, neighbors
    by_clip = probe.probe(train, truth, [str(k) for k in range(120)], *blobs(4, 30, 2.5))[1]
    assert by_clip.chosen_at == 1.0


def test_a_probe_of_too_few_groups_says_that_nothing_was_chosen() -> None:
    train, labels = blobs(0, 3, 0.1)
    for score in probe.probe(train, labels, ["a", "b", "c"], *blobs(1, 9, 0.1)):
        assert score.choice.startswith("the default, because the training videos have too few groups")
        assert np.isnan(score.chosen_at)
    with pytest.raises(UserError, match="--probe: the training videos are of one class"):
        probe.probe(train, np.zeros(3, int), ["a", "b", "c"], train, labels)


def test_nearest_videos_are_of_other_groups_and_one_of_each() -> None:
    values = np.array([[1, 0], [1, 0.01], [1, 0.02], [1, 0.1], [0, 1]], np.float32)
    found, cosine = feature_pictures.nearest(values, np.array([0]), np.arange(5), ["a", "a", "b", "b", "c"])
    assert found.tolist() == [[2, 4, -1, -1, -1]] and np.isnan(cosine[0, 2:]).all() and cosine[0, 0] > 0.99


def test_queries_are_spread_over_classes_and_groups() -> None:
    labels = np.array([0] * 10 + [1] * 2)
    groups = [f"{k // 2}" for k in range(10)] + ["x", "y"]
    assert feature_pictures.choose_queries(labels, np.arange(12), groups).tolist() == [0, 10, 2, 11, 4, 6, 8]


@pytest.mark.parametrize("method", feature_pictures.MAPS)
def test_equal_features_and_names_with_dollars_are_drawn(method: str, tmp_path: Path) -> None:
    names = ("$100_bet_$200", "win $5 or $10")
    features, labels = np.ones((12, 8), np.float32), np.arange(12) % 2
    feature_pictures.write_map(tmp_path / "m.svg", features, labels, names, [""] * 12, method)
    groups = [f"g{k}" for k in range(12)]
    picture = lambda row: np.zeros((8, 8, 3), np.uint8)  # noqa: E731
    feature_pictures.write_nearest(tmp_path / "n.svg", features, labels, names, groups, [""] * 12, picture)
    for file in ("m.svg", "n.svg"):
        assert (tmp_path / file).read_text().startswith("<?xml")


@pytest.mark.parametrize("method", feature_pictures.MAPS)
def test_a_map_puts_classes_apart(method: str, tmp_path: Path) -> None:
    values, labels = blobs(0, 60, 0.2)
    points = feature_pictures.MAPS[method](values)
    centers = np.stack([points[labels == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - centers[None], axis=2).argmin(1)
    assert (nearest == labels).mean() > 0.95
    sides = ["train", "test"] * 30
    feature_pictures.write_map(
        tmp_path / "m.svg", values, labels - 1, ("a", "b"), sides, method
    )  # with unknown classes
    assert (tmp_path / "m.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("classes", "spread"),
    [(8, 0.0), pytest.param(60, 0.0, marks=pytest.mark.long), pytest.param(60, 5.0, marks=pytest.mark.slow)],
)
def test_names_on_a_map_cover_no_other_and_stay_on_it(
    classes: int, spread: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], feature_pictures.new_figure
    monkeypatch.setattr(feature_pictures, "new_figure", lambda *size: drawn.append(draw(*size)) or drawn[-1])
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(classes), 4)
    values = rng.normal(0, 1, (len(labels), 2)) + spread * rng.normal(0, 1, (classes, 2))[labels]
    names = [f"Class number {k}" * (1 + k % 2) for k in range(classes)]
    for name in ("one", "two"):
        feature_pictures.write_map(
            tmp_path / f"{name}.png", values.astype(np.float32), labels, names, ["train"] * len(labels), "pca"
        )
        (axis,) = drawn[-1].axes
        drawn[-1].draw_without_rendering()  # the file had another resolution
        boxes = [text.get_bbox_patch().get_window_extent() for text in axis.texts]
        assert [text.get_text() for text in axis.texts] == names
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        frame = axis.get_window_extent().padded(1)
        assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
