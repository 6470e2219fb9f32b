"""python -m r23d_jax info [NAME]: what a network costs, part by part; or the names of all networks."""

import argparse
import sys

from r23d_jax.config import HEADS, TOKENS, HeadConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("name", nargs="?", help="e.g. r2plus1d_18; without it, all names are listed")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (default 16)")
    parser.add_argument("--size", type=int, default=112, help="height and width in pixels (default 112)")
    parser.add_argument("--classes", type=int, default=101, help="classes (default 101)")
    parser.add_argument("--head", choices=HEADS, default="avgpool")
    parser.add_argument("--tokens", choices=TOKENS, default="space_time", help="of the vit and attention_pool heads")


def run(args: argparse.Namespace) -> int:
    """Prints a table; returns the exit status."""
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
        return models.create_model(
            args.name,
            num_classes=args.classes,
            head=head,
            num_frames=args.frames,
            crop_size=args.size,
            rngs=nnx.Rngs(0),
        )

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
    print(
        "For one clip. GMACs: multiply-adds of convolutions and matrix products, in billions. Activations: what those"
    )
    print("write, in float32; training keeps about this much per clip (half in bfloat16), besides BN's copies.")
    return 0


def _row(name: str, shape: str, parameters: int, macs: int, activations: int) -> str:
    return f"{name:8}{shape:>20}{parameters:>14,}{macs / 1e9:>10.3f}{activations * 4 / 2**20:>10.1f} MiB"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _list_models() -> None:
    from r23d_jax.models.registry import FAMILIES, INCEPTIONS, depths_of

    print("family              depths                     (a name is family_depth, e.g. r2plus1d_18)")
    for family in FAMILIES:
        print(f"{family:20}{', '.join(map(str, depths_of(family)))}")
    for name in INCEPTIONS:
        print(f"{name:20}(the name alone)")
