"""python -m r23d_jax info [NAME]: the cost of each part of a network; or the names of all networks or weights."""

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from r23d_jax.config import HEADS, TOKENS, HeadConfig, OptimizerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("name", nargs="?", help="network, e.g. r2plus1d_18 (default: list all names)")
    parser.add_argument("--pretrained", action="store_true", help="list the published weights that have names here")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip (default 16)")
    parser.add_argument("--size", type=int, default=112, help="height and width in pixels (default 112)")
    parser.add_argument("--classes", type=int, default=101, help="number of classes (default 101)")
    parser.add_argument("--head", choices=HEADS, default="avgpool", help="kind of head (default avgpool)")
    parser.add_argument("--mesh", default="", help="DATAxFSDP, e.g. 4x2: print the memory that each device needs")
    parser.add_argument("--optimizer", default=OptimizerConfig.name, help="optimizer for --mesh")
    parser.add_argument("--tokens", choices=TOKENS, default="space_time", help="of the vit and attention_pool heads")


def run(args: argparse.Namespace) -> int:
    """Prints a table; returns the exit status."""
    if args.pretrained:
        _list_pretrained()
        return 0
    from flax import nnx

    from r23d_jax import models
    from r23d_jax.models.complexity import count_parts

    if args.name is None:
        _list_models()
        return 0
    for flag in ("frames", "size", "classes"):
        if getattr(args, flag) < 1:
            print(f"error: --{flag} {getattr(args, flag)}: must be at least 1", file=sys.stderr)
            return 2
    head = HeadConfig(kind=args.head, tokens=args.tokens)

    def make() -> models.VideoNetwork:
        sizes = {"num_classes": args.classes, "num_frames": args.frames, "crop_size": args.size}
        return models.create_model(args.name, head=head, rngs=nnx.Rngs(0), **sizes)

    if args.mesh and not re.fullmatch(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", args.mesh):
        print(f"error: --mesh {args.mesh}: must be DATAxFSDP, e.g. 4x2 for eight devices", file=sys.stderr)
        return 2
    parts = count_parts(make, (args.frames, args.size, args.size, 3))
    print(f"{args.name}, {args.head} head, {args.frames} frames of {args.size} x {args.size}, {args.classes} classes")
    print()
    print(f"{'part':8}{'output':>20}{'parameters':>14}{'GMACs':>10}{'activations':>14}")
    print(f"{'input':8}{_shape((args.frames, args.size, args.size, 3)):>20}")
    for part in parts:
        print(_row(part.name, _shape(part.shape), part.parameters, part.macs, part.activations))
    totals = [sum(getattr(part, name) for part in parts) for name in ("parameters", "macs", "activations")]
    print(_row("total", "", *totals))
    print()
    print("For one clip. GMACs: billions of multiply-adds in convolutions and matrix products. Activations: their")
    print("output in float32; training keeps about this much per clip (half in bfloat16), plus BN's copies.")
    if args.mesh:
        _print_mesh(make, args.mesh, args.optimizer)
    return 0


def _print_mesh(make_model: Callable[[], Any], mesh_text: str, optimizer: str) -> None:
    """Prints what training keeps on each device between steps, from shapes and the sharding rules of a real run."""
    import jax
    from flax import nnx

    from r23d_jax.models.functional import values
    from r23d_jax.runtime import parallel
    from r23d_jax.training.optimizer import make_optimizer

    data, fsdp = map(int, mesh_text.split("x"))
    mesh = parallel.abstract_mesh(data, fsdp)
    params, batch_stats = values(nnx.eval_shape(make_model))
    tx, _ = make_optimizer(OptimizerConfig(name=optimizer), params, steps_per_epoch=1, num_steps=1)
    state = {"parameters": params, "BN statistics": batch_stats, f"{optimizer} state": jax.eval_shape(tx.init, params)}
    print()
    print(f"{data * fsdp} devices, parameters and optimizer state split over {fsdp} of them:")
    print(f"{'':16}{'total':>14}{'per device':>14}")
    alone = parallel.abstract_mesh(1, 1)
    totals = [0, 0]
    for name, tree in state.items():
        sizes = [parallel.bytes_per_device(tree, mesh) for mesh in (alone, mesh)]
        totals = [total + size for total, size in zip(totals, sizes, strict=True)]
        print(f"{name:16}{sizes[0] / 2**20:>10.2f} MiB{sizes[1] / 2**20:>10.2f} MiB")
    print(f"{'total':16}{totals[0] / 2**20:>10.2f} MiB{totals[1] / 2**20:>10.2f} MiB")
    whole = parallel.bytes_per_device(params, alone) / 2**20
    print(f"While a step runs, each device also holds all parameters and their gradients: {2 * whole:.1f} MiB.")
    print("A moving average (train.ema_decay) takes as much memory as the parameters.")
    summed, gathered = (size / 2**20 for size in parallel.bytes_moved(params, mesh))
    print(
        f"A step adds up gradients: {summed:.1f} MiB sent and received by each device, times train.accumulate; "
        f"gathers parameters: {gathered:.1f} MiB."
    )


def _row(name: str, shape: str, parameters: int, macs: int, activations: int) -> str:
    return f"{name:8}{shape:>20}{parameters:>14,}{macs / 1e9:>10.3f}{activations * 4 / 2**20:>10.1f} MiB"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _list_models() -> None:
    from r23d_jax.models.registry import FAMILIES

    print("family              depths                     (a name is family_depth, e.g. r2plus1d_18)")
    for family, spec in FAMILIES.items():
        print(f"{family:20}{', '.join(map(str, spec.depths)) or '(the name alone)'}")


def _list_pretrained() -> None:
    from r23d_jax.weights.download import CACHE, cache_folder
    from r23d_jax.weights.pretrained import PRETRAINED

    print(f"{'name':36}{'network':16}{'top-1':>7}{'MiB':>8}  {'trained on':30}license")
    for name, row in PRETRAINED.items():
        top1 = f"{row.accuracy[0]:.1f} %" if row.accuracy else "-"
        size = f"{row.mebibytes:.1f}" if row.mebibytes else "?"
        print(f"{name:36}{row.network:16}{top1:>7}{size:>8}  {row.data:30}{row.license}")
    print()
    print("top-1 as the publishers state it, each with a protocol of its own (docs/weights.md); not measured here.")
    print(f"Downloads are kept in {cache_folder('weights')}; the environment variable {CACHE} chooses another folder.")
