"""The measurements run, on small sizes and where little is installed; the peers compute what our networks compute."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import r23d_jax
from benchmarks import expected, gpu, run, steps
from benchmarks.measure import alternate

ROOT = Path(__file__).parents[1]
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # and on one device, for the processes of candidates


def test_candidates_alternate_and_are_compared_within_a_round() -> None:
    calls: list[str] = []
    times = alternate({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warm_up=1)
    assert calls == list("ab") + list("ab") * 3
    assert [len(one.seconds) for one in times] == [3, 3]
    assert times[0].ratios == (1.0, 1.0, 1.0) and times[1].spread[0] <= times[1].ratio <= times[1].spread[1]


@pytest.mark.long
def test_results_of_several_runs_stand_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", QUICK_TO_COMPILE)
    for part in ("step", "forward"):
        arguments = [part, "--tiny", "--rounds=2", f"--out={tmp_path}", "--networks=r2plus3d_18+vit"]
        monkeypatch.setattr(sys, "argv", ["run", *arguments])
        assert run.main() == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"step", "forward"} and results["step"]["found"][0]["seconds"] > 0
    text = (tmp_path / "results.md").read_text()
    assert "## step" in text and "| r2plus3d_18+vit | 8 x 8 x 32 x 32 | r23d_jax |" in text
    assert (tmp_path / "results.svg").read_text().startswith("<?xml")


@pytest.mark.long
def test_a_torch_that_cannot_compile_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("XLA_FLAGS", QUICK_TO_COMPILE)
    clips = steps.Clips(8, 8, 32)
    rows = steps.run("forward", 1, clips, ["r2plus3d_18+vit"], ["torch compiled"])
    assert [row["candidate"] for row in rows] == ["r23d_jax"]
    assert "  torch compiled does not work here: import of torch halted" in capsys.readouterr().out
    with pytest.raises(ImportError, match="import of torch halted"):
        steps.run("forward", 1, clips, ["r2plus3d_18+vit"], ["torch eager"])


@pytest.mark.long
@pytest.mark.parametrize("bare", [True, False])
def test_the_gpu_script_runs_on_a_cpu_and_where_little_is_installed(tmp_path: Path, bare: bool) -> None:
    """A bare machine has neither TensorFlow nor what reads configs; torch's half is an error where torch is missing."""
    missing = ("tensorflow", "tensorflow_datasets", "ml_collections", "orbax", "cv2", "av", "tensorboardX") * bare
    blocker = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    (tmp_path / "sitecustomize.py").write_text(blocker)
    # A module of None would do for an import, but scipy asks the one it finds for torch's Tensor
    (tmp_path / "torch.py").write_text("raise ImportError('import of torch halted')\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHON": sys.executable, "XLA_FLAGS": ""}
    arguments = ["--tiny", "--networks=r2plus3d_18+vit", "--forms=direct", "--minutes=20"]
    command = ["sh", "benchmarks/gpu.sh", str(tmp_path / "out"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    peer, ours, other = found["rows"]
    assert peer["candidate"] == "torch compiled" and "import of torch halted" in peer["error"]
    assert ours["candidate"] == "r23d_jax" and ours["clips_per_second"] > 0 and len(ours["kernels"]) > 10
    assert 0 < ours["forward_seconds"] < ours["seconds"] and 0 < other["forward_seconds"] < other["seconds"]
    assert other["candidate"] == "r23d_jax direct" and other["clips_per_second"] > 0
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "| r2plus3d_18+vit | r23d_jax | 2 |" in text and "Most expensive kernels of r2plus3d_18+vit" in text
    if bare:
        assert "from disk: left out: tensorflow, cv2, ml_collections, orbax not installed" in text
    else:
        assert found["main_job"]["clips_per_second"] > 0 and 0 <= found["main_job"]["input_wait"] <= 1


def test_steps_are_queued_four_at_a_time() -> None:
    running = most = finished = 0

    def queue() -> Callable[[], object]:
        nonlocal running, most
        running += 1
        most = max(most, running)

        def wait() -> None:
            nonlocal running, finished
            running, finished = running - 1, finished + 1

        return wait

    assert gpu.seconds_per_step(queue, 10) > 0
    assert most == gpu.IN_FLIGHT + 1 and finished == 10 and running == 0


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "r2plus1d_18" else []) for name in steps.NETWORKS]
)
def test_the_peers_compute_what_our_networks_compute(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    from benchmarks.torch_networks import make_network

    ours_name, head = steps.NETWORKS[name]
    model = r23d_jax.create_model(ours_name, num_classes=101, head=head, num_frames=8, crop_size=32, rngs=nnx.Rngs(0))
    model.eval()
    peer = make_network(name, 8, 32).eval()
    assert sum(value.size for value in jax.tree.leaves(nnx.state(model, nnx.Param))) == sum(
        value.numel() for value in peer.parameters()
    )
    peer.load_state_dict(r23d_jax.to_torch(model))
    x = np.random.default_rng(0).standard_normal((2, 8, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = peer(torch.tensor(x.transpose(0, 4, 1, 2, 3))).numpy()
    logits = jax.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(logits, theirs, atol=1e-4 * float(np.abs(theirs).max()))


def test_what_many_devices_should_take() -> None:
    """By hand: 2 x 41.496 GMACs x 3 x 4 clips; 33,217,452 gradients of two bytes; 37 BN layers, two sums each."""
    machine = expected.Machine(peak=100.0, utilization=0.5, inside=100.0, between=10.0, latency=10.0)
    alone, host, many = (expected.expect("r2plus1d_18", 16, 112, 4, devices, machine) for devices in (1, 8, 64))
    assert alone.compute == host.compute == pytest.approx(6 * 41.496e9 * 4 / 50e12, rel=1e-4)
    assert (alone.moved, alone.statistics, alone.efficiency) == (0, 0.0, 1.0)
    assert host.moved == 2 * 2 * 33_217_452 * 7 // 8 and host.gradients == pytest.approx(host.moved / 100e9)
    assert many.gradients == pytest.approx(many.moved / 10e9) and many.moved > host.moved
    assert many.statistics == pytest.approx(2 * host.statistics) == pytest.approx(2 * 37 * 10e-6 * 6)


def test_a_network_without_a_measured_utilization_needs_one() -> None:
    with pytest.raises(
        ValueError, match="mc3_18: measure a step on one device and pass --utilization; known: r2plus1d"
    ):
        expected.expect("mc3_18", 16, 112, 4, 8, expected.Machine())
