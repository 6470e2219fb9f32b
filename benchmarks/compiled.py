"""Compiles the training step for an H100 or a TPU slice that is not there, and counts what the program does.

    python -m benchmarks.compiled [--device h100] [--networks r3d_18,...] [--check] [--out FILE.json]

The compiler for an H100 is one wheel, without CUDA and a driver: pip install --no-deps jax-cuda12-pjrt==<version of
jax>. The one for TPUs is pip install "jax[tpu]". A GPU's convolutions and times are not in the compiled program, but
the layout and the channels of every convolution are, and the bytes that XLA's own kernels move. A TPU's compiler
estimates the cycles of every kernel.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import steps
from r23d_jax.runtime.absent import Absent, absent_devices, prepare_process
from r23d_jax.runtime.compiled import count_gpu, count_tpu, plain_text

H100_BANDWIDTH = 3.35e12  # bytes/s, of NVIDIA's data sheet


def main() -> int:
    """Compiles every network; returns 1 if `--check` finds what should not be in a program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--device", default="h100", help='e.g. "h100", or "v5e:2x2"')
    parser.add_argument("--networks", default=",".join(steps.NETWORKS))
    parser.add_argument("--form", default="auto", help="of convolutions")
    parser.add_argument("--batch", type=int, default=64, help="clips of all devices together")
    parser.add_argument("--hlo", type=Path, help="folder to write the optimized programs to")
    parser.add_argument("--out", type=Path, help="file to write the counts to, as JSON")
    parser.add_argument("--check", action="store_true", help="fail if a program has what `faults` looks for")
    args = parser.parse_args()
    absent = absent_devices(args.device)
    gpu, rows = absent.kind.platform == "gpu", []
    for network in args.networks.split(","):
        started = time.monotonic()
        text, memory = compile_step(network, steps.Clips(args.batch), absent, args.form)
        row = {"network": network, "form": args.form, "seconds": time.monotonic() - started, "temporaries": memory}
        row |= count_gpu(text) if gpu else count_tpu(text)
        row["faults"] = faults(row) if gpu else []
        rows.append(row)
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{network}.{args.form}.txt").write_text(text)
        print(describe(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(args.check and any(row["faults"] for row in rows))


def compile_step(network: str, clips: steps.Clips, absent: Absent, form: str) -> tuple[str, int]:
    """The optimized program of the project's own training step in bfloat16, and the bytes of its temporaries."""
    import jax
    import jax.numpy as jnp

    from r23d_jax.checkpoint.state import abstract_state
    from r23d_jax.models.convolution import use_formulation
    from r23d_jax.runtime import parallel

    mesh = parallel.make_mesh(devices=absent.devices)
    made = steps.plan(network, clips, "bfloat16")
    state = abstract_state(made.initialize, made.tx, 0.0, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    rows = {"video": (clips.shape, jnp.uint8), "label": (clips.shape[:1], jnp.int32), "mask": (clips.shape[:1], float)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.batch_sharding(mesh))
        for name, (shape, dtype) in rows.items()
    }
    with use_formulation(form):
        lowered = made.step(mesh, shardings).lower(state, batch)
    compiled = lowered.compile(absent.compiler_options)
    return plain_text(compiled), compiled.memory_analysis().temp_size_in_bytes


def faults(row: dict[str, Any]) -> list[str]:
    """What makes a program slow on an H100, of `count_gpu`'s counts."""
    found = []
    for name, count in row["convolutions"].items():
        layout, _, channels = name.partition(" ")
        if layout != "b012f":
            found.append(f"{count} convolutions of layout {layout}: cuDNN transposes their arrays")
        if odd := [size for size in json.loads(channels) if size % 8]:
            found.append(f"{count} convolutions of {odd} channels, no multiples of 8: cuDNN pads their arrays")
    if "scatter" in row["kernels"]:
        found.append(f"{row['kernels']['scatter'][0]} scatters, of which a max-pool's gradient is slow")
    return found


def describe(row: dict[str, Any]) -> str:
    """The counts as lines of text."""
    lines = [
        f"{row['network']}, {row['form']}: {row['seconds']:.0f} s, {row['temporaries'] / 2**30:.2f} GiB temporaries"
    ]
    if "cycles" in row:
        lines.append(f"  an estimated {row['cycles'] / 1e6:.1f} million cycles (the compiler's, not measured)")
        lines += [f"  {n / row['cycles']:6.1%} {name}" for name, n in list(row["cycles_by_operation"].items())[:12]]
        return "\n".join(lines)
    lines += [f"  {count:3} convolutions {name}" for name, count in sorted(row["convolutions"].items())]
    for kind, (count, moved) in sorted(row["kernels"].items(), key=lambda item: -item[1][1]):
        lines.append(
            f"  {kind}: {count} kernels, {moved / 2**30:.2f} GiB, {moved / H100_BANDWIDTH * 1e3:.2f} ms at least"
        )
    return "\n".join(lines + [f"  FAULT: {fault}" for fault in row["faults"]])


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
