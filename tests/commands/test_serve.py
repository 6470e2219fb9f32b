"""The page of `serve` in a real browser, and its options."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import save_model
from tests.commands.test_explain_command import config_of, make_model
from tests.commands.test_predict import CLASSES, write_video

ROOT = Path(__file__).parents[2]
CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), "")
CAMERA = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
ANSWER = 60_000  # milliseconds; the first video compiles the network


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-megabytes", "0"], "--max-megabytes 0: must be above 0 and at most 1,000,000"),
        (["--max-seconds", "nan"], "--max-seconds nan: must be above 0"),
        (["--timeout", "inf"], "--timeout inf: must be above 0 and at most 86,400"),
        (["--port", "99999"], "--port 99999: must be above 0 and at most 65,535"),
        (["--host", "nowhere.invalid"], "--host nowhere.invalid: is not an IPv4 address of this machine"),
        (["--host", "::1"], "--host ::1: is not an IPv4 address of this machine"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: cannot be listened on (Cannot assign requested address)"),
    ],
)
def test_wrong_options(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["serve", "--workdir", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--workdir", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port {port}: is in use; give another" in capsys.readouterr().err


def test_without_gradio(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE", "no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that they are restored
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--workdir", str(tmp_path)]) == 2
    assert "serve needs gradio" in capsys.readouterr().err


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    cfg = config_of("avgpool")
    save_model(root / "run", make_model(cfg), cfg, CLASSES)
    write_video(root / "good.mp4", 30, 0)
    write_video(root / "long.mp4", 200, 0)
    (root / "broken.mp4").write_bytes(b"no video" * 1000)
    (root / "large.mp4").write_bytes(bytes(3 * 2**20))
    return root


@pytest.fixture(scope="module")
def address(videos: Path) -> Iterator[str]:
    pytest.importorskip("gradio", reason="pip install -r requirements-serve.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "r23d_jax", "serve", "--weights", str(videos / "run"), "--port", str(port)]
    command += ["--max-megabytes", "2", "--max-seconds", "5"]
    temporary = videos / "temporary"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=videos) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        title = "r2plus3d_10, 3 classes, step 0, the only checkpoint"
        assert said == f"{title}: http://127.0.0.1:{port}  (Ctrl-C ends it)\n"
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    assert list(temporary.glob("r23d_jax.*")) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROME:
        pytest.skip("needs Chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROME, args=CAMERA)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    asked: list[str] = []

    def opened() -> Any:
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Classify").wait_for(timeout=ANSWER)
        return page

    yield opened
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked), asked


def classify(page: Any, video: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(video)
    page.locator("video").first.wait_for(timeout=ANSWER)
    page.get_by_role("button", name="Classify").click()


def check_answer(page: Any, frames: str = "30") -> None:
    seen = f"[...document.querySelectorAll('textarea, input')].some(x => /^{frames} frames/.test(x.value))"
    text = page.locator("body").inner_text
    try:
        page.wait_for_function(seen, timeout=ANSWER)
    except Exception:
        raise AssertionError(f"no answer: {text()}") from None
    text = text()
    assert all(name in text for name in CLASSES) and len(re.findall(r"\d+ ?%", text)) >= 3


@pytest.mark.slow
def test_a_video_gets_an_answer(open_page: Any, videos: Path) -> None:
    page = open_page()
    classify(page, videos / "good.mp4")
    check_answer(page)
    text = page.locator("body").inner_text()
    assert "r2plus3d_10, 3 classes, step 0, the only checkpoint" in text and str(videos) not in text
    page.locator("img[src*=timeline]").wait_for(timeout=ANSWER)
    drawn = "[...document.querySelectorAll('video')].some(v => v.src.includes('classes') && v.videoWidth == 64)"
    page.wait_for_function(drawn, timeout=ANSWER)
    assert not page.get_by_label("Where the network looks", exact=True).is_visible()
    if folder := os.environ.get("R23D_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/serve.png", full_page=True)
    (upload,) = (videos / "temporary").glob("r23d_jax.*/*/good.mp4")
    upload.unlink()  # as happens after a while
    page.get_by_role("button", name="Classify").click()
    page.get_by_text("the video was removed after a while; add it again").first.wait_for(timeout=ANSWER)


@pytest.mark.slow
def test_where_the_network_looks(open_page: Any, videos: Path) -> None:
    page = open_page()
    page.get_by_label("Show where the network looks").check()
    classify(page, videos / "good.mp4")
    check_answer(page)
    page.locator("img[src*=maps]").wait_for(timeout=ANSWER)
    note = page.get_by_label("Where the network looks", exact=True).input_value()
    assert re.fullmatch(r"Yellow raises the score of \w+ most \(Grad-CAM\)\.", note)
    drawn = "[...document.querySelectorAll('video')].some(v => v.src.includes('maps') && v.videoWidth == 512)"
    page.wait_for_function(drawn, timeout=ANSWER)
    if folder := os.environ.get("R23D_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/serve_maps.png", full_page=True)
    page.get_by_label("Show where the network looks").uncheck()
    page.get_by_role("button", name="Classify").click()
    page.locator("img[src*=maps]").wait_for(state="hidden", timeout=ANSWER)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.mp4", "cannot be|not a video|Invalid data"),
        ("long.mp4", "the video takes 8 seconds; at most 5 are accepted"),
    ],
)
def test_a_video_that_is_refused_and_then_a_good_one(open_page: Any, videos: Path, name: str, message: str) -> None:
    page = open_page()
    classify(page, videos / name)
    page.get_by_text(re.compile(message)).first.wait_for(timeout=ANSWER)
    if folder := os.environ.get("R23D_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/serve_{name}.png")
    page.reload()
    classify(page, videos / "good.mp4")
    check_answer(page)


@pytest.mark.slow
def test_a_file_that_is_too_large(open_page: Any, videos: Path) -> None:
    page = open_page()
    page.locator("input[type=file]").first.set_input_files(videos / "large.mp4")
    page.get_by_text(re.compile("exceeds|too large|maximum", re.IGNORECASE)).first.wait_for(timeout=ANSWER)


@pytest.mark.slow
def test_two_at_once(open_page: Any, videos: Path) -> None:
    pages = [open_page(), open_page()]
    for page in pages:
        classify(page, videos / "good.mp4")
    for page in pages:
        check_answer(page)


@pytest.mark.slow
def test_the_camera(open_page: Any) -> None:
    page = open_page()
    for name in ("Capture from camera", "Click to Access Webcam"):
        page.get_by_role("button", name=name).click()
    runs = "[...document.querySelectorAll('video')].some(v => v.srcObject && v.currentTime > 0.5)"
    page.wait_for_function(runs, timeout=ANSWER)  # a recording that begins before is empty
    page.get_by_role("button", name="start recording").click()
    page.wait_for_timeout(4000)
    page.get_by_role("button", name="start recording").click()  # which stops it
    page.locator("video[src]").first.wait_for(timeout=ANSWER)
    page.get_by_role("button", name="Classify").click()
    check_answer(page, "[0-9]+")
