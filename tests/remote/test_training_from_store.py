"""Trainings whose data, lists and folder are in an object store: killed, cut off and resumed, bit for bit."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import load_checkpoint
from r23d_jax.config import Config
from r23d_jax.runtime import mirror, remote
from r23d_jax.training.warm_start import WarmStartError, check_source
from tests.hostile.reliability import harness
from tests.remote.server import Faults, Server

# `launch.py`, but for the pause between two copies: this training takes seconds
TRAIN = """
import sys
from r23d_jax.commands.train import main
from r23d_jax.runtime import mirror
mirror.SECONDS = 0.5
sys.exit(main(sys.argv[1:]))
"""


def start(workdir: object, data: object, log: Path, mode: str = "train") -> subprocess.Popen:
    settings = {"data.source": "packed", "data.root": f"{data}/packed", "data.lists": f"{data}/lists"}
    settings |= {"train.eval_every": "10.0"}
    words = [f"--config={harness.TINY_RUN}", f"--workdir={workdir}", f"--mode={mode}"]
    words += [f"--config.{name}={value}" for name, value in settings.items()]
    env = harness.environment() | {"JAX_COMPILATION_CACHE_DIR": str(log.parent / "programs")}
    with log.open("ab") as file:
        command = [sys.executable, "-c", TRAIN, *words]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=harness.ROOT, env=env)


@pytest.fixture(scope="module")
def run(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training on this machine; not to be changed."""
    folder = tmp_path_factory.mktemp("local")
    assert start(folder / "run", made, folder / "log").wait(harness.PATIENCE) == 0, (folder / "log").read_text()
    return folder / "run"


@pytest.mark.parametrize("store", ["server", pytest.param("google", marks=pytest.mark.long)])
def test_killed_and_resumed_elsewhere_bit_for_bit(
    store: str,
    made: Path,
    run: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server: Server = request.getfixturevalue(store)
    counts = server.scheme == "s3"  # gcsfs tries six times itself, uncounted
    wanted = harness.trained(run)
    data, url = server.upload(made, "training"), server.url_of("runs/killed")

    server.faults = Faults(delay=0.005, errors=3, cuts=3 if counts else 0)
    log = tmp_path / "first.log"
    process = start(url, data, log)
    is_saved = lambda: any(name.endswith("/.whole") for name in server.names("runs/killed"))  # noqa: E731
    assert harness.wait_for(process, is_saved), log.read_text()
    process.kill()
    process.wait()
    assert not counts or "tried again (1 retries so far)" in log.read_text()
    assert "finished" not in log.read_text()
    shutil.rmtree(remote.cached(""))  # the machine is gone
    assert main(["status", url]) == 3
    assert f"{url}: no sign of life" in capsys.readouterr().out

    log = tmp_path / "second.log"
    process = start(url, data, log)
    assert harness.wait_for(process, lambda: "resumed from step" in log.read_text()), log.read_text()
    server.faults = Faults(outage=20 if counts else 2)
    assert process.wait(harness.PATIENCE) == 0, log.read_text()
    assert not counts or "tried again" in log.read_text()
    assert main(["status", url]) == 0
    assert f"{url}: finished" in capsys.readouterr().out

    copy = remote.copied(url, lambda name: not name.endswith("/.whole"))
    assert set(harness.differences(harness.trained(copy), wanted)) == {"config.json"}  # the data's place
    assert not harness.debris(copy)

    assert load_checkpoint(url, "latest").step == wanted["step"]
    check_source(Config(init_from=url), tmp_path / "new")
    with pytest.raises(WarmStartError, match=r"init_from=\w\w://videos/nowhere: there is no such file"):
        check_source(Config(init_from=server.url_of("nowhere")), tmp_path / "new")


@pytest.mark.slow
def test_an_evaluation_reads_and_writes_there(made: Path, run: Path, server: Server, tmp_path: Path) -> None:
    log = tmp_path / "log"
    data, url = server.upload(made, "evaluated"), server.url_of("runs/evaluated")
    with mirror.working(url) as here:
        shutil.copytree(run, here, dirs_exist_ok=True)
    assert start(url, data, log, "eval").wait(harness.PATIENCE) == 0, log.read_text()
    names = server.names("runs/evaluated")
    assert any(name.startswith("evaluations/") and name.endswith("/report.html") for name in names)
