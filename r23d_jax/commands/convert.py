"""python -m r23d_jax convert --from WEIGHTS --to OUT: weights of other code bases to ours, and ours to theirs."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from r23d_jax.commands import export
from r23d_jax.config import INFLATIONS, Config, HeadConfig, ModelConfig, Preprocessing, UserError

FIELDS = ("num_frames", "frame_stride", "short_side", "crop_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument(
        "--from",
        dest="source_path",
        required=True,
        metavar="WEIGHTS",
        help=".pth, .pt, .pth.tar, .safetensors, a TensorFlow checkpoint of I3D, or a run's folder",
    )
    parser.add_argument(
        "--to", required=True, metavar="OUT", help="a folder for a checkpoint, or a file (.safetensors, .pth, ...)"
    )
    parser.add_argument("--model", metavar="NAME", help="the network, e.g. r3d_18 (default: found from the weights)")
    parser.add_argument("--source", help="the code base, where names do not tell it (e.g. published)")
    parser.add_argument("--names", metavar="SOURCE", help="write a state dict under the names of this code base")
    parser.add_argument("--num-classes", type=int, help="another number of classes gets a new, random classifier")
    parser.add_argument("--class-names", metavar="FILE", help="one name a line, in the order of the logits")
    parser.add_argument("--inflate", choices=INFLATIONS, help="how 2D kernels become 3D ones (needs --model)")
    for field in FIELDS:
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, help="of the clips, if the source's is wrong")


def run(args: argparse.Namespace) -> int:
    """Converts, verifies what was written, and says what it found; returns the exit status."""
    source, to = Path(args.source_path), Path(args.to)
    for field in ("num_classes", *FIELDS):
        if getattr(args, field) is not None and getattr(args, field) < 1:
            raise UserError(f"--{field.replace('_', '-')} {getattr(args, field)}: must be at least 1")
    to_file = export.target_kind(to) in (*export.STATE_DICTS, *export.PORTABLE)
    if to_file:
        export.check_target(to)
    elif to.suffix:
        raise UserError(
            f"--to {to}: a checkpoint's folder has no ending; files end in "
            f"{', '.join((*export.STATE_DICTS, *export.PORTABLE))}"
        )
    elif to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: is there already; give a new folder")
    model, cfg, class_names, preprocessing, foreign = _read(args, source)
    if args.class_names:
        class_names = _class_names(Path(args.class_names), len(class_names))
    changed = {field: getattr(args, field) for field in FIELDS if getattr(args, field) is not None}
    preprocessing = dataclasses.replace(preprocessing, **changed)
    _describe(model, cfg, len(class_names), preprocessing, foreign)
    if to_file:
        export.write(to, model, cfg, class_names, preprocessing, args.names)
    else:
        _write_checkpoint(to, model, cfg, class_names, preprocessing)
    return 0


def _read(args: argparse.Namespace, path: Path) -> tuple[Any, ModelConfig, tuple[str, ...], Preprocessing, bool]:
    """The network, the config that builds it, class names, preprocessing, and whether that is only assumed."""
    from r23d_jax.weights.matching import is_2d
    from r23d_jax.weights.sources import SOURCES
    from r23d_jax.weights.state_dicts import convert
    from r23d_jax.weights.tables import ConversionError
    from r23d_jax.weights.tensorflow_checkpoint import read_weights

    if path.is_dir():
        from r23d_jax.checkpoint.checkpoint import load_checkpoint

        loaded = load_checkpoint(path)
        cfg = loaded.config.model
        if args.model not in (None, cfg.name):
            raise UserError(f"{loaded.path} is {cfg.name}, not {args.model}")
        print(f"from     {loaded.path}: a checkpoint of r23d_jax, step {loaded.step:,}")
        result = loaded.model, cfg, loaded.class_names, loaded.preprocessing, False
    else:
        arrays, meta = read_weights(path)
        if is_2d(arrays):
            return _inflated(args, path, arrays)
        try:
            converted = convert(arrays, args.model, args.source, meta=meta)
        except ConversionError as error:
            raise ConversionError(f"{path}: {error}") from None
        print(f"from     {path}: {SOURCES[converted.source].title}")
        for note in converted.notes:
            print(f"note     {note}")
        class_names = converted.class_names or tuple(f"class_{k}" for k in range(converted.num_classes))
        foreign = "config" not in meta
        result = converted.model, converted.config, class_names, converted.preprocessing, foreign
    if args.num_classes not in (None, len(result[2])):
        return _with_classifier(args.num_classes, *result)
    return result


def _inflated(args: argparse.Namespace, path: Path, arrays: Any) -> tuple:
    from flax import nnx

    from r23d_jax.models.functional import initialize
    from r23d_jax.models.registry import build_model
    from r23d_jax.weights.inflate import inflate
    from r23d_jax.weights.sources import IMAGENET, config_of

    if args.model is None:
        raise UserError(
            f"--from {path}: an image network; say what it is to become, e.g. --model r3d_18 for resnet18, or "
            "i3d_gamma for googlenet"
        )
    how, num_classes = args.inflate or "repeat", args.num_classes or 0
    cfg = config_of(args.model)
    cfg.head = HeadConfig(kind="avgpool" if num_classes else "none", dropout=0.0)
    if cfg.family not in ("i3d", "i3d_gamma"):
        cfg.stem_pool = "2d"  # as image networks have it
    frames, size = args.num_frames or IMAGENET.num_frames, args.crop_size or IMAGENET.crop_size
    model = initialize(
        lambda: build_model(cfg, num_classes=num_classes, num_frames=frames, crop_size=size, rngs=nnx.Rngs(0))
    )
    model = inflate(arrays, model, how)
    print(f"from     {path}: an image network, inflated ({how})")
    if cfg.stem_pool:
        print("note     it pools after its stem, as the image network does: config.model.stem_pool='2d'")
    if num_classes:
        print(f"note     the classifier of {num_classes} classes is random, unless the image network has as many")
    return model, cfg, tuple(f"class_{k}" for k in range(num_classes)), IMAGENET, True


def _with_classifier(
    num_classes: int,
    model: Any,
    cfg: ModelConfig,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    foreign: bool,
) -> tuple:
    """The same backbone with a new classifier of another number of classes."""
    from flax import nnx

    from r23d_jax.models.functional import initialize
    from r23d_jax.models.registry import build_model

    if cfg.head.kind == "none":
        cfg = dataclasses.replace(cfg, head=HeadConfig(kind="avgpool", dropout=0.0))
    new = initialize(
        lambda: build_model(
            cfg,
            num_classes=num_classes,
            num_frames=preprocessing.num_frames,
            crop_size=preprocessing.crop_size,
            rngs=nnx.Rngs(0),
        )
    )
    new.stem, new.stages = model.stem, model.stages
    if hasattr(model.head, "classifier"):
        classifier, head = new.head.classifier, model.head  # type: ignore[attr-defined]
        head.classifier = classifier
        new.head = head
    new.eval()
    print(f"note     the weights have {len(class_names)} classes; the classifier of {num_classes} is random")
    return new, cfg, tuple(f"class_{k}" for k in range(num_classes)), preprocessing, foreign


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--class-names {path}: cannot be read ({error})") from None
    if len(names) != count:
        raise UserError(f"--class-names {path}: {len(names)} names for {count} classes")
    return names


def _describe(model: Any, cfg: ModelConfig, num_classes: int, pre: Preprocessing, foreign: bool) -> None:
    from r23d_jax.weights.state_dicts import count_parameters

    spec = model.spec
    head = f"{cfg.head.kind} head, {num_classes} classes"
    if cfg.head.kind == "none":
        head = "no classifier (its output is the last feature map)"
    print(f"network  {cfg.name}, {head}, {count_parameters(model):,} parameters")
    rules = {"per_conv": "for every convolution (paper, VMZ)", "per_block": "once per block (torchvision)"}
    parts = [f"BN epsilon {spec.bn_epsilon:g}"]
    if "2plus1d" in getattr(spec, "convolutions", ()):
        parts.append(f"mid-planes {rules[spec.mid_planes]}, {spec.stem_mid_channels} in the stem")
    if hasattr(spec, "stem_pool"):
        parts.append(
            {"": "no pool after the stem", "2d": "a pool after the stem"}.get(spec.stem_pool, "a 3D pool there")
        )
    print(f"         {'; '.join(parts)}")
    mean, std = ("(" + ", ".join(f"{value:g}" for value in values) + ")" for values in (pre.mean, pre.std))
    print(
        f"input    {pre.num_frames} frames at stride {pre.frame_stride}, crop {pre.crop_size} of short side "
        f"{pre.short_side}, mean {mean}, std {std}"
    )
    if foreign:
        print("         (what the source trains with: weights do not hold it; --num-frames, --crop-size, ... set it)")


def _write_checkpoint(
    to: Path, model: Any, cfg: ModelConfig, class_names: tuple[str, ...], preprocessing: Preprocessing
) -> None:
    from r23d_jax.checkpoint.checkpoint import save_model

    whole = Config(model=cfg)
    whole.data = dataclasses.replace(whole.data, **dataclasses.asdict(preprocessing))
    save_model(to, model, whole, class_names)
    print(f"to       {to}: a checkpoint, read again and equal")
    print(f"         --config.init_from={to} starts a training from it")
