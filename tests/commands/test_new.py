"""A project from class folders: it trains as it stands, from any folder, and nothing else is written."""

import argparse
import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint import read
from r23d_jax.checkpoint.checkpoint import save_model
from r23d_jax.commands import new
from r23d_jax.config import Config, UserError, use_flow, validate
from r23d_jax.config.files import call_file
from r23d_jax.data.find.splits import read_list
from r23d_jax.evaluation import report
from r23d_jax.evaluation.trained import load_model
from r23d_jax.runtime.program import CONFIGS
from r23d_jax.training import recipes
from r23d_jax.weights import pretrained
from r23d_jax.weights.download import File
from r23d_jax.weights.state_dicts import Converted
from tests.commands.test_predict import write_video
from tests.evaluation.test_features import WIDTHS, small_config
from tests.hostile.reliability.harness import write_videos
from tests.weights.random_networks import trained

LOADS = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' way to run a config


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    new.add_arguments(parser)
    return new.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in class folders, and weights."""
    root = tmp_path_factory.mktemp("new")
    write_videos(root / "videos", count=16, num_frames=20, groups=4)
    save_model(
        root / "weights",
        trained("r2plus3d_10", num_classes=3, num_frames=8, widths=WIDTHS),
        small_config(),
        tuple("abc"),
    )
    return root


@pytest.fixture(scope="module")
def project(root: Path) -> Path:
    assert call(root / "videos", "--out", root / "my project", "--workers", 1) == 0
    return root / "my project"


def test_the_files_of_a_project(root: Path, project: Path) -> None:
    wanted = {"config.py", "look.html", "README.md", "frames", "lists", "prepare.json", ".prepare.lock"}
    assert {path.name for path in project.iterdir()} == wanted
    assert {path.suffix for path in (root / "videos").rglob("*") if path.is_file()} == {".mp4"}
    train, test = (read_list(project / "lists", side) for side in ("train", "test"))
    assert (len(train.entries), len(test.entries)) == (12, 4)
    assert {entry.group for entry in test.entries} <= {f"{c}_g0{g}" for c in ("Diving", "Rowing") for g in range(1, 5)}
    readme = (project / "README.md").read_text()
    assert "8 recordings by the numbers in their names" in readme and "12 to train on" not in readme


def test_the_config_works_from_any_folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = validate(call_file(str(project / "config.py"), "get_config", Config))
    assert cfg.data.root == str(project / "frames") and cfg.data.input == "rgb_diff" and cfg.model.depth == 10
    monkeypatch.chdir(project)
    assert validate(call_file("config.py", "get_config", Config)) == cfg


def test_the_page_shows_every_class_in_motion_and_needs_no_network(project: Path) -> None:
    from PIL import Image

    page = (project / "look.html").read_text()
    assert "http:" not in page and "https:" not in page and "<script" not in page and "<b>Diving</b>" in page
    films = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    assert len(films) == 2 and "6 to train, 2 to test" in page
    for film in films:
        image = Image.open(io.BytesIO(base64.b64decode(film)))
        # three cuts of 64 pixels beside each other, the differences below; 17 frames give 16 of them
        assert (image.width, image.height, getattr(image, "n_frames", 1)) == (3 * 64 + 8, 2 * 64 + 4, 16)
        first = np.asarray(image.convert("RGB"), int)
        assert np.abs(first[:64, :64] - first[:64, 68:132]).mean() > 5, "the cuts differ"
        image.seek(8)
        assert np.abs(np.asarray(image.convert("RGB"), int)[:64, :64] - first[:64, :64]).mean() > 5, "it moves"


@LOADS
@pytest.mark.slow
def test_the_printed_training_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(
        r"^(?:python \S*launch.py|r23d-jax train) (--config .*)$", (project / "README.md").read_text(), re.M
    )
    small = ["--config.train.epochs=0.1", "--config.train.global_batch_size=8", "--config.eval.num_clips=1"]
    small += ["--config.model.widths=(4,4,8,8)", "--config.data.num_frames=4", "--config.data.crop_size=16"]
    assert main(["train", *shlex.split(line), *small]) == 0
    assert "train: 12 videos of 2 classes" in capsys.readouterr().out
    assert (project / "run" / "report.html").exists()


def test_a_project_is_not_made_twice(root: Path, project: Path) -> None:
    with pytest.raises(UserError, match="--out .*my project: holds something already; give another folder"):
        call(root / "videos", "--out", project)


@pytest.mark.slow
def test_cached_weights_are_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that are undamaged and read frames; of equal ones, the last download. Nothing is downloaded."""
    model = load_model(root / "weights")
    frames = Converted(model.model, model.config.model, 3, "r23d_jax", tuple("abc"), model.preprocessing)
    flow = dataclasses.replace(frames, preprocessing=dataclasses.replace(model.preprocessing, input="flow"))
    known = {"old": frames, "good": frames, "flow": flow, "damaged": frames, "absent": frames}
    row, rows = pretrained.PRETRAINED["r3d_18.kinetics400"], {}
    for age, name in enumerate(known):
        file = File(f"https://example.invalid/{name}.pth", f"sha256:{hashlib.sha256(name.encode()).hexdigest()[:8]}")
        rows[name] = dataclasses.replace(row, files=(file,))
        path = tmp_path / "cache" / "weights" / name / file.name
        path.parent.mkdir(parents=True)
        if name != "absent":
            path.write_text("cut short" if name == "damaged" else name)
            os.utime(path, (age, age))
    monkeypatch.setenv("R23D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "PRETRAINED", rows)
    monkeypatch.setattr(read, "read_pretrained", lambda name, log: known[name])
    assert list(pretrained.cached(on_cpu=True)) == list(pretrained.cached(on_cpu=False)) == ["flow", "good", "old"]
    assert call(root / "videos", "--out", tmp_path / "p", "--json", "--workers", 1) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == "name:good" and told["recipe"] == "last_stage"
    assert told["notes"][0].startswith("flow is in the cache of weights, and is not used: ")
    assert told["notes"][1] == (
        "weights: good, from the cache (40.7 billion multiply-adds a clip, the fewest there, for a CPU); "
        "--weights NAME takes others, --scratch takes none"
    )
    assert "--weights name:good" in told["next"][0]
    cfg = validate(call_file(str(tmp_path / "p" / "config.py"), "get_config", Config))
    assert cfg.init_from == "name:good" and cfg.model.widths == WIDTHS
    assert call(root / "videos", "--out", tmp_path / "q", "--json", "--workers", 1, "--scratch") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights"] == "" and told["recipe"] == "small"
    with pytest.raises(UserError, match="--scratch: uses no weights, and --weights names some; drop one"):
        call(root / "videos", "--out", tmp_path / "r", "--weights", "old", "--scratch")
    from r23d_jax.evaluation import preview

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preview, "write_preview", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        call(root / "videos", "--out", tmp_path / "s", "--workers", 1)
    assert call(root / "videos", "--out", tmp_path / "s", "--workers", 1) == 0


@pytest.mark.slow
def test_a_cpu_takes_the_quickest_cached_weights_and_an_accelerator_the_most_accurate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("R23D_CACHE", str(tmp_path))
    names = ["s3d.kinetics400", "r2plus1d_18.kinetics400", "r2plus1d_34_8.ig65m", "mc3_18.kinetics400"]
    for age, name in enumerate(names):  # the last download is neither
        path = tmp_path / "weights" / name / pretrained.PRETRAINED[name].files[0].name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (age, age))
    monkeypatch.setattr(pretrained.download, "is_cached", lambda name, files: name in names)
    assert list(pretrained.cached(on_cpu=True).items()) == [
        ("r2plus1d_34_8.ig65m", "38.1 billion multiply-adds a clip"),
        ("r2plus1d_18.kinetics400", "40.5 billion multiply-adds a clip"),
        ("mc3_18.kinetics400", "43.3 billion multiply-adds a clip"),
        ("s3d.kinetics400", "143.8 billion multiply-adds a clip"),
    ]
    assert list(pretrained.cached(on_cpu=False).items()) == [
        ("s3d.kinetics400", "68.368 % top-1 as published"),
        ("r2plus1d_18.kinetics400", "67.463 % top-1 as published"),
        ("mc3_18.kinetics400", "63.96 % top-1 as published"),
        ("r2plus1d_34_8.ig65m", "no published accuracy"),
    ]
    monkeypatch.setattr(new, "_read_weights", lambda path: path)
    for on_cpu, line in (
        (True, "r2plus1d_34_8.ig65m, from the cache (38.1 billion multiply-adds a clip, the fewest there, for a CPU)"),
        (False, "s3d.kinetics400, from the cache (68.368 % top-1 as published, the highest there, for an accelerator)"),
    ):
        monkeypatch.setattr(new, "_on_cpu", lambda on_cpu=on_cpu: on_cpu)
        lines: list[str] = []
        new._from_cache(args := argparse.Namespace(weights=""), lines.append)
        assert line in lines[0] and args.weights == f"name:{line.partition(',')[0]}"


@LOADS
@pytest.mark.slow
def test_with_weights_only_their_last_stage_is_trained(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write_report", lambda *args, **options: tmp_path)  # which nothing here reads
    out = tmp_path / "p"
    assert call(root / "videos", "--out", out, "--weights", root / "weights", "--json", "--workers", 1) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"] == "last_stage" and told["classes"] == {"Diving": 8, "Rowing": 8} and told["left_out"] == {}
    first, second = told["next"]
    assert "features" in first and "--probe" in first and f"--weights {root}/weights" in first and "launch.py" in second
    cfg = validate(call_file(str(out / "config.py"), "get_config", Config))
    assert cfg.model.widths == WIDTHS and cfg.model.head.kind == "avgpool" and cfg.data.num_frames == 8
    assert cfg.init_from == str(root / "weights") and cfg.optimizer.freeze == ("stem", "stage1", "stage2", "stage3")
    # both commands run
    words = shlex.split(first.partition("features ")[2])
    assert main(["features", *words, "--clips", "1"]) == 0
    assert {"features.npz", "map.png", "nearest.png"} <= {path.name for path in out.iterdir()}
    small = ["--config.train.epochs=0.1", "--config.train.global_batch_size=8", "--config.eval.num_clips=1"]
    assert main(["train", *shlex.split(second.partition("launch.py ")[2]), *small]) == 0
    assert "init: the classifier starts random: the weights have 3 classes, this run 2" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_that_read_frames_and_differences(root: Path, tmp_path: Path) -> None:
    cfg = small_config()
    cfg.data.input, cfg.model.in_channels = "rgb_and_diff", 6
    network = trained("r2plus3d_10", num_classes=2, num_frames=8, widths=WIDTHS, in_channels=6)
    save_model(tmp_path / "both", network, cfg, ("a", "b"))
    assert call(root / "videos", "--out", tmp_path / "p", "--weights", tmp_path / "both", "--workers", 1) == 0
    made = validate(call_file(str(tmp_path / "p/config.py"), "get_config", Config))
    assert made.data.input == "rgb_and_diff" and made.model.in_channels == 6
    assert "the differences of neighboring frames" in (tmp_path / "p/look.html").read_text()


def test_bad_files_are_named_and_left_out(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_videos(tmp_path / "videos", count=12, num_frames=12)
    good = sorted((tmp_path / "videos/Diving").iterdir())
    (tmp_path / "videos/Diving/empty.mp4").touch()
    (tmp_path / "videos/Diving/z_copy.mp4").write_bytes(good[0].read_bytes())
    cut = tmp_path / "videos/Rowing/cut.avi"  # its first frame can be decoded
    write_video(cut, 200, 0)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 3])
    (tmp_path / "videos/Odd").mkdir()
    (tmp_path / "videos/Odd/one.mp4").write_bytes(sorted((root / "videos/Rowing").iterdir())[0].read_bytes())
    out = tmp_path / "p"
    assert call(tmp_path / "videos", "--out", out, "--json", "--workers", 1) == 3
    told = json.loads(capsys.readouterr().out)
    found = {Path(name).name: reason for name, reason in told["left_out"].items()}
    assert set(found) == {"empty.mp4", "z_copy.mp4", "cut.avi"}
    assert found["z_copy.mp4"] == f"is a copy of {good[0]}"
    assert found["empty.mp4"] == "is empty (0 bytes)" and found["cut.avi"].startswith("damaged (")
    assert told["classes"] == {"Diving": 6, "Odd": 1, "Rowing": 6}
    assert any("classes of fewer than 5 videos, which say little about a network: Odd (1)" in n for n in told["notes"])
    assert not any("cut" in path.read_text() for path in (out / "lists").glob("*.csv"))


def test_an_interrupted_project_is_finished(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r23d_jax.evaluation import preview

    out = tmp_path / "p"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preview, "write_preview", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        call(root / "videos", "--out", out, "--workers", 1)
    assert (out / new.UNFINISHED).exists() and not (out / "README.md").exists()
    before = {path: path.stat().st_mtime_ns for path in (out / "frames").rglob("*.jpg")}
    assert call(root / "videos", "--out", out, "--workers", 1) == 0
    assert not (out / new.UNFINISHED).exists() and (out / "look.html").exists()
    assert before and before == {path: path.stat().st_mtime_ns for path in (out / "frames").rglob("*.jpg")}


def test_an_interrupted_project_keeps_to_its_videos_and_weights(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from r23d_jax.evaluation import preview

    out, videos = tmp_path / "p", Path(shutil.copytree(root / "videos", tmp_path / "mine"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preview, "write_preview", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        call(videos, "--out", out, "--workers", 1)
    for other in ((root / "videos",), (videos, "--scratch")):
        with pytest.raises(
            UserError, match=rf"--out .*p: was begun with {videos}, and has frames of it: give the same"
        ):
            call(*other, "--out", out, "--workers", 1)
    first = min(videos.rglob("*.mp4"))
    first.write_bytes(max(videos.rglob("*.mp4")).read_bytes()[:-1] + b"x")
    capsys.readouterr()
    call(videos, "--out", out, "--workers", 1)
    assert "WARNING: 1 video(s) have changed since they were decoded" in capsys.readouterr().out


def test_wrong_uses(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="nowhere: no such folder; give a folder with a folder of videos for each class"
    ):
        call(tmp_path / "nowhere", "--out", tmp_path / "p")
    with pytest.raises(
        UserError, match="there is one class only, Diving; give a folder with two class folders or more"
    ):
        call(root / "videos/Diving", "--out", tmp_path / "p")
    with pytest.raises(UserError, match="there is no checkpoint in"):
        call(root / "videos", "--out", tmp_path / "p", "--weights", root / "videos")
    with pytest.raises(
        UserError, match="run:1: holds a colon, which would end the name of its config.py; give another"
    ):
        call(root / "videos", "--out", tmp_path / "run:1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path / 'empty'}: holds no video"):
        call(tmp_path / "empty", "--out", tmp_path / "p")
    cfg = use_flow(small_config())
    save_model(tmp_path / "flow", trained("r2plus3d_10", num_classes=2, widths=WIDTHS, in_channels=2), cfg, ("a", "b"))
    with pytest.raises(UserError, match="the network reads optical flow; a project has frames, so give others"):
        call(root / "videos", "--out", tmp_path / "p", "--weights", tmp_path / "flow")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(UserError, match="mine: holds something already"):
        call(root / "videos", "--out", tmp_path / "mine")
    assert not (tmp_path / "p").exists() and [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_printed_paths_are_never_taken_for_options(monkeypatch: pytest.MonkeyPatch) -> None:
    video = argparse.Namespace(path=Path("-dash/a.avi"), target="-dash/a")
    args = argparse.Namespace(out="-proj", weights="")
    monkeypatch.setattr(new, "read_list", lambda lists, side: argparse.Namespace(entries=()))
    (_, training), (_, tried) = new._steps(args, [video])  # type: ignore[list-item]
    assert training.endswith(" --config ./-proj/config.py --workdir ./-proj/run")
    assert tried.endswith(" --workdir ./-proj/run ./-dash/a.avi")


def test_folders_of_sides_that_share_a_recording_get_a_warning(root: Path, tmp_path: Path) -> None:
    for side, numbers in {"train": (0, 2, 4), "val": (10, 6)}.items():  # 2 and 10 are of one match
        for name, more in (("Diving", 0), ("Rowing", 1)):
            (tmp_path / side / name).mkdir(parents=True)
            for number in numbers:
                (source,) = (root / "videos" / name).glob(f"*_c{number + more:02}.mp4")
                (tmp_path / side / name / f"match{number % 8}_clip{number}.mp4").symlink_to(source)
    notes: list[str] = []
    args = argparse.Namespace(videos=str(tmp_path), out=str(tmp_path / "p"))
    videos, seen, left_out = new._survey(tmp_path, tmp_path / "p", notes.append)
    new._list(args, videos, seen, notes.append)
    assert not left_out and notes[-1] == (
        "WARNING: 2 recordings have clips in train/ and also in val/ or test/, e.g. Diving/match2: if that is so, the "
        "test accuracy is too high"
    )
    assert {len(read_list(tmp_path / "p/lists", side).entries) for side in ("train", "test")} == {6, 4}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (recipes.Facts(200, 5, has_weights=True, on_cpu=True), "last_stage"),
        (recipes.Facts(9000, 500, has_weights=True, on_cpu=False), "last_stage"),
        (recipes.Facts(9000, 101, has_weights=True, on_cpu=True), "fine_tune"),
        (recipes.Facts(999, 5, has_weights=True, on_cpu=False), "last_stage"),
        (recipes.Facts(1000, 5, has_weights=True, on_cpu=False), "fine_tune"),
        (recipes.Facts(9000, 101, has_weights=False, on_cpu=True), "small"),
        (recipes.Facts(1999, 5, has_weights=False, on_cpu=False), "small"),
        (recipes.Facts(9000, 500, has_weights=False, on_cpu=False), "small"),
        (recipes.Facts(2000, 5, has_weights=False, on_cpu=False), "scratch"),
    ],
)
def test_which_recipe(facts: recipes.Facts, name: str) -> None:
    assert recipes.choose(facts) == name


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_a_config_and_a_row_of_the_page(name: str, tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    weights = str(tmp_path / 'a "b"\'s weights.pth') if name in ("last_stage", "fine_tune") else ""
    path.write_text(recipes.config_text(name, {}, weights, Path('/a"""\nraise SystemExit\\n"""')))
    cfg = validate(call_file(str(path), "get_config", Config))
    assert cfg.data.lists == str(tmp_path / "lists") and cfg.init_from == (
        str(Path(weights).absolute()) if weights else ""
    )
    assert recipes.RECIPES[name].short_side >= cfg.data.short_side or weights
    page = (Path(__file__).parents[2] / "docs/own_clips.md").read_text()
    assert f"| `{name}` |" in page


def test_videos_of_different_rates_are_read_at_one_pace(tmp_path: Path) -> None:
    for rates, wanted in (
        ([25, 25, 30], (1, 0.08)),
        ([25, 25, 25.5], (2, 0.0)),
        ([25, 30, 0], (2, 0.0)),
        ([], (2, 0.0)),
    ):
        path = tmp_path / f"c{len(rates)}{sum(rates):.0f}.py"
        path.write_text(recipes.config_text("small", {}, "", Path("x"), rates))
        cfg = validate(call_file(str(path), "get_config", Config))
        assert (cfg.data.frame_stride, cfg.data.frame_seconds) == wanted


def test_videos_are_read_at_the_pace_of_the_weights() -> None:
    """At 60 frames a second, a stride of 2 would show a network that was trained at 30 everything at half the pace."""
    fields = {"data.frame_stride": 2}
    assert recipes.pace_fields(fields, [60, 60], 30) == {"data.frame_stride": 1, "data.frame_seconds": 0.0667}
    assert recipes.pace_fields(fields, [30, 30], 30) == recipes.pace_fields(fields, [60, 60]) == {}


@pytest.mark.parametrize(
    ("name", "file", "variant"), [("small", "small_cpu.py", "vit,rgb_diff"), ("scratch", "r23d.py", "18")]
)
def test_recipes_from_scratch_are_those_of_configs(name: str, file: str, variant: str) -> None:
    theirs = call_file(str(CONFIGS / file), "get_config", Config, variant)
    for field, value in recipes.RECIPES[name].fields.items():
        group = theirs
        for part in field.split("."):
            group = getattr(group, part)
        assert group == value, field
