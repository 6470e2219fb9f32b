"""Compiles the training step for an H100 or a TPU slice that is not there, and counts what the program does.

    python -m benchmarks.compiled [--device h100] [--networks r3d_18,...] [--check] [--out FILE.json]

The compiler for an H100 is one wheel, without CUDA and a driver: pip install --no-deps jax-cuda12-pjrt==<version of
jax>. The one for TPUs is pip install "jax[tpu]". A GPU's convolutions and times are not in the compiled program, but
the layout and the channels of every convolution are, and the bytes that XLA's own kernels move. A TPU's compiler
estimates the cycles of every kernel.
"""

import argparse
import collections
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import steps

H100 = Path(__file__).with_name("h100_sxm.txtpb")
H100_BANDWIDTH = 3.35e12  # bytes/s, of NVIDIA's data sheet
_SIZES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s16": 2, "f32": 4, "s32": 4, "u32": 4, "u64": 8, "s64": 8}
# A kernel is of the first kind whose text is in its body
_KINDS = {
    "cudnn$conv": "convolution",
    "cublas": "matrix product",
    "scatter(": "scatter",
    " reduce-window(": "window",
    " transpose(": "transpose",
    " copy(": "copy",
    " reduce(": "reduction",
    " pad(": "padding",
    " convert(": "elementwise with conversion",
    "": "elementwise",
}
_RUNS = {"fusion", "custom-call", "copy", "reduce", "transpose", "scatter", "while", "conditional", "sort"}


def main() -> int:
    """Compiles every network; returns 1 if `--check` finds what should not be in a program."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--device", default="h100", help='"h100" or a TPU topology such as "v5e:2x2"')
    parser.add_argument("--networks", default=",".join(steps.NETWORKS))
    parser.add_argument("--form", default="auto", help="of convolutions")
    parser.add_argument("--batch", type=int, default=64, help="clips of all devices together")
    parser.add_argument("--hlo", type=Path, help="folder to write the optimized programs to")
    parser.add_argument("--out", type=Path, help="file to write the counts to, as JSON")
    parser.add_argument("--check", action="store_true", help="fail if a program has what `faults` looks for")
    args = parser.parse_args()
    rows = []
    for network in args.networks.split(","):
        started = time.monotonic()
        text, memory = compile_step(network, steps.Clips(args.batch), args.device, args.form)
        row = {"network": network, "form": args.form, "seconds": time.monotonic() - started, "temporaries": memory}
        row |= count_gpu(text) if args.device == "h100" else count_tpu(text)
        row["faults"] = faults(row) if args.device == "h100" else []
        rows.append(row)
        if args.hlo:
            args.hlo.mkdir(parents=True, exist_ok=True)
            (args.hlo / f"{network}.{args.form}.txt").write_text(text)
        print(describe(row), flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return int(args.check and any(row["faults"] for row in rows))


def absent_devices(name: str) -> list[Any]:
    """Devices to compile for; `JAX_PLATFORMS=cpu` must be set.

    Raises:
      RuntimeError: if the wheel with the compiler is not installed.
    """
    import jax
    from jax.experimental import topologies

    if name == "h100":
        wheel, asked = f"jax-cuda12-pjrt=={jax.__version__}", {"target_config": H100.read_text(), "topology": "1x1x1"}
        platform, topology = "cuda", ""
    else:
        wheel, asked, platform, topology = f"jax[tpu]=={jax.__version__}", {}, "tpu", name
    try:
        return list(topologies.get_topology_desc(topology_name=topology, platform=platform, **asked).devices)
    except Exception as error:
        deps = "--no-deps " if name == "h100" else ""
        raise RuntimeError(f'no compiler for {name}: pip install {deps}"{wheel}" ({error})') from error


def compile_step(network: str, clips: steps.Clips, device: str, form: str) -> tuple[str, int]:
    """The optimized program of the project's own training step in bfloat16, and the bytes of its temporaries."""
    import jax
    import jax.numpy as jnp

    from r23d_jax.checkpoint.state import TrainState
    from r23d_jax.models.convolution import use_formulation
    from r23d_jax.runtime import parallel

    mesh = parallel.make_mesh(devices=absent_devices(device))
    made = steps.plan(network, clips, "bfloat16")

    def build() -> TrainState:
        params, batch_stats = made.initialize()
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, made.tx.init(params), {})

    shapes = jax.eval_shape(build)
    shardings = parallel.state_shardings(shapes, mesh)
    state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings)
    rows = {"video": (clips.shape, jnp.uint8), "label": (clips.shape[:1], jnp.int32), "mask": (clips.shape[:1], float)}
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.batch_sharding(mesh))
        for name, (shape, dtype) in rows.items()
    }
    with use_formulation(form):
        lowered = made.step(mesh, shardings).lower(state, batch)
    # Without the card Triton finds no tiles for some products of the ViT head
    compiled = lowered.compile({"xla_gpu_enable_triton_gemm": False} if device == "h100" else None)
    return re.sub(r"/\*.*?\*/", "", compiled.as_text()), compiled.memory_analysis().temp_size_in_bytes


def _arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """The dtype and the dimensions of every array of a shape, such as (bf16[8,3]{1,0}, f32[])."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return [(kind, tuple(int(size) for size in sizes.split(",") if size)) for kind, sizes in found]


def _bytes(arrays: list[tuple[str, tuple[int, ...]]]) -> int:
    return sum(_SIZES[kind] * math.prod(sizes) for kind, sizes in arrays)


def count_gpu(text: str) -> dict[str, Any]:
    """Counts kernels of a program for a GPU.

    Returns:
      "convolutions": how many there are of each "layout channels", where channels are those of what it reads and
      writes; "kernels": of each kind, how many there are and the bytes that they read and write.
    """
    bodies = dict(re.findall(r"^%(\S+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    entry = text[text.index("\nENTRY") :]
    lines = re.findall(r"^  (?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$", entry, re.M)
    shapes = {name: shape for name, shape, *_ in lines}
    convolutions, kernels = collections.Counter(), {}
    for _, shape, op, operands, rest in lines:
        if op not in _RUNS:
            continue
        read = [array for name in set(re.findall(r"%([\w.-]+)", operands)) for array in _arrays(shapes[name])]
        written = _arrays(shape)
        if labels := re.search(r'dim_labels=(\w+).*custom_call_target="__cudnn', rest):
            layout, used = labels[1].partition("_")[0], [sizes for kind, sizes in [*read, *written] if kind != "u8"]
            convolutions[f"{layout} {sorted({sizes[layout.index('f')] for sizes in used})}"] += 1
        body = f" {op}({rest}" + bodies.get((re.findall(r"calls=%([\w.-]+)", rest) or [""])[0], "")
        kind = next(kind for mark, kind in _KINDS.items() if mark in body)
        count, moved = kernels.get(kind, (0, 0))
        kernels[kind] = count + 1, moved + _bytes([*read, *written])
    return {"convolutions": dict(convolutions), "kernels": kernels}


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


def count_tpu(text: str) -> dict[str, Any]:
    """Adds up the compiler's own estimate of cycles, by the last part of the operation's name."""
    cycles: collections.Counter[str] = collections.Counter()
    for line in text[text.index("\nENTRY") :].splitlines():
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', line):
            operation = re.search(r'op_name="[^"]*?([^"/]*)"', line)
            cycles[operation[1] if operation else "?"] += int(estimate[1])
    return {"cycles": cycles.total(), "cycles_by_operation": dict(cycles.most_common())}


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
    os.environ["JAX_PLATFORMS"] = "cpu"  # the plugin serves as a compiler only
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    sys.exit(main())
