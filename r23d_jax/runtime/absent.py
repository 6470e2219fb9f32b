"""Devices that are not here, to compile for: their names, what they have, and the plug-in with their compiler."""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Any

from r23d_jax.config import ConfigError, UserError, look_up

_H100 = Path(__file__).with_name("h100_sxm.txtpb")
_GPUS_OF_A_HOST = 8
# Of its memory, jax takes this part of a GPU by default (XLA_PYTHON_CLIENT_MEM_FRACTION)
_GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of device."""

    platform: str  # "gpu" or "tpu"
    memory: int  # bytes of one device; of a TPU those that its compiler gives to a program
    peak: float  # FLOP/s in bfloat16 without sparsity, from the data sheet
    clock: float = 0.0  # cycles per second, to turn a compiler's cycles into a time; 0 where it is not published
    example: str = "4x4"  # what may follow the name, for messages
    # fields of the description of an H100 that are others here
    differs: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Bytes that a training can use."""
        if self.platform != "gpu":
            return self.memory
        return int(self.memory * float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", _GPU_SHARE)))


_H200 = {
    "device_memory_size": "151397597184",
    "memory_bandwidth": "4800000000000",
    "device_description_str": '"NVIDIA H200 141GB HBM3e"',
}
# Peaks, and the memory of GPUs, are from the makers' pages; a clock is the peak over the operations of all matrix units
KINDS = {
    "h100": Kind("gpu", 84_942_979_072, 989e12, example="8"),
    "h200": Kind("gpu", 151_397_597_184, 989e12, example="8", differs=_H200),
    "v5e": Kind("tpu", int(15.75 * 2**30), 197e12, clock=1.5e9),
    "v5p": Kind("tpu", int(95.74 * 2**30), 459e12, clock=1.75e9, example="2x2x1"),
    "v6e": Kind("tpu", int(31.25 * 2**30), 918e12),
}


@dataclasses.dataclass(frozen=True)
class Absent:
    """Devices to compile for: `name` is what the user wrote, `devices` goes into a mesh."""

    name: str
    kind: Kind
    devices: list[Any]

    @property
    def kind_name(self) -> str:
        """What the devices call themselves, e.g. "TPU v5 lite"."""
        return self.devices[0].device_kind

    @property
    def compiler_options(self) -> dict[str, bool]:
        """What only a compiler without its device needs: without the card, Triton finds no tiles for some products."""
        return {"xla_gpu_enable_triton_gemm": False} if self.kind.platform == "gpu" else {}


def prepare_process() -> None:
    """Makes plug-ins serve as compilers only, whatever devices the machine has. Call it before jax is imported."""
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is used, so another process may compile at the same time
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    logging.getLogger("jax_plugins").setLevel(logging.ERROR)  # it warns of what only a real GPU needs


def absent_devices(name: str) -> Absent:
    """The devices that a name such as "h100:8" or "v5e:4x4" means.

    Raises:
      ConfigError: for an unknown kind, or a shape that it does not come in.
      UserError: if the plug-in with the compiler is not installed; the message names its package.
    """
    key, _, shape = name.partition(":")
    kind = look_up(KINDS, key, "--devices")
    if kind.platform == "gpu":
        shape = shape or "1"
    pattern = r"[1-9]\d{0,4}" if kind.platform == "gpu" else r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}"
    if not re.fullmatch(pattern, shape):
        raise ConfigError(f"--devices={name}: must be {key} and its number or shape, e.g. {key}:{kind.example}")
    devices = _gpus(name, kind, int(shape)) if kind.platform == "gpu" else _tpus(name)
    return Absent(name, kind, devices)


def _gpus(name: str, kind: Kind, count: int) -> list[Any]:
    hosts, rest = divmod(count, _GPUS_OF_A_HOST)
    if hosts and rest:
        raise ConfigError(f"--devices={name}: must be up to {_GPUS_OF_A_HOST}, or whole hosts of {_GPUS_OF_A_HOST}")
    _need("jax_plugins.xla_cuda12", name, f"--no-deps jax-cuda12-pjrt=={importlib.metadata.version('jax')}")
    target = _H100.read_text()
    for field, value in kind.differs.items():
        target, found = re.subn(rf"(?m)^(\s*{field}:).*$", rf"\1 {value}", target)
        assert found == 1, field
    topology = f"1x{hosts}x{_GPUS_OF_A_HOST}" if hosts else f"1x1x{count}"
    return _describe(name, "", platform="cuda", target_config=target, topology=topology)


def _tpus(name: str) -> list[Any]:
    _need("libtpu", name, f'"jax[tpu]=={importlib.metadata.version("jax")}"')
    # One host has 2 x 2 of them, but for the machines with a single one
    alone = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    return _describe(name, name, platform="tpu", **alone)


def _describe(name: str, topology_name: str, **description: Any) -> list[Any]:
    import jax
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology_name=topology_name, **description).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ConfigError(f"--devices={name}: its compiler knows no such devices ({error})") from error


def _need(module: str, name: str, package: str) -> None:
    """Raises UserError if a plug-in is not installed."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent
        found = None
    if found is None:
        raise UserError(f"--devices={name}: its compiler is not installed: pip install {package}")
