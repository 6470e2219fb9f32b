"""What a training step should take on many devices: computed from counts and assumed speeds, not measured.

    python -m benchmarks.expected --devices 1 8 64 512 --clips 32

A step computes 3 x 2 x multiply-adds x clips operations on each device (backward is twice forward). A ring then sends
2 (n - 1) / n times the gradients' bytes over its slowest link, and each BN layer waits for two sums of a few numbers,
which cost their latency only. Nothing is taken to overlap, and the input to be ready in time, so the truth may be
better or worse: put in what you measured on one device (`--utilization`) and on your network.
"""

import argparse
import dataclasses
import math

import jax
from flax import nnx

from r23d_jax import models
from r23d_jax.config import HeadConfig
from r23d_jax.models.complexity import count_parts
from r23d_jax.models.functional import split_model

# Part of the peak that a step reached on one H200 (docs/performance.md); that of r2plus1d_34 was not measured and is
# taken from the network of 18 layers
MEASURED = {"r2plus1d_18": 0.248, "r3d_18": 0.385, "r2plus3d_18+vit": 0.224, "r2plus1d_34": 0.248}
# Of a parameter: XLA sums in bfloat16, before it converts to the parameters' float32, as `plan` counts
_GRADIENT_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Machine:
    """Assumptions, the defaults for H100s in hosts of eight.

    Attributes:
      peak: TFLOP/s of one device, in bfloat16 without sparsity.
      utilization: part of it that a step reaches; 0 for the network's row of `MEASURED`.
      host: devices of one host.
      inside, between: GB/s that a ring reaches within a host, and over one 400 Gb/s port between hosts.
      latency: microseconds that a sum of few numbers takes, for each doubling of the devices.
    """

    peak: float = 989.0
    utilization: float = 0.0
    host: int = 8
    inside: float = 450.0
    between: float = 50.0
    latency: float = 7.0


@dataclasses.dataclass(frozen=True)
class Expected:
    """One step. Seconds; `moved` in bytes sent, and received, by each device."""

    compute: float
    gradients: float
    statistics: float
    moved: int

    @property
    def efficiency(self) -> float:
        """Part of the step in which devices compute."""
        return self.compute / (self.compute + self.gradients + self.statistics)


def expect(network: str, frames: int, size: int, clips: int, devices: int, machine: Machine) -> Expected:
    """The model above, for a network as `info` names it, or with `+vit`.

    Raises:
      ValueError: if no utilization is given or measured.
    """
    utilization = machine.utilization or MEASURED.get(network)
    if not utilization:
        raise ValueError(
            f"{network}: measure a step on one device and pass --utilization; known: {', '.join(MEASURED)}"
        )
    name, _, head = network.partition("+")

    def make() -> models.VideoNetwork:
        return models.create_model(
            name,
            num_classes=101,
            head=HeadConfig(kind=head or "avgpool"),
            num_frames=frames,
            crop_size=size,
            rngs=nnx.Rngs(0),
        )

    macs = sum(part.macs for part in count_parts(make, (frames, size, size, 3)))
    _, params, batch_stats = split_model(nnx.eval_shape(make))
    moved = 2 * _GRADIENT_BYTES * sum(leaf.size for leaf in jax.tree.leaves(params)) * (devices - 1) // devices
    speed = (machine.inside if devices <= machine.host else machine.between) * 1e9
    layers = len(jax.tree.leaves(batch_stats)) // 2
    return Expected(
        compute=3 * 2 * macs * clips / (machine.peak * 1e12 * utilization),
        gradients=moved / speed,
        statistics=2 * layers * machine.latency * 1e-6 * math.log2(devices),
        moved=moved,
    )


def main() -> int:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(MEASURED))
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 8, 64, 512])
    parser.add_argument("--clips", type=int, default=32, help="of each device and step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    for field in dataclasses.fields(Machine):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    args = parser.parse_args()
    machine = Machine(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Machine)})
    print("| network | devices | compute, ms | gradients, MB | ms | BN, ms | computing | clips/s | clips/s a host |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for network in args.networks:
        for devices in args.devices:
            one = expect(network, args.frames, args.size, args.clips, devices, machine)
            rate = args.clips * devices * one.efficiency / one.compute
            cells = (
                f"{one.compute * 1e3:.1f}",
                f"{one.moved / 1e6:.0f}",
                f"{one.gradients * 1e3:.1f}",
                f"{one.statistics * 1e3:.1f}",
                f"{one.efficiency:.0%}",
                f"{rate:,.0f}",
                f"{rate * min(devices, machine.host) / devices:,.0f}",
            )
            print(f"| {network} | {devices} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
