"""python -m r23d_jax export --workdir DIR --to FILE: a trained network as a torch state dict."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from r23d_jax.config import UserError

SUFFIXES = (".safetensors", ".pth", ".pt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("--workdir", required=True, help="a run's folder, or one checkpoint in it")
    parser.add_argument("--to", required=True, metavar="FILE", help=f"ends in {', '.join(SUFFIXES)}")
    parser.add_argument("--which", choices=("best", "latest"), default="best", help="checkpoint (default: best)")


def run(args: argparse.Namespace) -> int:
    """Writes the file, reads it again and compares; returns the exit status."""
    to = Path(args.to)
    if to.suffix not in SUFFIXES:
        raise UserError(f"--to {to}: must end in {', '.join(SUFFIXES)}")
    if not to.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {to.parent}")
    torch = None if to.suffix == ".safetensors" else _torch(to)

    from r23d_jax.training.checkpoint import load_checkpoint
    from r23d_jax.weights.state_dicts import to_torch

    loaded = load_checkpoint(args.workdir, args.which)
    state = to_torch(loaded.model)
    meta = {
        "model": loaded.config.model.name,
        "head": loaded.config.model.head.kind,
        "bn_epsilon": loaded.model.spec.bn_epsilon,
        "class_names": list(loaded.class_names),
        "preprocessing": {name: getattr(loaded.preprocessing, name) for name in loaded.preprocessing.__annotations__},
    }
    partial = to.with_name(f".{to.name}.partial")
    try:
        if torch is None:
            again = _through_safetensors(partial, state, {name: json.dumps(value) for name, value in meta.items()})
        else:
            again = _through_torch(torch, partial, state, meta)
        if again.keys() != state.keys() or not all(np.array_equal(again[name], state[name]) for name in state):
            raise UserError(f"{to}: what was written reads differently; nothing was kept. Is the disk sound?")
        os.replace(partial, to)
    finally:
        partial.unlink(missing_ok=True)
    count = sum(leaf.size for name, leaf in state.items() if not name.endswith(("num_batches_tracked", "mean", "var")))
    print(
        f"{loaded.path}: {meta['model']}, {meta['head']} head, {len(loaded.class_names)} classes, step {loaded.step:,}"
    )
    print(f"{to}: {len(state)} tensors, {count:,} parameters, read again and equal")
    print(
        f"in PyTorch: BN epsilon {meta['bn_epsilon']:g}, input (B, C, T, H, W); mean and std are in the file's metadata"
    )
    return 0


def _torch(to: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"--to {to}: writing {to.suffix} needs torch (pip install -r requirements-torch.txt); .safetensors does not"
        ) from None
    return torch


def _through_safetensors(path: Path, state: dict[str, np.ndarray], meta: dict[str, str]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file, save_file

    save_file(state, path, metadata=meta)
    return load_file(path)


def _through_torch(torch: Any, path: Path, state: dict[str, np.ndarray], meta: dict) -> dict[str, np.ndarray]:
    tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
    torch.save({"state_dict": tensors, **meta}, path)
    again = torch.load(path, weights_only=True)["state_dict"]
    return {name: value.numpy() for name, value in again.items()}
