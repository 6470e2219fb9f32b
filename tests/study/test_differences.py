"""Intervals and paired differences of a study's rows, in its page, its files and what it prints."""

import csv
import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.config import Config
from r23d_jax.evaluation.result import EvalResult, Protocol, load_evaluation, save_evaluation
from r23d_jax.study import run as runner
from r23d_jax.study.differences import compare, read_row
from r23d_jax.study.grid import Cell, Study, cells
from r23d_jax.study.groups import gather
from r23d_jax.study.results import write_results

CLASSES = ("Dive", "Jump")
SEEDS = {str(seed): {"seed": seed} for seed in range(2)}
SPLITS = {str(split): {"data.split": split} for split in (1, 2)}


def study(*rows: str, **axes: dict) -> Study:
    base = Config()
    base.model.depth, base.model.widths, base.model.head.kind = 10, (4, 6, 8, 8), "avgpool"
    return Study("A title", base, {"row": {row: {} for row in rows}, **(axes or {"seed": SEEDS, "split": SPLITS})})


def finish(
    cell: Cell,
    workdir: Path,
    wrong: set[int],
    grouped: bool = True,
    chosen: str = "",
    missing: int = 0,
    broken: int = 0,
    prefix: str = "v",
) -> None:
    """Leaves what a finished training leaves: 12 videos, three clips of each of two recordings of each class.

    The last `missing` of them are not there, and the first `broken` cannot be read.
    """
    first = 1 + 2 * (cell.config.data.split - 1)
    videos = [(k, g, c) for k in (0, 1) for g in (first, first + 1) for c in (1, 2, 3)]
    names = [f"{prefix}_{CLASSES[k]}_g{g:02d}_c{c:02d}" if grouped else f"clip{k}{g}{c}" for k, g, c in videos]
    labels = np.array([k for k, _, _ in videos], np.int32)
    predicted = np.array([1 - k if i in wrong else k for i, k in enumerate(labels)])
    logits = np.eye(2)[predicted]
    accuracy, here = 1 - len(wrong) / 12, slice(0, 12 - missing)
    result = EvalResult(
        metrics={"val/top1_video": accuracy, "val/mean_class": accuracy, "val/top1_clip": accuracy},
        class_names=CLASSES,
        names=np.array(names)[here],
        labels=labels[here],
        logits=logits[here],
        softmax=logits[here],
        num_views=(np.arange(12) >= broken).astype(np.int32)[here],
        broken_views=broken,
        broken=(),
        missing=tuple(names[12 - missing :]),
        protocol=dataclasses.replace(Protocol.of(cell.config), chosen=chosen),
        environment={"devices": "1 x cpu"},
    )
    save_evaluation(result, workdir / cell.name)
    outcome = runner._outcome(workdir / cell.name, 0, 60.0, runner.cost_of(cell))
    (workdir / cell.name / runner.OUTCOME).write_text(json.dumps(dataclasses.asdict(outcome)))


def test_a_sum_is_made_again_when_its_streams_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores would be compared with those of a network that it does not hold."""
    ran: list[str] = []
    said: list[str] = []
    wrong = {"rgb": {0, 1, 2}, "diff": set(), "flow": set(), "both": {0, 1, 2}}

    def described(first: str, second: str) -> Study:
        rows = {"rgb": {}, "diff": {}, "flow": {}, "both": {"fusion.first": first, "fusion.second": second}}
        return dataclasses.replace(study(), axes={"row": rows, "seed": {"0": {"seed": 0}}})

    def grid(first: str, second: str) -> list[Cell]:
        return cells(described(first, second))

    class Process:
        def __init__(self, command: list[str], **options: object):
            name = Path(command[-1]).name
            ran.append(name)
            (cell,) = (cell for cell in grid("rgb", "diff") if cell.name == name)
            finish(cell, tmp_path, wrong[name.removesuffix("_seed0")])

        def wait(self) -> int:
            return 0

    def run(all_cells: list[Cell]) -> list[str]:
        ran.clear()
        runner.run_cells(all_cells, tmp_path, said.append)
        return [*ran]

    monkeypatch.setattr(runner.subprocess, "Popen", Process)
    assert len(run(grid("rgb", "diff"))) == 4 and run(grid("rgb", "diff")) == []
    kept = json.loads((tmp_path / "both_seed0" / runner.OUTCOME).read_text())
    assert [name for name, _ in kept["streams"]] == ["rgb_seed0", "diff_seed0"]

    shutil.rmtree(tmp_path / "rgb_seed0")
    wrong |= {"rgb": {0}, "both": {0}}
    assert [group.waiting for group in gather(grid("rgb", "diff"), tmp_path)] == [1, 0, 0, 1]
    assert run(grid("rgb", "diff")[3:]) == [] and said[-1] == "    left out: needs rgb_seed0"
    assert run(grid("rgb", "diff")) == ["rgb_seed0", "both_seed0"]
    page = write_results(described("rgb", "diff"), grid("rgb", "diff"), tmp_path).read_text()
    assert "| rgb | both | +0.00 |" in page
    assert run(grid("flow", "diff")) == run(grid("diff", "flow")) == ["both_seed0"] and run(grid("diff", "flow")) == []

    said.clear()
    path = tmp_path / "both_seed0" / runner.OUTCOME
    old = json.loads(path.read_text())
    del old["streams"]
    path.write_text(json.dumps(old))  # of an earlier version
    assert run(grid("diff", "flow")) == [] and said == []
    assert run(grid("diff", "rgb")) == []
    before = f"config.fusion.second='{tmp_path / 'flow_seed0'}', is 'rgb' now"
    assert said == [f"both_seed0: done with other settings ({before}); delete {path.parent} to run it again"]


def test_seeds_are_averaged_before_videos_are_compared(tmp_path: Path) -> None:
    grid = cells(study("a", "b"))
    for cell in grid:
        seed = cell.config.seed
        finish(cell, tmp_path, {0} if cell.group == ("a",) and seed == 0 else set())
    a, b = (read_row([cell for cell in grid if cell.group == (name,)], tmp_path) for name in "ab")
    assert a.scores[("1/", "Dive/g01", "Dive/v_Dive_g01_c01")] == 50 and len(a.scores) == 24
    accuracy = a.accuracy
    assert accuracy is not None and accuracy.mean == pytest.approx(100 * (1 - 1 / 24)) and accuracy.groups == 8
    (pair,) = compare([a, b])
    assert pair.difference.mean == pytest.approx(-100 / 24) and pair.difference.holds_zero
    (same,) = compare([b, b])
    assert (same.difference.mean, same.difference.low, same.difference.high) == (0, 0, 0)


def test_only_shared_videos_are_compared(tmp_path: Path) -> None:
    """Row a has split 1 alone so far, and row b one seed of split 2 only, which does not count."""
    grid = cells(study("a", "b"))
    for cell in grid:
        labels = cell.labels
        if labels["split"] == "1" or (labels["row"], labels["seed"]) == ("b", "0"):
            finish(cell, tmp_path, set(range(12)) if labels == {"row": "a", "seed": "0", "split": "1"} else set())
    rows = [read_row([c for c in grid if c.group == (n,) and runner.is_done(c, tmp_path)], tmp_path) for n in "ab"]
    assert [len(row.scores) for row in rows] == [12, 12]
    (pair,) = compare(rows)
    assert pair.difference.mean == -50 and not pair.difference.holds_zero
    empty = read_row([], tmp_path)
    assert empty.accuracy is None and compare([rows[0], empty]) == []


def test_groups_of_the_lists_are_recordings_where_names_hold_none(tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    names = [f"clip{k}{g}{c}" for k in (0, 1) for g in (1, 2) for c in (1, 2, 3)]
    people = {"1": "Ann", "2": "Bob"}  # who do both
    rows = [f"{name},{CLASSES[int(name[4])]},{people[name[5]]}" for name in names]
    (lists / "val.csv").write_text("\n".join(["path,label,group", *rows]) + "\n")
    (lists / "train.csv").write_text("path,label,group\n" + "".join(f"t{k},{CLASSES[k]},Cid{k}\n" for k in (0, 1)))
    described = study("a", "b", seed={"0": {"seed": 0}})
    described.base.data.lists = str(lists)
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, {0} if cell.group == ("a",) else set(), grouped=False)
    row = read_row([grid[0]], tmp_path)
    assert row.named_groups and row.accuracy is not None and row.accuracy.groups == 2
    assert {recording for _, recording, _ in row.scores} == {"Ann", "Bob"}
    (lists / "val.csv").unlink()
    other = read_row([grid[1]], tmp_path)
    assert not other.named_groups and other.accuracy is not None and other.accuracy.groups == 12
    (pair,) = compare([row, other])  # of the same videos, though one has lost its lists
    assert (pair.difference.videos, pair.difference.groups) == (12, 2)


def test_videos_of_two_classes_with_one_name(tmp_path: Path) -> None:
    """Lists without groups, whose videos are recordings of their own."""
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Dive\n2 Jump\n")
    names = [f"clip{k}{g}{c}" for k in (0, 1) for g in (1, 2) for c in (1, 2, 3)]
    (lists / "testlist01.txt").write_text("".join(f"{CLASSES[int(n[4])]}/{n[5:]}.avi\n" for n in names))
    (lists / "trainlist01.txt").write_text("Dive/0.avi 1\nJump/0.avi 2\n")
    described = study("a", seed={"0": {"seed": 0}})
    described.base.data.lists = str(lists)
    (cell,) = cells(described)
    finish(cell, tmp_path, set(range(6)), grouped=False)
    kept = load_evaluation(tmp_path / cell.name)
    assert kept is not None
    save_evaluation(dataclasses.replace(kept, names=np.array([name[5:] for name in names])), tmp_path / cell.name)
    row = read_row([cell], tmp_path)
    assert len(row.scores) == 12 and row.accuracy is not None and row.accuracy.groups == 12
    assert set(row.scores.values()) == {0, 100} and not row.named_groups


def test_the_page_lists_few_pairs_and_says_what_they_show(tmp_path: Path) -> None:
    described = study("a", "b", "c=d")
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, {"a": {0, 3, 6, 9}, "b": {0}, "c=d": set()}[cell.labels["row"]])
    lines: list[str] = []
    page = write_results(described, grid, tmp_path, lines.append).read_text()
    assert lines[0] == "video top-1, paired differences with 95 % intervals over recordings:"
    sizes = "24 videos of 8 recordings"
    found = re.fullmatch(rf"  a - b: -25.00 points (\[-33.33, (-1\d.\d\d)\]), {sizes}: lower", lines[1])
    assert found and f"| a | b | -25.00 | {found[1]} | lower |" in page
    assert re.fullmatch(rf"  b - c=d: -8.33 points \[-\d\d.\d\d, 0.00\], {sizes}: no difference shown", lines[3])
    assert "| row | video top-1 | 95 % interval |" in page and "| a | 66.67 ± 0.00 | [66.67, 66.67] |" in page
    assert "10,000 resamples of recordings, seeds averaged first" in page
    with (tmp_path / "differences.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["first"], row["second"]) for row in rows] == [("a", "b"), ("a", "c=d"), ("b", "c=d")]
    assert float(rows[0]["low"]) == pytest.approx(-100 / 3, abs=1e-4) and rows[2]["verdict"] == "no difference shown"
    assert "(intervals.svg)" in page
    ET.parse(tmp_path / "intervals.svg")


def test_many_pairs_are_a_matrix(tmp_path: Path) -> None:
    described = study(*"abcdef", seed=SEEDS)
    grid = cells(described)
    for number, cell in enumerate(grid):
        finish(cell, tmp_path, {0, 3, 6, 9} if number % 6 == 0 else {number % 6} if number % 6 == 5 else set())
    page = write_results(described, grid, tmp_path).read_text()
    assert "| | row | 1 | 2 | 3 | 4 | 5 | 6 |" in page
    assert "| 1 | a |  | -33.3 | -33.3 | -33.3 | -33.3 | -25.0 |" in page
    assert "| 2 | b | +33.3 |  | (+0.0) | (+0.0) | (+0.0) | (+8.3) |" in page
    assert len((tmp_path / "differences.csv").read_text().splitlines()) == 16


def test_videos_without_groups_are_their_own(tmp_path: Path) -> None:
    described = study("a", seed=SEEDS)
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, {0}, grouped=False)
    row = read_row(grid, tmp_path)
    assert row.accuracy is not None and row.accuracy.groups == 12 and not row.named_groups
    assert "a video each, where names hold none" in write_results(described, grid, tmp_path).read_text()


@pytest.mark.parametrize(
    ("fold", "chosen", "title"),
    [
        (1, "", "video top-1 (held-out groups, checkpoint last)"),
        (0, "best on the test videos", "video top-1 (test videos, checkpoint best on the test videos)"),
        (2, "best on the held-out groups", "video top-1 (held-out groups, checkpoint best on the held-out groups)"),
    ],
)
def test_held_out_groups_and_the_choice_of_the_checkpoint_are_named(
    tmp_path: Path, fold: int, chosen: str, title: str
) -> None:
    described = study("a", "b", seed=SEEDS, split=SPLITS)
    described.base.data.fold = fold
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, set(), chosen=chosen)
    lines: list[str] = []
    page = write_results(described, grid, tmp_path, lines.append).read_text()
    assert f"| row | {title} |" in page and f"In points of {title}," in page and f"\nV{title[1:]}:\n" in page
    assert lines[0].startswith(f"{title}, paired differences")
    assert ("Held-out groups are groups of the training list, not test videos." in page) is (fold > 0)
    with (tmp_path / "results.csv").open() as file:
        assert {row["protocol"] for row in csv.DictReader(file)} == {title.removeprefix("video top-1 (")[:-1]}


def test_rows_of_two_protocols_are_told_apart(tmp_path: Path) -> None:
    described = study("a", "b", seed=SEEDS)
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, set(), chosen="best on the test videos" if cell.group == ("a",) else "")
    page = write_results(described, grid, tmp_path).read_text()
    assert "| a (test videos, checkpoint best on the test videos) | 100.00" in page
    assert "| b (test videos, checkpoint last) | 100.00" in page


def test_rows_that_were_scored_on_other_videos_are_marked(tmp_path: Path) -> None:
    described = study("a", "few", "b", "others", seed=SEEDS, split=SPLITS)
    grid = cells(described)
    for cell in grid:
        row, few = cell.labels["row"], (cell.labels["row"], cell.labels["split"]) == ("few", "1")
        prefix, missing, broken = "w" if row == "others" else "v", 6 if few else 0, 2 if few else 0
        finish(cell, tmp_path, {2}, prefix=prefix, missing=missing, broken=broken)
    page = write_results(described, grid, tmp_path).read_text()
    assert "\n| a | 91.67 ± 0.00 |" in page and "\n| b | 91.67 ± 0.00 |" in page
    assert page.count("\n| few \\* | 91.67") == page.count("\n| others \\* | 91.67") == 2  # and by split
    assert (
        "\n\\* Scored on other videos than the rest: few on 4 videos instead of 12 (6 missing, 2 not readable); others "
        "on 12 videos, 12 of them others. Two rows are compared on the videos that both have.\n"
    ) in page
    with (tmp_path / "results.csv").open() as file:
        table = [(row["row"], row["split"], row["videos"]) for row in csv.DictReader(file)]
    assert {row for row in table if row[2] != "12"} == {("few", "1", "4")} and len(table) == 16

    path = tmp_path / "few_seed0_split1" / runner.OUTCOME
    outcome = json.loads(path.read_text())
    assert [outcome.pop(name) for name in ("videos", "missing", "not_evaluated")] == [4, 6, 2]
    path.write_text(json.dumps(outcome))  # of an earlier version
    page = write_results(described, grid, tmp_path).read_text()
    assert "few on 4 videos instead of 12, 4 videos instead of 12 (6 missing, 2 not readable);" in page
    with (tmp_path / "results.csv").open() as file:
        assert [row["videos"] for row in csv.DictReader(file) if row["row"] == "few"] == ["", "12", "4", "12"]


def test_of_two_rows_the_one_of_fewer_videos_is_marked(tmp_path: Path) -> None:
    """Also where more of its seeds are done."""
    described = study("few", "all", seed=SEEDS)
    grid = cells(described)
    for cell in grid:
        if cell.name != "all_seed1":
            finish(cell, tmp_path, set(), missing=2 if cell.group == ("few",) else 0)
    page = write_results(described, grid, tmp_path).read_text()
    assert "| few \\* | 100.00" in page and "| all | 100.00" in page
    assert "rest: few on 10 videos instead of 12 (2 missing). " in page


def test_a_study_of_seeds_alone_has_one_row(tmp_path: Path) -> None:
    described = dataclasses.replace(study(), axes={"seed": SEEDS})
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, set(), chosen="best on the test videos" if cell.config.seed else "")
    page = write_results(described, grid, tmp_path).read_text()
    assert "| 100.00 ± 0.00 | [100.00, 100.00] |" in page and "intervals.svg" not in page


def test_equal_seeds_whose_mean_is_rounded(tmp_path: Path) -> None:
    """The mean of three times 11/12 is not 11/12, and no bar of the picture may be negative for it."""
    described = study("a", "b", seed={str(seed): {"seed": seed} for seed in range(3)})
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, {0})
    assert "| a | 91.67 ± 0.00 |" in write_results(described, grid, tmp_path).read_text()


def test_a_training_whose_test_videos_were_all_unreadable(tmp_path: Path) -> None:
    described = study("a", "b")
    grid = cells(described)
    for cell in grid:
        finish(cell, tmp_path, set())
    path = tmp_path / "a_seed0_split1" / runner.OUTCOME
    content = json.loads(path.read_text())
    content["metrics"]["val/top1_video"] = None
    path.write_text(json.dumps(content))
    assert "| a | 100.00 | 100.00 | 100.00 |" in write_results(described, grid, tmp_path).read_text()


def test_folds_are_repetitions(tmp_path: Path) -> None:
    described = study("a", fold={str(k): {"data.fold": k} for k in (1, 2, 3)})
    grid = cells(described)
    assert [cell.name for cell in grid] == ["a_fold1", "a_fold2", "a_fold3"] and grid[0].group == ("a",)
    for cell in grid:
        finish(cell, tmp_path, set(range(4 * cell.config.data.fold)))
    page = write_results(described, grid, tmp_path).read_text()
    assert "mean over 3 folds" in page and "| a | 66.67 | 33.33 | 0.00 | 33.33 |" in page
