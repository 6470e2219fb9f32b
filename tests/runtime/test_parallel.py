"""Meshes, and where things lie on them."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from r23d_jax.config import ConfigError
from r23d_jax.runtime import parallel


def test_mesh_has_two_axes_and_every_device() -> None:
    mesh = parallel.make_mesh(fsdp=2)
    assert mesh.axis_names == ("data", "fsdp") and mesh.shape == {"data": 4, "fsdp": 2}
    with pytest.raises(ConfigError, match=r"config\.parallel\.fsdp=3: must divide the number of devices, which is 8"):
        parallel.make_mesh(fsdp=3)


def test_long_axes_are_split_and_small_leaves_stay_whole() -> None:
    mesh = parallel.make_mesh(fsdp=4)
    shapes = {"kernel": (3, 3, 3, 64, 128), "odd": (7, 7, 7, 7, 11), "bias": (128,), "step": ()}
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = {name: sharding.spec for name, sharding in parallel.state_shardings(tree, mesh).items()}
    assert specs["kernel"] == PartitionSpec(None, None, None, None, "fsdp")
    assert specs["odd"] == specs["bias"] == specs["step"] == PartitionSpec()


def test_a_batch_keeps_its_order_over_the_devices() -> None:
    mesh = parallel.make_mesh(fsdp=2)
    rows = np.arange(16, dtype=np.int32)
    label = parallel.global_batch({"label": rows}, mesh)["label"]
    np.testing.assert_array_equal(label, rows)
    assert {shard.data.shape for shard in label.addressable_shards} == {(2,)}
    with pytest.raises(ConfigError, match="a batch of 12 does not divide by 8 devices: set .*global_batch_size"):
        parallel.global_batch({"label": rows[:12]}, mesh)


def test_one_line_about_the_devices() -> None:
    line = parallel.describe_devices()
    assert line.startswith("running on CPU (") and "8 virtual devices" in line and "\n" not in line


def test_compiler_options_are_of_the_devices_and_left_out_where_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"cpu": {"xla_cpu_enable_fast_math": False}, "gpu": {"xla_gpu_force_conv_nhwc": True}}
    monkeypatch.setattr(parallel, "_OPTIONS", options)
    parallel.compiler_options.cache_clear()
    assert parallel.compiler_options(parallel.make_mesh()) == options["cpu"]
    monkeypatch.setattr(parallel, "_OPTIONS", {"cpu": {"xla_cpu_invented": True}})
    parallel.compiler_options.cache_clear()
    assert parallel.compiler_options(parallel.make_mesh()) == {}
    parallel.compiler_options.cache_clear()


def test_processes_with_different_numbers_of_devices_are_refused() -> None:
    devices = [types.SimpleNamespace(process_index=number) for number in (0, 1, 1, 1)]
    with pytest.raises(ConfigError, match=r"need as many devices; there are 1 in process 0, 3 in process 1$"):
        parallel.make_mesh(devices=devices)
