"""Two trained runs, evaluated together."""

import dataclasses
from pathlib import Path

import pytest

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.config import Config, UserError
from r23d_jax.data.find.errors import DataError
from r23d_jax.data.find.splits import Entry, VideoList, fold, hold_out
from r23d_jax.data.make.synthetic import write_synthetic
from r23d_jax.data.sources import open_index
from r23d_jax.evaluation import browser, two_stream
from r23d_jax.evaluation.two_stream import evaluate_two_streams
from r23d_jax.training import loop
from tests.training.tiny import tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RGB and a frame-difference stream, each trained for two steps with a third of the groups held out."""
    root = tmp_path_factory.mktemp("streams")
    write_synthetic(root / "set", num_groups=4, clips_per_group=1, test_groups=1)
    for name in ("rgb", "rgb_diff"):
        cfg = tiny_config("f_r2d")
        cfg.data.source, cfg.data.root, cfg.data.input = "frames", str(root / "set/frames"), name
        cfg.data.lists, cfg.data.hold_out = str(root / "set/lists"), 0.34
        cfg.train.epochs, cfg.train.eval_every, cfg.eval.views, cfg.eval.num_clips = 1.0, 100.0, "uniform", 1
        loop.train(cfg, root / name, log=lambda line: None)
    return root


def fused_config(runs: Path, **fields) -> Config:
    cfg = Config()
    cfg.eval.views, cfg.eval.num_clips = "uniform", 2
    cfg.fusion = config.FusionConfig(first=str(runs / "rgb"), second=str(runs / "rgb_diff"), **fields)
    return cfg


@pytest.mark.parametrize(
    ("choice", "said"), [("fixed", "0.60 and 0.40: fixed"), ("held_out", "6 training videos that")]
)
def test_both_streams_and_their_sum(runs: Path, tmp_path: Path, choice: str, said: str) -> None:
    lines: list[str] = []
    result = evaluate_two_streams(fused_config(runs, choice=choice), tmp_path, lines.append)
    assert len(result.names) == 6 and result.metrics["val/top1_video"] >= 0
    text = "\n".join(lines)
    assert "first stream:" in text and said in text and "report:" in text
    page = (tmp_path / "report.html").read_text()
    assert "rgb (f_r2d_10)" in page and "rgb_diff (f_r2d_10)" in page and "gain over the better stream" in page
    wrong = int((result.predictions != result.labels).sum())
    assert page.count("<tr data-t=") == page.count("data-clip=") == wrong > 0, "to play"
    # two strips of frames with Grad-CAM of each stream, and one of the video, for each of the first errors
    assert page.count("Grad-CAM of ") == 2 * 2 * min(wrong, 10), "as a line and as the text of a picture"
    assert "script-src 'sha256-" in page and browser.SCRIPT in page


def test_the_report_of_a_stream_stays(runs: Path) -> None:
    before = (runs / "rgb" / "report.html").read_bytes()
    evaluate_two_streams(fused_config(runs), runs / "rgb", lambda line: None)
    assert (runs / "rgb" / "report.html").read_bytes() == before
    assert (runs / "rgb" / "evaluations" / "two-streams" / "report.html").is_file()


def test_lists_that_have_moved_can_be_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def score(loaded, cfg: Config, *rest) -> None:
        asked.append(cfg.data.lists)
        raise DataError("asked")

    monkeypatch.setattr(two_stream, "score_checkpoint", score)
    for lists in (Config().data.lists, "elsewhere"):
        cfg = fused_config(runs)
        cfg.data.lists = lists
        with pytest.raises(DataError, match="asked"):
            evaluate_two_streams(cfg, tmp_path, lambda line: None)
    assert asked == [str(runs / "set/lists"), "elsewhere"]


def test_mistakes(runs: Path, tmp_path: Path) -> None:
    cfg = fused_config(runs)
    cfg.fusion.second = ""
    with pytest.raises(UserError, match="config.fusion.second is missing: the folder of a trained run"):
        evaluate_two_streams(cfg, tmp_path, lambda line: None)
    cfg.fusion.second = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="there is no checkpoint in"):
        evaluate_two_streams(cfg, tmp_path, lambda line: None)


def test_held_out_groups_are_not_trained_on(runs: Path) -> None:
    data = load_checkpoint(runs / "rgb").config.data
    sides = {side: set(open_index(data, side).names) for side in ("train", "held_out", "test")}
    assert [len(names) for names in sides.values()] == [12, 6, 6]
    assert not sides["train"] & sides["held_out"] and not (sides["train"] | sides["held_out"]) & sides["test"]
    with pytest.raises(config.ConfigError, match="config.data.hold_out=0: nothing was held out"):
        open_index(dataclasses.replace(data, hold_out=0.0), "held_out")


def test_groups_are_held_out_whole_and_of_every_class() -> None:
    entries = [Entry(f"{c}{g}{k}", i, c, f"{c}{g}") for i, c in enumerate("ab") for g in range(10) for k in range(2)]
    kept, held = hold_out(VideoList(("a", "b"), tuple(entries)), 0.2)
    assert {entry.group for entry in held.entries} == {"a8", "a9", "b8", "b9"}
    assert len(kept.entries) == 32 and not {e.group for e in kept.entries} & {e.group for e in held.entries}
    assert len(hold_out(VideoList(("a", "b"), tuple(entries)), 0.99)[0].entries) == 4  # never all
    with pytest.raises(DataError, match="class a has one group only, a0"):
        hold_out(VideoList(("a",), tuple(entries[:2])), 0.5)


def test_folds_are_whole_groups_of_every_class_and_cover_the_list() -> None:
    entries = [Entry(f"{c}{g}{k}", i, c, f"{c}{g}") for i, c in enumerate("abc") for g in range(7) for k in range(2)]
    folds = [fold(VideoList(("a", "b", "c"), tuple(entries)), number) for number in (1, 2, 3)]
    groups = [{entry.group for entry in held.entries} for _, held in folds]
    assert [len(found) for found in groups] == [7, 7, 7] and len(set.union(*groups)) == 21
    for kept, held in folds:
        assert len(kept.entries) + len(held.entries) == len(entries)
        assert not {entry.group for entry in kept.entries} & {entry.group for entry in held.entries}
        assert {entry.class_name for entry in held.entries} == {"a", "b", "c"}
    assert groups[0] >= {"a0", "a3", "a6"} and groups[1] >= {"b0", "b3", "b6"}
    with pytest.raises(DataError, match=r"config.data.fold=1: class a has 2 group\(s\) in the training list, and 3"):
        fold(VideoList(("a",), tuple(entries[:4])), 1)


def test_a_fold_is_held_out_before_a_share(runs: Path) -> None:
    """Three groups of each class are in the training list: one is the fold, one is held out, one is trained on."""
    data = dataclasses.replace(load_checkpoint(runs / "rgb").config.data, fold=1)
    names = [set(open_index(data, side).names) for side in ("train", "held_out", "test")]
    assert [len(found) for found in names] == [6, 6, 6] and len(set.union(*names)) == 18
    assert not set.union(*names) & set(open_index(dataclasses.replace(data, fold=0), "test").names)
