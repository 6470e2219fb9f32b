"""python -m r23d_jax export --workdir DIR --to FILE: writes a trained network for other programs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r23d_jax.commands.json_output import add_json, json_document
from r23d_jax.config import CHECKPOINTS, EvalConfig, ModelConfig, Preprocessing, UserError
from r23d_jax.runtime import remote

if TYPE_CHECKING:
    from r23d_jax.checkpoint.checkpoint import LoadedModel

STATE_DICTS = (".safetensors", ".pth", ".pt")
PORTABLE = (".stablehlo", ".savedmodel", ".tflite", ".onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    parser.add_argument("--workdir", required=True, help="a run's folder, or one checkpoint in it")
    parser.add_argument(
        "--to",
        required=True,
        metavar="OUT",
        help=f"output that ends in {', '.join((*STATE_DICTS, *PORTABLE))}; or a folder for the Hub",
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="with a folder: upload it to this repository of the Hub")
    parser.add_argument("--which", choices=CHECKPOINTS, default="best", help="which checkpoint (default: best)")
    parser.add_argument("--names", metavar="SOURCE", help="code base whose tensor names a state dict gets, e.g. hara")
    add_definition(parser)
    add_json(parser)


def add_definition(parser: argparse.ArgumentParser) -> None:
    """Declares --definition."""
    text = "write a PyTorch file beside a .pth, whose load() builds the network without this program"
    parser.add_argument("--definition", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Writes the file, reads it again and compares; returns the exit status."""
    with json_document(args.json) as told:
        told |= _run(args)
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    remote.refuse("--to", args.to)
    to = Path(args.to)
    if not to.suffix and target_kind(to) not in PORTABLE:
        return _save(args, to)
    if args.push:
        raise UserError(f"--push {args.push}: needs a folder in --to, whose name has no dot, not {to}")
    check_target(to, args.definition, args.names)
    from r23d_jax.checkpoint.checkpoint import load_checkpoint

    loaded = load_checkpoint(args.workdir, args.which, compute_dtype="float32")  # so in the file, for all its platforms
    print(f"from     {_origin(loaded)}")
    cfg, names, pre = loaded.config, loaded.class_names, loaded.preprocessing
    videos = loaded.videos + loaded.init_videos
    wrote = write(to, loaded.model, cfg.model, names, pre, cfg.eval, args.names, args.definition, videos)
    return _told(loaded) | wrote


def _origin(loaded: "LoadedModel") -> str:
    which = f", {loaded.chosen}" if loaded.chosen else ""
    what = f"{loaded.name}, {loaded.config.model.head.kind} head, {len(loaded.class_names)} classes"
    return f"{loaded.path}: {what}, step {loaded.step:,}{which}"


def _told(loaded: "LoadedModel") -> dict[str, Any]:
    """What JSON tells about a network."""
    from r23d_jax.weights.state_dicts import describe_views

    network = {"network": loaded.name, "head": loaded.config.model.head.kind, "classes": len(loaded.class_names)}
    views = {"eval": describe_views(loaded.config.eval)}
    return {"from": str(loaded.path), "step": loaded.step, "chosen": loaded.chosen} | network | views


def _save(args: argparse.Namespace, to: Path) -> dict[str, Any]:
    """Writes a folder for the Hub, and uploads it if that is asked for."""
    if args.definition or args.names:
        raise UserError(f"--to {to}: a folder has no --definition and no --names; give a .pth file for them")
    from r23d_jax.evaluation.trained import load_model

    model = load_model(args.workdir, args.which)
    model.save_pretrained(to)
    print(f"from     {_origin(model)}")
    print(f"to       {to}: model.safetensors, read back and equal; config.json; README.md, the model card")
    told = _told(model) | {"to": str(to)}
    if args.push:
        from r23d_jax.weights.saved import import_hub

        import_hub().utils.disable_progress_bars()  # what escapes printed text would tear them
        print(f"         uploading it to {args.push}", flush=True)
        told["pushed"] = model.push_to_hub(args.push)
        print(f"pushed   {told['pushed']}")
    return told


def target_kind(to: Path) -> str:
    """The suffix, which decides what to write; a bare `stablehlo` or `savedmodel` counts as one."""
    return to.suffix or f".{to.name}"


def check_target(to: Path, definition: bool = False, names: str | None = None) -> None:
    """Raises UserError, before any work, for an unknown suffix, a missing folder, or a missing package."""
    if definition and (to.suffix not in (".pth", ".pt") or names):
        raise UserError("--definition: needs a .pth in --to, and no --names, because the definition has its own")
    if names and target_kind(to) not in STATE_DICTS:
        raise UserError(
            f"--names {names}: only a state dict has the names of a code base; --to {to} must end in "
            f"{', '.join(STATE_DICTS)}"
        )
    if target_kind(to) not in (*STATE_DICTS, *PORTABLE):
        known = ", ".join((*STATE_DICTS, *PORTABLE))
        raise UserError(f"--to {to}: must end in {known}; or be a folder for the Hub, whose name has no dot")
    if not to.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {to.parent}")
    if to.is_dir() and target_kind(to) != ".savedmodel":
        raise UserError(f"--to {to}: is a folder")
    if to.suffix in (".pth", ".pt"):
        from r23d_jax.weights.files import import_torch

        import_torch(to)
    if target_kind(to) in (".savedmodel", ".tflite", ".onnx"):
        from r23d_jax.weights import portable

        there = {path.name for path in to.iterdir()} if to.is_dir() else set()
        if there - portable.SAVEDMODEL_FILES or (there and portable.META not in there):
            raise UserError(f"--to {to}: holds other files, which must not be replaced; give a new folder")
        (portable.import_onnx if target_kind(to) == ".onnx" else portable.import_tensorflow)(to)


def write(
    to: Path,
    model: Any,
    cfg: ModelConfig,
    class_names: tuple[str, ...],
    preprocessing: Preprocessing,
    views: EvalConfig,
    names: str | None = None,
    definition: bool = False,
    videos: str = "",
) -> dict[str, Any]:
    """Writes a network in the form that the suffix of `to` asks for, reads it back, compares, and prints the result.

    A state dict also keeps the videos that it was trained on, as `trained_videos.digests`.

    Raises:
      UserError: if it cannot be written, or reads differently.
    """
    from r23d_jax.weights.state_dicts import count_parameters, describe, to_arrays

    meta = describe(model, cfg, class_names, preprocessing, views)
    kind = target_kind(to)
    if kind in PORTABLE:
        from r23d_jax.weights import portable

        if kind == ".onnx":
            error = portable.write_onnx(to, model, cfg.head, preprocessing, meta)
        else:
            writers = {
                ".stablehlo": portable.write_stablehlo,
                ".savedmodel": portable.write_savedmodel,
                ".tflite": portable.write_tflite,
            }
            error = writers[kind](to, model, preprocessing, meta)
        size = preprocessing.crop_size
        batch = 1 if kind == ".tflite" else "B"
        shape = f"({batch}, {preprocessing.read_frames}, {size}, {size}, {len(preprocessing.mean)}) uint8"
        what = f"({batch}, {len(class_names)}) float32 logits" if class_names else "the last feature map, float32"
        print(f"to       {to}: {shape} -> {what}")
        print(f"         read back and run: the same values within {error:.1e} of the largest")
        return {"to": str(to), "error": error}

    if definition:
        from r23d_jax.weights import portable

        error = portable.write_torch(to, model, cfg.head, preprocessing, meta)
        print(f"to       {to} and {to.name}.json: load() in {portable.DEFINITION} reads them and needs torch alone")
        print(f"         read back and run: the same values within {error:.1e} of the largest")
        return {"to": str(to), "error": error}

    from r23d_jax.weights import files
    from r23d_jax.weights.matching import differs_from_class
    from r23d_jax.weights.sources import SOURCES, source_of

    state = to_arrays(model, names)
    files.write(to, state, meta | ({"videos": videos} if videos else {}))
    print(f"to       {to}: {len(state)} tensors, {count_parameters(model):,} parameters, read back and equal")
    source = names or source_of(model)
    title = SOURCES[source].title
    where = "the file's metadata" if to.suffix == ".safetensors" else f"{to.name}.json"
    print(f"         names of {title}; BN epsilon {model.spec.bn_epsilon:g}; input (B, C, T, H, W)")
    other, unlike = differs_from_class(model, source)
    if unlike:
        some = ", ".join(f"{name} is {here!r}, not {there!r}" for name, (here, there) in unlike.items())
        print(
            f"WARNING  a class of {SOURCES[other].title} may load it, and computes something else: {some}. Use "
            "--definition"
        )
    print(f"         class names, mean and std, and the clips of an evaluation are in {where}")
    return {"to": str(to), "error": 0.0, "tensors": len(state)}
