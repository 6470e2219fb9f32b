"""python -m r23d_jax info [NAME]: the cost of each part of a network; or the names of all networks or weights."""

import argparse
import dataclasses
from typing import Any

from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.config import HEADS, TOKENS, HeadConfig, UserError
from r23d_jax.runtime.program import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument(
        "name", nargs="?", help="network, e.g. r2plus1d_18, or the name of published weights (default: list all names)"
    )
    parser.add_argument("--pretrained", action="store_true", help="list the published weights that have names here")
    parser.add_argument("--frames", type=int, default=16, help="frames per clip (default 16)")
    parser.add_argument("--size", type=int, default=112, help="height and width in pixels (default 112)")
    parser.add_argument("--classes", type=int, default=101, help="number of classes (default 101)")
    parser.add_argument("--head", choices=HEADS, default="avgpool", help="kind of head (default avgpool)")
    for earlier in ("--mesh", "--optimizer"):
        parser.add_argument(earlier, help=argparse.SUPPRESS)
    parser.add_argument(
        "--tokens", choices=TOKENS, help="tokens of the vit or attention_pool head (default: space_time)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a table; returns the exit status."""
    if args.mesh or args.optimizer:
        wanted = f"{command('plan')} --config=r2plus1d --devices=h100:8 --config.parallel.fsdp=8"
        raise UserError(f"{'--mesh' if args.mesh else '--optimizer'}: is now part of another command, e.g. {wanted}")
    if args.pretrained and args.name:
        raise UserError(
            f"--pretrained: lists all published weights; to see the network of one, leave it out: {args.name}"
        )
    if args.tokens and args.head not in ("vit", "attention_pool"):
        raise UserError(f"--tokens {args.tokens}: the {args.head} head has none; add --head vit")
    with json_document(args.json) as told:
        if args.pretrained:
            told |= _list_pretrained()
        elif args.name is None:
            told |= _list_models()
        else:
            told |= _show(args)
    return 0


def _show(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the cost of a network, and returns it for JSON."""
    from flax import nnx

    from r23d_jax import models
    from r23d_jax.models.complexity import count_parts
    from r23d_jax.weights.pretrained import PRETRAINED

    for flag in ("frames", "size", "classes"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least 1")
    head = HeadConfig(kind=args.head, tokens=args.tokens or TOKENS[0])
    if args.name in PRETRAINED:
        args.name = PRETRAINED[args.name].network

    def make() -> models.VideoNetwork:
        sizes = {"num_classes": args.classes, "num_frames": args.frames, "crop_size": args.size}
        return models.create_model(args.name, head=head, rngs=nnx.Rngs(0), **sizes)

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
    told: dict[str, Any] = {"network": args.name} | {
        name: getattr(args, name) for name in ("head", "frames", "size", "classes")
    }
    told["parts"] = [dataclasses.asdict(part) for part in parts]
    told |= dict(zip(("parameters", "macs", "activations"), totals, strict=True))
    return told


def _row(name: str, shape: str, parameters: int, macs: int, activations: int) -> str:
    return f"{name:8}{shape:>20}{parameters:>14,}{macs / 1e9:>10.3f}{activations * 4 / 2**20:>10.1f} MiB"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _list_models() -> dict[str, Any]:
    from r23d_jax.models.registry import FAMILIES

    print("family              depths                     (a name is family_depth, e.g. r2plus1d_18)")
    for family, spec in FAMILIES.items():
        print(f"{family:20}{', '.join(map(str, spec.depths)) or '(the name alone)'}")
    return {"families": {family: list(spec.depths) for family, spec in FAMILIES.items()}}


def _list_pretrained() -> dict[str, Any]:
    from r23d_jax.runtime.disk import CACHE, cache_folder
    from r23d_jax.weights.pretrained import PRETRAINED

    print(f"{'name':36}{'network':16}{'top-1':>7}{'MiB':>8}  {'trained on':30}license")
    for name, row in PRETRAINED.items():
        top1 = f"{row.accuracy[0]:.1f} %" if row.accuracy else "-"
        size = f"{row.mebibytes:.1f}" if row.mebibytes else "?"
        print(f"{name:36}{row.network:16}{top1:>7}{size:>8}  {row.data:30}{row.license}")
    print()
    print("top-1 as the publishers state it, each with a protocol of its own (docs/weights.md); not measured here.")
    print(f"Downloads are kept in {cache_folder('weights')}; the environment variable {CACHE} chooses another folder.")
    rows = {name: dataclasses.asdict(row) | {"mebibytes": row.mebibytes} for name, row in PRETRAINED.items()}
    return {"weights": rows, "cache": str(cache_folder("weights"))}
