"""A network in its own process: a prediction's scores, and a fresh process after a hang or a crash."""

import argparse
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from r23d_jax.checkpoint.checkpoint import save_model
from r23d_jax.commands import explain
from r23d_jax.config import Config, UserError
from r23d_jax.evaluation import service as service_module
from r23d_jax.evaluation.answer import predict
from r23d_jax.evaluation.explain import Explainer
from r23d_jax.evaluation.service import Service
from r23d_jax.evaluation.trained import load_model
from tests.commands.test_explain_command import config_of, make_model
from tests.commands.test_predict import CLASSES, make_config, write_video


class Silent:
    """A connection on which one answer comes, and no other."""

    def __init__(self, connection: Any):
        self._connection, self._left = connection, 1
        self.send, self.recv, self.close = connection.send, connection.recv, connection.close

    def poll(self, seconds: float) -> bool:
        self._left -= 1
        return self._left >= 0 and self._connection.poll(seconds)


@pytest.mark.slow
def test_answers_errors_a_hang_and_a_crash(tmp_path: Path) -> None:
    cfg, workdir = config_of("avgpool"), tmp_path / "run"
    save_model(workdir, make_model(cfg), cfg, CLASSES)
    video, long, broken = (
        write_video(tmp_path / "classes.mp4", 30, 0),
        write_video(tmp_path / "b.avi", 60, 1),
        tmp_path / "c.avi",
    )
    broken.write_bytes(b"no video")
    want = predict(load_model(workdir), video, timeline=True).prediction
    service = Service(workdir, top=2, video_seconds=2.0)
    try:
        assert service.title == "r2plus3d_10, 3 classes, step 0, the only checkpoint"

        content = video.read_bytes()

        def check() -> None:
            found = service(video)
            assert found.maps is None and video.read_bytes() == content
            assert (found.num_frames, found.num_clips, found.seen) == (30, want.num_clips, want.seen)
            assert found.picture.is_file() and found.video.is_file()
            best = np.sort(want.probabilities)[:-3:-1]
            # another process on another number of cores
            np.testing.assert_allclose(list(found.ranking.values()), best, rtol=1e-4)

        check()
        found = service(video, maps=True)
        best, *_ = found.ranking
        assert found.maps is not None and found.maps.picture is not None and found.maps.video is not None
        assert found.maps.note == f"Yellow raises the score of {best} most (Grad-CAM)."
        assert call_explain(video, workdir, best, tmp_path) == 0
        shown, wanted = (cv2.imread(str(path)) for path in (found.maps.picture, tmp_path / "w.png"))
        assert shown is not None and wanted is not None and np.ptp(wanted) > 60
        assert np.abs(shown.astype(int) - wanted).mean() < 0.5
        assert found.maps.video.stat().st_size == pytest.approx((tmp_path / "w.mp4").stat().st_size, rel=0.05)

        setattr(service, "_connection", Silent(service._connection))  # noqa: B010 - which is no Connection
        found = service(video, maps=True)
        assert found.num_frames == 30 and found.maps is not None and found.maps.picture is None
        assert re.fullmatch(r"There are no maps: the maps were given up after [\d.]+ seconds", found.maps.note)
        check()
        for path, message in ((long, "the video takes 2 seconds; at most 2 are"), (broken, "^(?!.*c.avi)")):
            with pytest.raises(UserError, match=message):
                service(path)
        service._process.kill()
        with pytest.raises(UserError, match="the video was given up: its process ended with status -9"):
            service._receive(60, "the video was given up")
        check()
        service._seconds = 0.0
        with pytest.raises(UserError, match="the video was given up after 0 seconds"):
            service(video)
        service._seconds = 120.0
        check()
    finally:
        service.close()


def call_explain(video: Path, workdir: Path, target: str, folder: Path) -> int:
    parser = argparse.ArgumentParser()
    explain.add_arguments(parser)
    files = ["--picture", str(folder / "w.png"), "--video", str(folder / "w.mp4")]
    return explain.run(parser.parse_args([str(video), "--weights", str(workdir), "--class", target, *files]))


@pytest.mark.parametrize(
    ("cfg", "scale", "note"),
    [
        (
            config_of("avgpool"),
            1.0,
            r"Yellow raises the score of up most \(Grad-CAM\)\. 3 of the 8 clips .* are shown\.",
        ),
        (config_of("avgpool"), 0.0, r"No place raises the score of up\..*"),
        (make_config(), 1.0, "The network's last feature map has one place, so the curve tells when, and nothing.*"),
        (config_of("avgpool", input="rgb_diff"), 1.0, r"Yellow.* differences of frames; each is .* its two frames\."),
    ],
    ids=["few clips", "cold", "one place", "differences"],
)
@pytest.mark.slow
def test_what_is_said_of_maps(
    cfg: Config, scale: float, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "run", make_model(cfg, scale), cfg, CLASSES)
    video, model = write_video(tmp_path / "a.avi", 30, 0), load_model(tmp_path / "run")
    monkeypatch.setattr(service_module, "MAP_CLIPS", 3)
    found = service_module._maps(model, Explainer(model, model.preprocessing), video, CLASSES.index("up"))
    assert re.fullmatch(note, found.note)
    assert (found.picture, found.video) == (tmp_path / "a_maps.png", tmp_path / "a_maps.mp4")
    assert {"a_maps.png", "a_maps.mp4"} <= {path.name for path in tmp_path.iterdir()}


def test_a_network_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/run"):
        Service(tmp_path / "run")
