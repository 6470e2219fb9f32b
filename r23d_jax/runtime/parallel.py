"""Devices: one mesh with the axes ("data", "fsdp"), and the placement of every array of a run on it."""

import collections
import functools
import json
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from r23d_jax.config import ConfigError, DataConfig, ParallelConfig, look_up

AXES = ("data", "fsdp")
# Smaller leaves (biases, BN) stay whole on every device: splitting them saves nothing and costs a gather each.
MIN_SHARDED_SIZE = 2**14

_PART = 1 << 24  # bytes that `from_first` sends at once

# What makes convolutions fast, by platform. XLA:CPU hands single convolutions to a library that uses about half the
# cores; the option keeps them in XLA. XLA:GPU stores the arrays of 3D convolutions as NCDHW, and cuDNN transposes them.
_OPTIONS: dict[str, dict[str, str | bool]] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"},
    "gpu": {"xla_gpu_force_conv_nhwc": True},
}


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh (data, fsdp) of `devices`, by default all, where `fsdp` devices share one copy of the parameters.

    Raises:
      ConfigError: if `fsdp` does not divide their number, or the processes of a job have different numbers of them.
    """
    devices = devices or jax.devices()
    counts = collections.Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{count} in process {number}" for number, count in sorted(counts.items()))
        raise ConfigError(f"all processes of a job need as many devices; there are {each}")
    if len(devices) % fsdp:
        raise ConfigError(f"config.parallel.fsdp={fsdp}: must divide the number of devices, which is {len(devices)}")
    grid = np.asarray(devices).reshape(-1, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """A sharding per leaf: split over `fsdp` along the longest axis that divides, or a copy on every device.

    Leaves are arrays, or anything with a shape, e.g. from `jax.eval_shape`.
    """
    size = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        shape = np.shape(leaf)
        divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
        if size == 1 or not divisible or np.prod(shape) < MIN_SHARDED_SIZE:
            return NamedSharding(mesh, PartitionSpec())
        longest = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == longest else None for axis in range(len(shape)))))

    return jax.tree.map(sharding, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this host's rows on its devices as its part of the global batch; the copy runs in the background.

    Raises:
      ConfigError: if the global batch does not divide by the number of devices.
    """
    rows = len(next(iter(batch.values()))) * jax.process_count()
    if rows % mesh.size:
        raise ConfigError(
            f"a batch of {rows} does not divide by {mesh.size} devices: set config.train.global_batch_size (and the "
            f"batch divided by config.train.accumulate) to a multiple of {mesh.size}"
        )
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def place(values: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    """Places an array that every host holds; each host gives its own devices their part."""
    if jax.process_count() == 1:
        return jax.device_put(values, sharding)
    host = np.asarray(values)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def from_processes(value: Any) -> list[Any]:
    """The JSON value of every process, in order, on every process; all must call it together."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [json.loads(bytes(row[:length])) for row, length in zip(texts, lengths.tolist(), strict=True)]


def from_first(value: Any) -> Any:
    """What process 0 has, on every process; all must call it together.

    Args:
      value: anything that can be pickled; that of the other processes is not read.
    """
    if jax.process_count() == 1:
        return value
    content = np.frombuffer(pickle.dumps(value) if jax.process_index() == 0 else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.uint32(len(content))))
    length, parts = min(size, _PART), []
    for start in range(0, size, length):  # all of one length, so that one program is compiled
        part = content[start : start + length]
        part = np.pad(part, (0, length - len(part)))
        parts.append(np.asarray(multihost_utils.broadcast_one_to_all(part)))
    return pickle.loads(np.concatenate(parts)[:size].tobytes())  # noqa: S301  this program's own


def numbers_from_processes(numbers: Sequence[float]) -> np.ndarray:
    """As `from_processes` for (n,) numbers, in one exchange: (processes, n) float32."""
    return multihost_utils.process_allgather(np.asarray(numbers, np.float32)).reshape(jax.process_count(), -1)


def on_every_host(tree: Any) -> Any:
    """The whole of every array, on every process, as numpy arrays if there are several; all must call it together."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda a: np.asarray(a) if a.is_fully_replicated else multihost_utils.process_allgather(a, tiled=True), tree
    )


def platform(mesh: Mesh) -> str:
    """What the devices are, which may be absent and only compiled for: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


@functools.cache
def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
    """Options for `jax.jit(..., compiler_options=...)` that make convolutions fast on these devices; may be empty.

    They are experimental and differ between versions of jaxlib, so they are tried on a trivial program first.
    """
    options = _OPTIONS.get(platform(mesh), {})
    x = jax.ShapeDtypeStruct((), np.float32, sharding=SingleDeviceSharding(mesh.local_devices[0]))
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(x).compile()
    except Exception:  # noqa: BLE001  this jaxlib does not know the option
        return {}
    return options


def compute_dtype(cfg: ParallelConfig, on: str = "") -> str:
    """The dtype to compute in; "auto" is bfloat16, but float32 on a CPU, where bfloat16 is slower.

    Args:
      on: the platform to choose for, e.g. "tpu"; "": that of this process.
    """
    if cfg.compute_dtype != "auto":
        return cfg.compute_dtype
    return "float32" if (on or jax.default_backend()) == "cpu" else "bfloat16"


def augments_on_device(cfg: DataConfig, on: str = "") -> bool:
    """Whether clips are resized and augmented in the compiled step: `cfg.augment_on`, a key of `AUGMENT_PLACES`."""
    return look_up(AUGMENT_PLACES, cfg.augment_on, "config.data.augment_on")(on or jax.default_backend())


# config.data.augment_on -> whether the device augments, by its platform
AUGMENT_PLACES: dict[str, Callable[[str], bool]] = {
    "auto": lambda platform: platform != "cpu",
    "host": lambda platform: False,
    "device": lambda platform: True,
}


def loggers(log: Callable[[str], None]) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """Two loggers for a run on several processes; both are `log` if there is one process.

    Returns:
      A logger for facts about all processes, which is silent on all but the first, and a logger for facts about this
      process, which names it.
    """
    if jax.process_count() == 1:
        return log, log
    own = f"process {jax.process_index()}: "
    return log if jax.process_index() == 0 else lambda line: None, lambda line: log(own + line)


def describe_devices() -> str:
    """One plain line, e.g. "running on CPU (4 cores)" or "running on 8 x NVIDIA H100 80GB HBM3"."""
    device, count = jax.devices()[0], jax.device_count()
    if device.platform != "cpu":
        return f"running on {count} x {device.device_kind}"
    virtual = f" as {count} virtual devices" if count > 1 else ""
    return f"running on CPU ({os.cpu_count()} cores{virtual})"
