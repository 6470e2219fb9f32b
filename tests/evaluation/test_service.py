"""A network in its own process: a prediction's scores, and a fresh process after a hang or a crash."""

from pathlib import Path

import numpy as np
import pytest

from r23d_jax.checkpoint.checkpoint import create_configured_model, save_model
from r23d_jax.config import UserError
from r23d_jax.evaluation.answer import predict
from r23d_jax.evaluation.service import Service
from r23d_jax.evaluation.trained import load_model
from tests.commands.test_predict import CLASSES, make_config, write_video


@pytest.mark.slow
def test_answers_errors_a_hang_and_a_crash(tmp_path: Path) -> None:
    cfg, workdir = make_config(), tmp_path / "run"
    save_model(workdir, create_configured_model(cfg, 3), cfg, CLASSES)
    video, long, broken = (
        write_video(tmp_path / "a.avi", 30, 0),
        write_video(tmp_path / "b.avi", 60, 1),
        tmp_path / "c.avi",
    )
    broken.write_bytes(b"no video")
    want = predict(load_model(workdir), video, timeline=True).prediction
    service = Service(workdir, top=2, video_seconds=2.0)
    try:
        assert service.title == "r2plus3d_10, 3 classes"

        def check() -> None:
            found = service(video)
            assert (found.num_frames, found.num_clips, found.seen) == (30, want.num_clips, want.seen)
            assert found.picture.is_file() and found.video.is_file()
            best = np.sort(want.probabilities)[:-3:-1]
            # another process on another number of cores
            np.testing.assert_allclose(list(found.ranking.values()), best, rtol=1e-4)

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


def test_a_network_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/run"):
        Service(tmp_path / "run")
