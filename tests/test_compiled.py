"""What an H100 would run: the training step as compiled for it, on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import compiled, steps
from r23d_jax.runtime.compiled import count_gpu, count_tpu

ROOT = Path(__file__).parents[1]
INSTALLED = importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda12")
MISSING = (
    "needs the compiler for GPUs, without CUDA: "
    "pip install --no-deps jax-cuda12-pjrt==$(python -c 'import jax; print(jax.__version__)')"
)


def compile_for(device: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because this one's XLA_FLAGS turn optimization off."""
    command = [sys.executable, "-m", "benchmarks.compiled", "--device", device, *arguments]
    settings = os.environ | {"XLA_FLAGS": "", **environment}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=MISSING)
@pytest.mark.parametrize("network", steps.NETWORKS)
def test_no_array_is_transposed_padded_or_scattered_on_an_h100(tmp_path: Path, network: str) -> None:
    """Every convolution is channels-last, of channels that are multiples of 8, and no max-pool's gradient scatters."""
    out = tmp_path / "counts.json"
    done = compile_for("h100", "--networks", network, "--out", str(out), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(out.read_text())
    count = {"r2plus3d_18+vit": 59, "r2plus1d_18": 110, "r3d_18": 59}[network]
    assert sum(row["convolutions"].values()) == count and all(name.startswith("b012f ") for name in row["convolutions"])


@pytest.mark.slow
def test_unknown_devices_get_the_list() -> None:
    done = compile_for("v9x:2x2", "--networks", "r3d_18")
    assert done.returncode == 1 and "--devices='v9x': unknown; known: h100, h200, v5e, v5p, v6e" in done.stderr


PROGRAM = """HloModule jit_step

%fused_pool (p: bf16[2,8]) -> bf16[2,8] {
  %p = bf16[2,8]{1,0} parameter(0)
  ROOT %s = bf16[2,8]{1,0} scatter(%p, %p, %p), to_apply=%add
}

ENTRY %main (a: bf16[2,4,8,8,16]) -> bf16[2,8] {
  %a = bf16[2,4,8,8,16]{4,3,2,1,0} parameter(0)
  %x = bf16[2,4,8,8,3]{4,3,2,1,0} parameter(1)
  %z = bf16[2,8,4,8,8]{4,3,2,1,0} parameter(2)
  %y = bf16[2,8]{1,0} parameter(3)
  %good = (bf16[2,4,8,8,48]{4,3,2,1,0}, u8[0]{0}) custom-call(%a, %a), dim_labels=b012f_o012i->b012f, CUDNN
  %odd = (bf16[2,4,8,8,45]{4,3,2,1,0}, u8[0]{0}) custom-call(%x, %x), dim_labels=b012f_o012i->b012f, CUDNN
  %moved = (bf16[2,16,4,8,8]{4,3,2,1,0}, u8[0]{0}) custom-call(%z, %z), dim_labels=bf012_oi012->bf012, CUDNN
  ROOT %pool = bf16[2,8]{1,0} fusion(%y), kind=kLoop, calls=%fused_pool
}
""".replace("CUDNN", 'custom_call_target="__cudnn$convForward"')


def test_faults_are_found_in_a_program() -> None:
    row = count_gpu(PROGRAM)
    assert row["convolutions"] == {"b012f [16, 48]": 1, "b012f [3, 45]": 1, "bf012 [8, 16]": 1}
    assert row["kernels"]["scatter"] == (1, 64) and row["kernels"]["convolution"][0] == 3
    odd, moved, scatter = compiled.faults(row)
    assert odd == "1 convolutions of [3, 45] channels, no multiples of 8: cuDNN pads their arrays"
    assert moved == "1 convolutions of layout bf012: cuDNN transposes their arrays"
    assert scatter.startswith("1 scatters")


def test_cycles_are_added_up_by_operation() -> None:
    lines = ["ENTRY %main () -> f32[] {"]
    for name, cycles in (("conv", 30), ("conv", 10), ("add", 5)):
        lines.append(
            f'  %a = f32[] fusion(), metadata={{op_name="jit(step)/{name}"}}, {{"estimated_cycles":"{cycles}"}}'
        )
    assert count_tpu("\n" + "\n".join(lines)) == {"cycles": 45, "cycles_by_operation": {"conv": 40, "add": 5}}
