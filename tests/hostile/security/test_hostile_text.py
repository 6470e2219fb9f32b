"""Names and texts never speak to the terminal, the browser or a spreadsheet."""

import csv
import dataclasses
import html.parser
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from r23d_jax.__main__ import main
from r23d_jax.commands.predict_output import Text
from r23d_jax.config import Config, UserError
from r23d_jax.evaluation import fusion, report
from r23d_jax.evaluation.answer import Answer
from r23d_jax.evaluation.result import EvalResult, Protocol, save_evaluation
from r23d_jax.evaluation.single import Prediction
from r23d_jax.runtime.progress import PrintableStream, Progress, printable
from r23d_jax.study.grid import Study, cells
from r23d_jax.study.results import write_results
from r23d_jax.study.run import Outcome
from tests.hostile.security.pickles import plant_code

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("v_Diving_g01_c01", "v_Diving_g01_c01"),
        ("Ünïcode 跳水　\u200a", "Ünïcode 跳水　\u200a"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        ("a\udcffb", r"a\udcffb"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_printed_passes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--workdir", str(tmp_path / "a\x1b[2J"), "--to", str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"a\x1b[2J" in said
    stream = io.StringIO()
    print("two\nlines\x1b[2J", file=PrintableStream(stream))  # type: ignore[arg-type]
    with Progress(1, "videos", "read", stream=stream) as progress:
        progress.message("name\x1b]0;title\x07")
    assert (
        stream.getvalue().startswith("two\nlines\\x1b[2J\nname\\x1b]0;title\\x07\n") and "\x1b" not in stream.getvalue()
    )


def test_launch_prints_no_commands(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), "--config=a\x1b[2J.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and r"a\x1b[2J.py: no such file" in done.stderr and "\x1b" not in done.stderr


def test_class_names_of_a_foreign_network_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Prediction(np.array([0.9, 0.1]), np.ones(2), num_frames=1, num_clips=1, seen=1.0, stride=1)
    Text(top=5).answer("a\nb", Answer(("Di\x1b[2Jving\nRowing", "x"), seen))
    assert capsys.readouterr().out.splitlines() == [
        r"a\nb  (1 frames, 1 clip, 100 % of the video seen)",
        "  Di\\x1b[2Jving\\nRowing   90.00 %",
        "  x                       10.00 %",
    ]


ATTACKS = (
    "<script>alert(1)</script>",
    '"onmouseover="alert(1)',
    "</style><script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    "'><a href='javascript:alert(1)'>x</a>",
    "]]><!--",
    "\x1b[2J\udcff",
)


class Skeleton(html.parser.HTMLParser):
    """Elements and the names of their attributes; texts aside."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def result_of(names: tuple[str, ...]) -> EvalResult:
    """An evaluation in which everything that may come from outside is one of some names."""
    count = len(names)
    predicted = np.roll(np.arange(count), 1)
    scores = np.full((count, count), 0.1)
    scores[np.arange(count), predicted] = 1.0
    return EvalResult(
        metrics={"val/top1_video": 0.0, "val/top5_video": 0.5, "val/mean_class": 0.0, "val/top1_clip": 0.25},
        class_names=names,
        names=np.array(names),
        labels=np.arange(count, dtype=np.int32),
        logits=scores,
        softmax=scores,
        num_views=np.full(count, 1, np.int32),
        broken_views=1,
        broken=tuple((name, name) for name in names),
        missing=names,
        protocol=dataclasses.replace(Protocol.of(Config()), input=names[0]),
        environment={name: name for name in names},
    )


def page_of(names: tuple[str, ...], workdir: Path) -> str:
    cfg = Config()
    cfg.model.head.kind, cfg.data.root, cfg.data.source = names[:3]  # an unknown family is refused
    cfg.data.classes = names
    save_evaluation(result_of(names), workdir)
    return report.write_report(workdir, cfg=cfg).read_text()


def harmless() -> tuple[str, ...]:
    return tuple(f"name{k}" for k in range(len(ATTACKS)))


def test_names_make_no_elements_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_find_videos", lambda cfg: (None, "No film strips."))
    attacked, plain = page_of(ATTACKS, tmp_path / "a"), page_of(harmless(), tmp_path / "b")
    assert Skeleton(attacked).elements == Skeleton(plain).elements and len(Skeleton(plain).elements) > 100
    assert ATTACKS[0] in Skeleton(attacked).texts and "\x1b" not in attacked


def test_a_report_may_load_and_run_nothing(tmp_path: Path) -> None:
    page = report.write_report(tmp_path, cfg=Config()).read_text()
    head = page.partition("<title>")[0]
    assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'" in head


def test_names_make_no_elements_of_a_page_of_two_streams(tmp_path: Path) -> None:
    def page(names: tuple[str, ...], folder: Path) -> str:
        first = second = result_of(names)
        fused = fusion.fuse(first, second, 0.5, "softmax")
        return fusion.write_page(folder, names[:2], (first, second, fused), 0.5, names[2], "softmax").read_text()

    attacked, plain = page(ATTACKS, tmp_path / "a"), page(harmless(), tmp_path / "b")
    assert Skeleton(attacked).elements == Skeleton(plain).elements


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_an_evaluation_that_would_run_code_is_refused(how: str, marker: Path, tmp_path: Path) -> None:
    save_evaluation(result_of(harmless()), tmp_path)
    path = tmp_path / "evaluation.npz"
    plant_code(path, how, marker)
    with pytest.raises(
        UserError, match=r"evaluation\.npz: cannot be read \(refused, because reading it could run code"
    ):
        report.write_report(tmp_path, cfg=Config())
    assert not marker.exists()


def test_results_of_a_study_are_text(tmp_path: Path) -> None:
    labels = ("=cmd|'/c calc'!A1", "+1+1", "-x", "@SUM(A1)", "-0.5", "a|b<script>[x](y)`$\\frac$", "e\x1b[2J\nf")
    grid = cells(Study("# <b>T</b>", Config(), {"a": {label: {} for label in labels}}))
    for cell in grid:
        outcome = Outcome("done", 1.0, {"val/top1_video": 0.5}, dict.fromkeys(ATTACKS, 0.5), 10, 1.0, "=1+1")
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "outcome.json").write_text(json.dumps(dataclasses.asdict(outcome)))
    study = Study("# <b>T</b>", Config(), {"a": {label: {} for label in labels}})
    page = write_results(study, grid, tmp_path).read_text()
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:5]] == [f"'{label}" for label in labels[:4]]
    assert rows[1][rows[0].index("device")] == "'=1+1"
    assert rows[5][0] == "-0.5", "a number is a number"
    assert "\x1b" not in page and "<" not in page.replace(r"\<", "") and r"a\|b\<script\>\[x\](y)" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(labels)
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1, "no label makes a column"
    for name in ("accuracy_gmacs.svg", "accuracy_parameters.svg", "per_class.svg"):
        kinds = {element.tag.rpartition("}")[2] for element in ET.parse(tmp_path / name).iter()}
        assert not kinds & {"script", "a", "foreignObject", "b"}
