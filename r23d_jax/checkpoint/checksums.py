"""A checksum per leaf of a tree of arrays, independent of how the leaf is sharded over devices and hosts."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def leaf_table(tree: Any) -> dict[str, list]:
    """Shape, dtype and checksum of every leaf of nested dicts of `jax.Array`.

    If a leaf is spread over several hosts, all must call this together; each reads only its own devices.

    Returns:
      {"params/stem/conv/kernel": [[1, 7, 7, 3, 64], "float32", "09af3b52"], ...}: JSON values.
    """
    named = named_leaves(tree)
    for _, leaf in named:
        leaf.copy_to_host_async()
    sums = np.asarray([_checksum(leaf) for _, leaf in named], np.uint32)
    shared = np.asarray([not leaf.is_fully_addressable for _, leaf in named])
    if shared.any():
        sums = np.where(shared, multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32), sums)
    return {
        name: [list(leaf.shape), str(leaf.dtype), f"{int(total):08x}"]
        for (name, leaf), total in zip(named, sums, strict=True)
    }


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their names: keys joined by slashes."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]


def _checksum(leaf: jax.Array) -> int:
    """This host's share of a leaf's checksum: a sum modulo 2^32 over its elements.

    A term is a one-to-one function of an element's bits, a different one at every place. So changing one element always
    changes the sum; greater damage goes unnoticed with a probability of 2^-32.
    """
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id == 0:  # every element once
            starts = [index.start or 0 for index in shard.index]
            total += _sum(np.asarray(shard.data), starts, leaf.shape)
    return total % 2**32


def _sum(values: np.ndarray, starts: list[int], shape: tuple[int, ...]) -> int:
    """The sum over a box of elements that begins at `starts` in an array of `shape`."""
    place = np.zeros([1] * values.ndim, np.uint32)  # row-major, modulo 2^32
    for axis, (start, length) in enumerate(zip(starts, shape, strict=True)):
        along = np.arange(start, start + values.shape[axis]).astype(np.uint32)
        place = place * np.uint32(length % 2**32) + along.reshape(-1, *[1] * (values.ndim - 1 - axis))
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[values.dtype.itemsize]
    terms = place.reshape(-1) * np.uint32(0x9E3779B9)
    terms += np.ascontiguousarray(values).reshape(-1).view(unsigned)
    # MurmurHash3's finalizer: every line is invertible, and together they mix each bit into all others.
    terms ^= terms >> np.uint32(16)
    terms *= np.uint32(0x85EBCA6B)
    terms ^= terms >> np.uint32(13)
    terms *= np.uint32(0xC2B2AE35)
    terms ^= terms >> np.uint32(16)
    return int(terms.sum(dtype=np.uint64))
