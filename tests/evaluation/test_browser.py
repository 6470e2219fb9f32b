"""The errors in a report: what the table holds, clips within a budget, maps, neighbors, and a real browser."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from r23d_jax import config
from r23d_jax.checkpoint.checkpoint import create_configured_model
from r23d_jax.config import Config, UserError
from r23d_jax.data.find.frames import VideoIndex, index_frames
from r23d_jax.data.find.splits import Entry, VideoList
from r23d_jax.evaluation import browser, nearest, overlay, report
from r23d_jax.evaluation.error_maps import IndexedVideo, error_maps
from r23d_jax.evaluation.evaluate import evaluate
from r23d_jax.evaluation.result import EvalResult, save_evaluation
from r23d_jax.evaluation.step import make_eval_step
from r23d_jax.models.functional import initialize, split_model
from r23d_jax.runtime import parallel
from tests.evaluation.test_report import NAMES, make_index, make_result
from tests.training.tiny import tiny_config

TIMELINE = np.array([[1, 0, 0.1, 0.7], [1, 8, 0.4, 0.5], [3, 4, 0.2, 0.6]], np.float32)


@pytest.fixture
def result() -> EvalResult:
    """Wrong are v_1, a "left" taken for NAMES[1], and v_3, the other way round."""
    return dataclasses.replace(make_result(), timeline=TIMELINE)


def clip_of(cell: str) -> list[np.ndarray]:
    (found,) = re.findall(r'data-clip="([^"]+)"', cell)
    with av.open(io.BytesIO(base64.b64decode(found)), "r") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rows_of(page: str) -> list[tuple[str, str, str]]:
    """True class, predicted class and cells of each error."""
    return re.findall(r'<tr data-t="(\d+)" data-p="(\d+)">(.*?)</tr>', page)


def test_the_table_has_every_error_with_its_pair_scores_and_clip(tmp_path: Path, result: EvalResult) -> None:
    page = browser.all_errors(
        result, browser.confident_errors(result), make_index(tmp_path / "f", result), None, 1_000_000
    )
    rows = rows_of(page)
    assert [row[:2] for row in rows] == [("0", "1"), ("1", "0")], "the most confident first"
    assert "<td>v_1</td>" in rows[0][2] and "<td>v_3</td>" in rows[1][2]
    frames = clip_of(rows[0][2])
    assert len(frames) == 10 and frames[0].shape == (96, 128, 3)
    reds = [int(frame[48, 64, 0]) for frame in frames]
    assert np.abs(np.array(reds) - 20 * np.arange(10)).max() < 12, "the frames in their order"
    assert re.findall(r'class="(.)" points="([^"]+)"', rows[0][2]) == [
        ("t", "4,30.0 146,21.0"),
        ("p", "4,12.0 146,18.0"),
    ]
    assert "2 clips; predicted class 0.70 in the one from frame 0" in rows[0][2]
    assert re.findall(r'<circle class="(.)" cx="75" cy="(\d+)"', rows[1][2]) == [("t", "27"), ("p", "15")]
    options = re.findall(r'<option value="(\d*)">', page)
    assert options == ["", "0", "1", "", "0", "1"]
    assert NAMES[1] not in page


def test_clips_stop_where_the_budget_ends(tmp_path: Path, result: EvalResult) -> None:
    errors, index = browser.confident_errors(result), make_index(tmp_path / "f", result)
    whole = browser.all_errors(result, errors, index, None, 1_000_000)
    one = len(re.findall(r'data-clip="([^"]+)"', whole)[0])
    text = sum(len(cells.partition("<td><button")[0]) for _, _, cells in rows_of(whole))
    short = browser.all_errors(result, errors, index, None, text + one + 1)
    assert short.count("data-clip") == 1 and "data-clip" in rows_of(short)[0][2]
    assert "1 have no clip: their frames cannot be read, or the page would have more than 20 MB." in short


def test_without_frames_the_table_has_no_clips(tmp_path: Path, result: EvalResult) -> None:
    errors, index = browser.confident_errors(result), make_index(tmp_path / "f", result)
    for file in (tmp_path / "f").iterdir():
        file.unlink()
    for found in (index, None):
        page = browser.all_errors(result, errors, found, None, 1_000_000)
        assert len(rows_of(page)) == 2 and "data-clip" not in page


def test_a_missing_encoder_is_a_sentence(tmp_path: Path, result: EvalResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "CODEC", "no_such_codec")
    with pytest.raises(UserError, match="a video cannot be written: PyAV has no no_such_codec"):
        overlay.mp4([np.zeros((4, 4, 3), np.uint8)], 8)
    index = make_index(tmp_path / "f", result)
    page = browser.all_errors(result, browser.confident_errors(result), index, None, 1_000_000)
    assert "No clips: a video cannot be written" in page and "data-clip" not in page


def test_more_errors_than_are_listed(result: EvalResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "MOST_LISTED", 1)
    page = browser.all_errors(result, browser.confident_errors(result), None, None, 1_000_000)
    assert len(rows_of(page)) == 1 and "1 less confident errors are not listed" in page


def test_the_policy_names_the_script_by_its_hash(tmp_path: Path, result: EvalResult) -> None:
    save_evaluation(result, tmp_path)
    page = report.write_report(tmp_path, make_index(tmp_path / "f", result), Config()).read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy.split("; ")[0] == "default-src 'none'" and policy.endswith(f"; script-src 'sha256-{digest}'")
    assert "unsafe-eval" not in policy and "http" not in policy
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function|fetch|import", script)


def test_a_page_without_errors_has_no_script(tmp_path: Path) -> None:
    save_evaluation(make_result(predicted=(0, 0, 1, 1, 2, 0)), tmp_path)
    page = report.write_report(tmp_path, cfg=Config()).read_text()
    assert "<script" not in page and "script-src" not in page and "media-src" not in page


# -- a network ---------------------------------------------------------------------------------------------------------


def write_videos(root: Path, count: int, seed: int, num_frames: int = 9) -> VideoIndex:
    """Videos of drifting noise, of three classes in turn."""
    entries = []
    for k in range(count):
        folder = root / f"v{k}"
        folder.mkdir(parents=True)
        draws = np.random.default_rng([seed, k]).integers(0, 256, (24, 32, 3)).astype(np.uint8)
        for i in range(num_frames):
            picture = np.roll(cv2.resize(draws, (40, 30), interpolation=cv2.INTER_CUBIC), 2 * i, 1)
            cv2.imwrite(str(folder / f"{i + 1:03d}.png"), picture)
        entries.append(Entry(f"v{k}", k % 3, NAMES[k % 3], ""))
    return index_frames(root, VideoList(NAMES, tuple(entries)), cache=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Config, VideoIndex, EvalResult]:
    cfg = tiny_config("r2plus3d")
    cfg.eval.crops = 3
    cfg.data.crop_size, cfg.data.short_side = 64, 64  # leaves 2 x 2 places
    model = initialize(lambda: create_configured_model(cfg, 3))
    index = write_videos(tmp_path_factory.mktemp("test"), 6, seed=0)
    mesh = parallel.make_mesh()
    network, params, batch_stats = split_model(model)
    step = make_eval_step(network, config.preprocessing(cfg.data), mesh)
    result = evaluate(step, params, batch_stats, index, cfg, mesh)
    assert result is not None
    return model, cfg, index, result


def test_the_timeline_has_the_mean_over_the_crops_of_every_clip(evaluated: Any) -> None:
    _, _, index, result = evaluated
    times = result.timeline
    assert times.shape == (6 * 2, 4), "two runs of four frames in nine"
    np.testing.assert_array_equal(times[:, 0], np.repeat(np.arange(6), 2))
    np.testing.assert_array_equal(times[:, 1], np.tile([0, 4], 6))
    for column, classes in ((2, index.labels), (3, result.predictions)):
        want = result.probabilities[np.arange(6), classes]
        np.testing.assert_allclose(times[:, column].reshape(6, 2).mean(1), want, atol=1e-3)  # kept in 16 bits
    assert np.ptp(times[:, 2]) > 1e-3


def test_too_many_probabilities_are_not_kept(evaluated: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, cfg, index, _ = evaluated
    monkeypatch.setattr("r23d_jax.evaluation.scores.MOST_KEPT", 6 * 2 * 3 * 3 - 1)
    mesh = parallel.make_mesh()
    network, params, batch_stats = split_model(model)
    step = make_eval_step(network, config.preprocessing(cfg.data), mesh)
    result = evaluate(step, params, batch_stats, index, cfg, mesh)
    assert result is not None and result.timeline is None
    page = browser.all_errors(result, browser.confident_errors(result), None, None, 1_000_000)
    assert "over time" not in page and rows_of(page)


def test_a_report_shows_the_maps_of_the_clip_that_misled(evaluated: Any, tmp_path: Path) -> None:
    model, cfg, index, result = evaluated
    errors = browser.confident_errors(result)
    save_evaluation(result, tmp_path)
    page = report.write_report(tmp_path, index, cfg, model=model).read_text()
    alts = re.findall(r'<img alt="(Grad-CAM of [^"]+)" src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(alts) == len(errors) > 0
    times = result.timeline[result.timeline[:, 0] == errors[0]]
    name = figures_escape(result.class_names[result.predictions[errors[0]]])
    assert alts[0][0] == f"Grad-CAM of {name} in a clip from frame {times[times[:, 3].argmax(), 1]:.0f}"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(alts[0][1]), np.uint8), 1)
    assert picture is not None and picture.shape[1] == 1130
    side = round(256 * 1130 / (4 * 256 + 3 * 3))  # of the four frames of a clip
    frames, heated = picture[: side - 2], picture[side + 2 : 2 * side]
    assert frames.std() > 10 and np.abs(frames.astype(int) - heated[: side - 2]).mean() > 5


def figures_escape(text: str) -> str:
    from r23d_jax.evaluation.figures import escape

    return escape(text)


def test_maps_read_the_pixels_that_were_scored(evaluated: Any) -> None:
    """The same clip as an evaluation of one crop decodes."""
    from r23d_jax.data.read import pipeline
    from r23d_jax.data.read.views import make_views

    _, cfg, index, _ = evaluated
    pre = config.preprocessing(cfg.data)
    views = make_views(index.num_frames, pre, dataclasses.replace(cfg.eval, crops=1))
    broken = pipeline.BrokenLog(cfg.data, log=lambda line: None)
    batch = next(
        iter(pipeline.eval_batches(index, views, cfg.data, batch_size=2, host=0, num_hosts=1, broken=broken, crops=1))
    )
    clips = list(IndexedVideo(index, 0, pre, 1.0).clips(np.array([0, 4])))
    np.testing.assert_array_equal(np.stack(clips), batch["video"])


def test_an_unreadable_video_has_no_map(evaluated: Any, tmp_path: Path) -> None:
    model, cfg, _, result = evaluated
    index = write_videos(tmp_path, 1, seed=0)
    for file in (tmp_path / "v0").iterdir():
        file.write_bytes(b"x")
    assert error_maps(model, result, index, cfg)(0, 0) == ""


def test_the_nearest_training_video_is_the_one_with_the_same_picture(evaluated: Any, tmp_path: Path) -> None:
    model, cfg, index, _ = evaluated
    train = write_videos(tmp_path / "others", 5, seed=1)
    same = write_videos(tmp_path / "same", 6, seed=0)
    folders = np.concatenate([train.frames.folder, same.frames.folder[[4]]])  # type: ignore[attr-defined]
    both = {name: np.append(getattr(train, name), getattr(same, name)[4]) for name in ("names", "labels", "num_frames")}
    numbering = {name: np.append(getattr(train.frames, name), getattr(same.frames, name)[4]) for name in
                 ("prefix", "suffix", "first", "step", "digits")}  # fmt: skip
    frames = dataclasses.replace(train.frames, folder=folders, **numbering)  # type: ignore[type-var]
    train = dataclasses.replace(train, frames=frames, **both)
    found = nearest.find_neighbors(model, train, index, np.array([4, 1]), cfg, print)
    assert not nearest.find_neighbors(model, train, index, np.array([], int), cfg, print).of, "no errors"
    row, similarity = found.of["v4"]
    assert row == 5 and similarity == pytest.approx(1, abs=1e-5)
    assert found.of["v1"][1] < 1 - 1e-6, "another video is not as near"
    assert found.describe("v4") == f"v4, {NAMES[1]} (1.000)" and found.describe("v0") == ""
    page = browser.all_errors(
        make_result(), np.array([4]), None, dataclasses.replace(found, of={"v_4": (5, 1.0)}), 10**6
    )
    assert "<th>nearest training video</th>" in page and "(1.000)" in page


# -- a real browser ----------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """A headless browser, spoken to through its debugging pipe."""

    def __init__(self, folder: Path):
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        shell = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            "--window-size=1240,1600",
        ]
        flags += [f"--user-data-dir={folder}", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, str(CHROMIUM), *flags],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._rest, self._number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if hasattr(self, "_session") else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 20)
                assert part, "the browser has ended"
                self._rest += part
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, code: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium or google-chrome")
def test_in_a_browser(tmp_path: Path, result: EvalResult) -> None:
    """A click on a cell of the matrix filters, another pair shows nothing, a clip plays, and nothing is refused."""
    save_evaluation(result, tmp_path)
    page = report.write_report(tmp_path, make_index(tmp_path / "f", result), Config())
    chromium = Chromium(tmp_path / "profile")
    try:
        chromium.call("Page.navigate", url=page.as_uri())
        chromium.run(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        rows = "[...document.querySelectorAll('#errors tbody tr')].filter(row => row.offsetHeight)"
        shown = f"{rows}.map(row => row.cells[0].textContent)"
        assert chromium.run(shown) == ["v_1", "v_3"]
        click = "document.querySelector('.matrix [data-pair=\"{}\"]').dispatchEvent(new MouseEvent('click'))"
        chromium.run(click.format("1 0"))
        assert chromium.run(shown) == ["v_3"] and chromium.run("document.getElementById('shown').textContent") == "1"
        assert chromium.run("document.getElementById('true-class').value") == "1"
        chromium.run(
            "const t = document.getElementById('true-class'); t.value = '0'; t.dispatchEvent(new Event('change'))"
        )
        assert chromium.run(shown) == [], "no class-0 video was taken for class 0"
        chromium.run("document.getElementById('all').click()")
        assert chromium.run(shown) == ["v_1", "v_3"]
        size = chromium.run(
            "document.querySelector('button[data-clip]').click(); const v = document.querySelector('video');"
            "new Promise((done, fail) => { v.onplaying = () => done([v.videoWidth, v.videoHeight]);"
            "v.onerror = () => fail(v.error.message) })"
        )
        assert size == [128, 96]
        refused = [
            event for event in chromium.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        assert not refused
        evil = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
        chromium.run(evil)
        assert chromium.run("window.ran") is None, "the policy runs no other script"
    finally:
        chromium.close()
