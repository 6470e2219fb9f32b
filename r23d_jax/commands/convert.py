"""python -m r23d_jax convert --from WEIGHTS --to OUT: converts weights from and to other code bases."""

import argparse
import dataclasses
import functools
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r23d_jax.commands import export
from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.config import (
    INFLATIONS,
    INPUTS,
    Config,
    HeadConfig,
    ModelConfig,
    Preprocessing,
    UserError,
    look_up,
    with_preprocessing,
)
from r23d_jax.runtime import remote
from r23d_jax.runtime.mirror import weights_at

FIELDS = {
    "num_frames": "frames of a clip",
    "frame_stride": "frames from one frame of a clip to the next",
    "short_side": "pixels of the shorter side of a frame",
    "crop_size": "pixels of the side of a crop",
}

if TYPE_CHECKING:
    from r23d_jax.weights.state_dicts import Converted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    kinds = ".pth, .pt, .pth.tar, .ckpt, .pyth, .safetensors, a TensorFlow checkpoint of I3D, or a run's folder"
    parser.add_argument("--from", dest="source_path", required=True, metavar="WEIGHTS", help=kinds)
    targets = "a folder for a checkpoint, or a file (.safetensors, .pth, ...)"
    parser.add_argument("--to", required=True, metavar="OUT", help=targets)
    parser.add_argument("--model", metavar="NAME", help="the network, e.g. r3d_18 (default: found from the weights)")
    parser.add_argument("--source", help="the code base, if the tensor names do not tell (e.g. published)")
    parser.add_argument("--names", metavar="SOURCE", help="write a state dict under the names of this code base")
    export.add_definition(parser)
    parser.add_argument("--num-classes", type=int, help="replace the classifier by a random one of so many classes")
    parser.add_argument(
        "--class-names", metavar="FILE", help="text file with one class name per line, in the order of the logits"
    )
    parser.add_argument("--inflate", choices=INFLATIONS, help="how 2D kernels become 3D ones (needs --model)")
    for field, meaning in FIELDS.items():
        help_text = f"{meaning} in the training of the weights (default: as usual for the source)"
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, help=help_text)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Converts, verifies the output, and prints what it found; returns the exit status."""
    with json_document(args.json) as told:
        told |= _run(args)
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    from r23d_jax.weights.state_dicts import describe_views

    remote.refuse("--to", args.to)
    source, to = weights_at(args.source_path), Path(args.to)
    for field in ("num_classes", *FIELDS):
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise UserError(f"--{field.replace('_', '-')} {getattr(args, field)}: must be at least 1")
    to_file = export.target_kind(to) in (*export.STATE_DICTS, *export.PORTABLE)
    if to_file or args.definition or args.names:
        export.check_target(to, args.definition, args.names)
    elif to.suffix:
        raise UserError(
            f"--to {to}: a checkpoint's folder has no suffix; files end in "
            f"{', '.join((*export.STATE_DICTS, *export.PORTABLE))}"
        )
    elif to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: already exists; give a new folder")
    found = _read(args, source)
    channels = found.model.in_channels
    if not to_file and channels != look_up(INPUTS, found.preprocessing.input, "config.data.input").channels:
        raise UserError(
            f"{source}: the network reads clips of {channels} channels, and this program has clips of 3 (RGB), 2 "
            "(flow) or, where its preprocessing says so, 6 (frames and differences); convert it to a file, e.g. --to "
            "model.safetensors, for use in Python"
        )
    class_names = found.class_names or tuple(f"class_{k}" for k in range(found.num_classes))
    if args.class_names:
        class_names = _class_names(Path(args.class_names), found.num_classes)
    changed: dict[str, Any] = {field: getattr(args, field) for field in FIELDS if getattr(args, field) is not None}
    if args.frame_stride:
        changed["frame_seconds"] = 0.0
    preprocessing = dataclasses.replace(found.preprocessing, **changed)
    _check_clip(found, preprocessing)
    _describe(found, preprocessing)
    if to_file:
        videos, how = found.videos + found.init_videos, (args.names, args.definition)
        wrote = export.write(to, found.model, found.config, class_names, preprocessing, found.views, *how, videos)
    else:
        _write_checkpoint(to, found, class_names, preprocessing)
        wrote = {"to": str(to), "error": 0.0}
    network = {"network": found.name, "head": found.config.head.kind, "classes": found.num_classes}
    known = {"preprocessing": dataclasses.asdict(preprocessing), "assumed": found.assumed, "notes": found.notes}
    return {"from": found.origin, "eval": describe_views(found.views)} | network | known | wrote


def _read(args: argparse.Namespace, path: Path) -> "Converted":
    from r23d_jax.checkpoint.read import read_network

    found = read_network(
        path,
        functools.partial(_inflated, args),
        name=args.model,
        source=args.source,
        log=functools.partial(print, file=sys.stderr),
    )
    print(f"from     {found.origin}")
    was_image = not found.source
    if args.inflate and not was_image:
        raise UserError(f"--inflate {args.inflate}: {path} is no image network, so nothing is inflated")
    if args.num_classes is not None and not was_image:
        found = _with_classifier(args.num_classes, found)
    for note in found.notes:
        print(f"note     {note}")
    return found


def _inflated(args: argparse.Namespace, arrays: Any) -> "Converted":
    from r23d_jax.models.registry import model_config, model_spec
    from r23d_jax.weights.inflate import inflate
    from r23d_jax.weights.sources import IMAGENET, SYMMETRIC
    from r23d_jax.weights.state_dicts import Converted

    if args.model is None:
        raise UserError(
            f"--from {args.source_path}: an image network; choose the video network with --model, e.g. --model r3d_18 "
            "for resnet18, or i3d_gamma for googlenet"
        )
    how, num_classes = args.inflate or "repeat", args.num_classes or 0
    cfg = model_config(args.model)
    cfg.head = HeadConfig(kind="avgpool" if num_classes else "none", dropout=0.0)
    notes = []
    pre = IMAGENET
    if model_spec(args.model).image_network == "googlenet":
        pre = dataclasses.replace(pre, mean=SYMMETRIC[0], std=SYMMETRIC[1])
        notes.append(
            "mean and std are 0.5, because torchvision gives its weights with transform_input=True, which makes such "
            "pixels of normalized ones"
        )
    if model_spec(args.model).image_network == "resnet":
        cfg.stem_pool = "2d"
        notes.append("it pools after its stem, as the image network does: config.model.stem_pool='2d'")
    if num_classes:
        notes.append(
            f"the classifier of {num_classes} classes is random, unless the image network has that many classes"
        )
    changed = {field: getattr(args, field) for field in ("num_frames", "crop_size") if getattr(args, field)}
    random = _random(cfg, num_classes, dataclasses.replace(pre, **changed))
    model, origin = inflate(arrays, random, how), f"an image network, inflated ({how})"
    return Converted(model, cfg, num_classes, "", (), pre, tuple(notes), origin)


def _with_classifier(num_classes: int, found: "Converted") -> "Converted":
    """The same backbone with a random classifier."""
    cfg = found.config
    if cfg.head.kind == "none":
        cfg = dataclasses.replace(cfg, head=HeadConfig(kind="avgpool", dropout=0.0))
    new = _random(cfg, num_classes, found.preprocessing)
    new.stem, new.stages = found.model.stem, found.model.stages
    if hasattr(found.model.head, "classifier"):
        head: Any = found.model.head
        head.classifier, new.head = new.head.classifier, head
    new.eval()
    note = f"the weights have {found.num_classes} classes; the classifier of {num_classes} is random"
    return dataclasses.replace(
        found, model=new, config=cfg, num_classes=num_classes, class_names=(), notes=(*found.notes, note)
    )


def _random(cfg: ModelConfig, num_classes: int, pre: Preprocessing) -> Any:
    from flax import nnx

    from r23d_jax.models.functional import initialize
    from r23d_jax.models.registry import build_model

    return initialize(
        lambda: build_model(
            cfg, num_classes=num_classes, num_frames=pre.num_frames, crop_size=pre.crop_size, rngs=nnx.Rngs(0)
        )
    )


def _check_clip(found: "Converted", pre: Preprocessing) -> None:
    """Refuses a crop larger than the frame, and a clip that the head has no positions for."""
    from flax import nnx

    from r23d_jax.models.functional import flatten, values
    from r23d_jax.models.registry import build_model

    if pre.crop_size > pre.short_side:
        raise UserError(
            f"the crop of {pre.crop_size} pixels is larger than the short side of {pre.short_side}: set both "
            "--crop-size and --short-side"
        )

    def wanted() -> Any:
        frames, size = pre.num_frames, pre.crop_size
        return build_model(
            found.config, num_classes=found.num_classes, num_frames=frames, crop_size=size, rngs=nnx.Rngs(0)
        )

    shapes = [
        {path: leaf.shape for path, leaf in flatten(values(model)[0]).items()}
        for model in (found.model, nnx.eval_shape(wanted))
    ]
    if other := [path for path, shape in shapes[0].items() if shape != shapes[1].get(path)]:
        sizes = [" x ".join(map(str, side[other[0]][:-1])) for side in shapes]
        raise UserError(
            f"{'.'.join(other[0])}: the weights have {sizes[0]} places, and clips of {pre.num_frames} frames of "
            f"{pre.crop_size} pixels need {sizes[1]}: leave --num-frames and --crop-size out, or start a training from "
            "the weights with config.init_from, which interpolates them"
        )


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names {path}: cannot be read ({error})") from None
    if len(names) != count:
        raise UserError(f"--class-names {path}: {len(names)} names for {count} classes")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--class-names {path}: has {twice[0]!r} more than once; give each class a name of its own")
    return names


def _describe(found: "Converted", pre: Preprocessing) -> None:
    from r23d_jax.models.video_resnet import VideoResNetSpec
    from r23d_jax.weights.state_dicts import count_parameters

    spec, kind = found.model.spec, found.config.head.kind
    head = f"{kind} head, {found.num_classes} classes"
    if kind == "none":
        head = "no classifier (its output is the last feature map)"
    print(f"network  {found.name}, {head}, {count_parameters(found.model):,} parameters")
    parts = [f"BN epsilon {spec.bn_epsilon:g}"]
    if isinstance(spec, VideoResNetSpec):
        rules = {"per_conv": "for every convolution (paper, VMZ)", "per_block": "once per block (torchvision)"}
        pools = {"none": "no pool after the stem", "2d": "a pool after the stem", "3d": "a 3D pool there"}
        if "2plus1d" in spec.convolutions:
            parts.append(f"mid-planes {rules[spec.mid_planes]}, {spec.stem_mid_channels} in the stem")
        parts.append(pools[spec.stem_pool])
    print(f"         {'; '.join(parts)}")
    mean, std = ("(" + ", ".join(f"{value:g}" for value in values) + ")" for values in (pre.mean, pre.std))
    pace = f"every {pre.frame_seconds:g} s" if pre.frame_seconds else f"at stride {pre.frame_stride}"
    print(
        f"input    {pre.num_frames} frames {pace}, crop {pre.crop_size} of short side "
        f"{pre.short_side}, mean {mean}, std {std}"
    )
    if found.assumed:
        print("         (the source's usual values: weights do not store them; change them with --num-frames, ...)")


def _write_checkpoint(to: Path, found: "Converted", class_names: tuple[str, ...], preprocessing: Preprocessing) -> None:
    from r23d_jax.checkpoint.checkpoint import save_model

    whole = Config(model=found.config, eval=found.views)
    whole.data = with_preprocessing(found.data or whole.data, preprocessing)
    known = {"videos": found.videos, "init_videos": found.init_videos}
    try:
        save_model(to, found.model, whole, class_names, preprocessing, **known)
    except UserError:
        shutil.rmtree(to, ignore_errors=True)  # `run` has refused a folder that held anything
        raise
    print(f"to       {to}: a checkpoint, read back and equal")
    print(f"         --config.init_from={to} starts a training from it")
