"""A trained network as a file that runs without this code: StableHLO, a SavedModel, LiteRT (.tflite), ONNX or PyTorch.

All but the last take the bytes of clips, (B, T, H, W, C) uint8 for any B, and give (B, num_classes) float32 logits;
normalization is inside. T is `Preprocessing.read_frames`.
"""

import contextlib
import dataclasses
import io
import json
import runpy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.extend.mlir.passmanager import PassManager

from r23d_jax.config import HeadConfig, Preprocessing, UserError
from r23d_jax.models.convolution import use_formulation
from r23d_jax.models.functional import split_model
from r23d_jax.models.inception import InceptionSpec
from r23d_jax.models.network import VideoNetwork
from r23d_jax.models.preprocess import prepare_video
from r23d_jax.models.video_resnet import VideoResNetSpec
from r23d_jax.runtime import disk
from r23d_jax.weights import files
from r23d_jax.weights.sources import definition_source
from r23d_jax.weights.state_dicts import to_arrays

PLATFORMS = ("cpu", "cuda", "tpu")
STABLEHLO = "1.0.0"  # the version in a SavedModel, of mid-2024
DEFINITION = "r23d_torch.py"  # beside a .pth, on demand
BACKBONES = {VideoResNetSpec: "resnet", InceptionSpec: "inception"}  # their names in it
SAVEDMODEL_FILES = {"r23d_jax.json", "assets", "variables", "saved_model.pb", "fingerprint.pb"}
META = "r23d_jax.json"  # in a SavedModel's folder; beside a StableHLO file it is called <file>.json
# The file may use other convolutions: float32 rounding through the network
TOLERANCE = 1e-3


class ExportError(UserError):
    """A network could not be written in a portable form; the message says why."""


def write_stablehlo(path: Path, model: VideoNetwork, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes `jax.export`'s serialized StableHLO for CPU, CUDA and TPU, reads it again and compares logits.

    Args:
      path: of the file; `<path>.json` gets `meta`.
      meta: JSON values: class names, preprocessing.

    Returns:
      The largest difference of logits after reading it again, relative to the largest logit.

    Raises:
      ExportError: if the file computes something else; nothing is kept then.
    """
    data = bytes(_exported(_function(model, pre), model, pre).serialize())
    return _write_file(path, data, model, pre, meta, lambda data: jax.export.deserialize(bytearray(data)).call)


def write_tflite(path: Path, model: VideoNetwork, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes a LiteRT (TensorFlow Lite) file of built-in operators, for one clip; otherwise as `write_stablehlo`.

    Its signature takes `video` (1, T, H, W, C) uint8 and returns `logits`.

    Raises:
      ExportError: if TensorFlow is missing or cannot convert the network.
    """
    tf, xla = import_tensorflow(path)
    module, signatures = _tf_module(tf, xla, _exported(_function(model, pre), model, pre, batch=1))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [signatures.get_concrete_function()], trackable_obj=module
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # TensorFlow narrates
            data = converter.convert()
    except Exception as error:  # of types that TensorFlow keeps private
        raise ExportError(
            f"{path}: TensorFlow {tf.__version__} cannot convert this network "
            f"({str(error).splitlines()[0][-200:]}); write .onnx or .stablehlo"
        ) from None

    def load(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
            network = tf.lite.Interpreter(model_content=data)
        run = network.get_signature_runner()
        return lambda video: np.concatenate([run(video=clip[None])["logits"] for clip in video])

    return _write_file(path, data, model, pre, meta, load)


def write_onnx(path: Path, model: VideoNetwork, head: HeadConfig, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes ONNX by way of the torch definition and runs it with onnxruntime; otherwise as `write_stablehlo`.

    Its input is called `video`, its output `logits`.

    Raises:
      ExportError: if a package is missing, or the network has no torch definition.
    """
    torch, runtime = import_onnx(path)
    from r23d_jax.weights import torch_definition  # imports torch

    network = torch_definition.build(describe(model, head, len(meta["class_names"])))
    state = to_arrays(model, definition_source(model))
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    network.preprocessing = dataclasses.asdict(pre)

    class FromClips(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, video: Any) -> Any:
            values = self.network(self.network.prepare(video))
            return values if values.ndim == 2 else values.movedim(1, -1)

    clips = torch.zeros((2, *_clip_shape(pre)), dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # torch narrates and warns of itself
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            FromClips().eval(),
            (clips,),
            input_names=["video"],
            output_names=["logits"],
            dynamic_shapes={"video": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # as it is without a file to write

    def load(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
        session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return lambda video: session.run(["logits"], {"video": video})[0]

    return _write_file(path, program.model_proto.SerializeToString(), model, pre, meta, load)


def write_savedmodel(path: Path, model: VideoNetwork, pre: Preprocessing, meta: Mapping[str, Any]) -> float:
    """Writes a TensorFlow SavedModel; otherwise as `write_stablehlo`.

    The loaded object is called on clips and returns logits; its signature `serving_default` takes `video` and returns
    `{"logits": ...}`.

    Raises:
      ExportError: if TensorFlow is missing, or cannot run what this version of jax writes.
    """
    tf, xla = import_tensorflow(path)
    apply = _function(model, pre)
    module, signatures = _tf_module(tf, xla, _exported(apply, model, pre))
    with disk.replacing(path) as partial:
        with contextlib.redirect_stderr(io.StringIO()):  # TensorFlow narrates where it writes
            tf.saved_model.save(module, str(partial), signatures)
        again = tf.saved_model.load(str(partial))

        def run(video: np.ndarray) -> np.ndarray:
            try:
                return again(tf.constant(video)).numpy()
            except tf.errors.OpError as error:
                raise ExportError(
                    f"{path}: TensorFlow {tf.__version__} cannot run what jax {jax.__version__} writes "
                    f"({str(error).splitlines()[0][:200]}); write .stablehlo, or update tensorflow"
                ) from None

        error = _compare(path, model, pre, apply, run)
        (partial / META).write_text(json.dumps(dict(meta), indent=2) + "\n", encoding="utf-8")
    return error


def write_torch(
    path: Path, model: VideoNetwork, head: HeadConfig, pre: Preprocessing, meta: Mapping[str, Any]
) -> float:
    """Writes a state dict, and `DEFINITION` beside it, whose `load(path)` gives a torch module without this code.

    Args:
      path: of the state dict, .pth or .pt; `<path>.json` gets `meta` and, as `torch`, what the definition builds from.

    Returns:
      The largest difference of the module's logits, relative to the largest logit.

    Raises:
      WriteError: if a file cannot be written.
      ExportError: if the module computes something else; earlier files are untouched then.
    """
    torch = files.import_torch(path)
    about = describe(model, head, len(meta["class_names"]))
    # Tried in a folder of its own, so that earlier files stay if these are wrong
    with disk.writing(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        trial = Path(folder) / path.name
        files.write(trial, to_arrays(model, definition_source(model)), {**meta, "torch": about})
        disk.write_atomically(trial.with_name(DEFINITION), definition())
        try:
            network = runpy.run_path(str(trial.with_name(DEFINITION)))["load"](trial)
        except RuntimeError as error:  # torch's, for names or shapes that do not fit
            raise ExportError(f"{path}: the definition does not take these weights ({error})") from error

        def run(video: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                values = network(network.prepare(torch.from_numpy(video)))
            return (values if values.ndim == 2 else values.movedim(1, -1)).numpy()

        error = _compare(path, model, pre, _function(model, pre), run)
        for name in (DEFINITION, f"{path.name}.json", path.name):
            trial.with_name(name).replace(path.with_name(name))
    return error


def definition() -> str:
    """The text of a Python file that defines all networks in PyTorch."""
    backbones, heads = (
        Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("torch_definition.py", "torch_heads.py")
    )
    imports, _, classes = heads.partition("\n\n\n")
    assert imports.endswith("from torch.nn import functional")  # as in the other file, so they need not be repeated
    return backbones.replace("\nfrom r23d_jax.weights.torch_heads import HEADS\n", "") + "\n\n" + classes


def describe(model: VideoNetwork, head: HeadConfig, num_classes: int) -> dict[str, Any]:
    """The fields from which the torch definition builds the backbone and the head of a network: JSON values.

    Raises:
      ExportError: if it does not have this kind of backbone.
    """
    if type(model.spec) not in BACKBONES:
        raise ExportError(
            f"{model.spec.family}: has no torch definition; write .safetensors, or .pth without --definition"
        )
    about = dataclasses.asdict(head)
    if hasattr(model.head, "tokenizer"):
        tokenizer: Any = model.head.tokenizer  # type: ignore[union-attr]
        about["grid"] = list(tokenizer.positions.shape[:3])
    return dataclasses.asdict(model.spec) | {
        "backbone": BACKBONES[type(model.spec)],
        "in_channels": model.in_channels,
        "num_frames": model.num_frames,
        "num_classes": num_classes,
        "head": about,
    }


def import_tensorflow(path: Path) -> tuple[Any, Any]:
    """TensorFlow, and its module that runs StableHLO; raises ExportError if it is missing."""
    try:
        import tensorflow as tf
        from tensorflow.compiler.tf2xla.python import xla
    except ImportError as error:
        what = "LiteRT file" if path.suffix == ".tflite" else "SavedModel"
        raise ExportError(
            f"{path}: writing a {what} needs tensorflow ({error}): pip install tensorflow-cpu; .stablehlo does not"
        ) from None
    return tf, xla


def import_onnx(path: Path) -> tuple[Any, Any]:
    """torch, and onnxruntime; raises ExportError if one of them, or onnxscript, is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx uses it
        import torch
    except ImportError as error:
        raise ExportError(
            f"{path}: writing ONNX needs torch, onnxscript and onnxruntime ({error}): "
            "pip install torch onnxscript onnxruntime; .stablehlo does not"
        ) from None
    return torch, onnxruntime


def _write_file(
    path: Path,
    data: bytes,
    model: VideoNetwork,
    pre: Preprocessing,
    meta: Mapping[str, Any],
    load: Callable[[bytes], Callable],
) -> float:
    """Writes one file and its JSON, once what `load` makes of the bytes on disk gives the network's logits."""
    try:
        with disk.replacing(path) as partial:
            partial.write_bytes(data)
            error = _compare(path, model, pre, _function(model, pre), load(partial.read_bytes()))
        disk.write_atomically(path.with_name(f"{path.name}.json"), json.dumps(dict(meta), indent=2) + "\n")
    except OSError as error:
        if isinstance(error, disk.WriteError):
            raise
        raise ExportError(f"{path}: cannot be written ({error})") from error
    return error


def _tf_module(tf: Any, xla: Any, exported: jax.export.Exported) -> tuple[Any, Any]:
    """A TensorFlow module that is called on clips, and its signature from `video` to `logits`."""
    portable = _older(exported.mlir_module_serialized)
    entering, leaving = (
        [size if isinstance(size, int) else None for size in avals[0].shape]
        for avals in (exported.in_avals, exported.out_avals)
    )

    def call(video: Any) -> Any:
        (logits,) = xla.call_module(
            [video],
            version=exported.calling_convention_version,
            module=portable,
            Tout=[tf.float32],
            Sout=[leaving],
            platforms=[platform.upper() for platform in exported.platforms],
        )
        return logits

    clips = tf.TensorSpec(entering, tf.uint8, name="video")
    module = tf.Module()
    module.__call__ = tf.function(call, input_signature=[clips], autograph=False)
    return module, tf.function(lambda video: {"logits": call(video)}, input_signature=[clips], autograph=False)


def _older(module: bytes) -> bytes:
    """The same program in the oldest StableHLO that it fits in.

    jax writes a version that TensorFlow learns to read months later. Composites (`erfc`) become calls, because
    TensorFlow cannot refine the shapes inside them.
    """
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        stablehlo.register_stablehlo_passes()
        program = stablehlo.deserialize_portable_artifact(context, module)
        passes = "builtin.module(func.func(stablehlo-legalize-composite-to-call),inline)"
        PassManager.parse(passes).run(program.operation)
        return stablehlo.serialize_portable_artifact(program, STABLEHLO)


def _function(model: VideoNetwork, pre: Preprocessing) -> Callable[[jax.Array], jax.Array]:
    network, *values = split_model(model)
    params, batch_stats = jax.device_get(values)  # bound to no device
    return lambda video: network.apply_eval(params, batch_stats, prepare_video(video, pre))


def _exported(
    apply: Callable, model: VideoNetwork, pre: Preprocessing, batch: int | None = None
) -> jax.export.Exported:
    """The program for all platforms, and for any batch if none is given."""
    size = batch or jax.export.symbolic_shape("b")[0]
    clips = jax.ShapeDtypeStruct((size, *_clip_shape(pre)), np.uint8)
    with use_formulation("direct"):  # the formulation for CPUs would be traced into the file for all platforms
        return jax.export.export(jax.jit(apply), platforms=PLATFORMS)(clips)


def _clip_shape(pre: Preprocessing) -> tuple[int, int, int, int]:
    return pre.read_frames, pre.crop_size, pre.crop_size, len(pre.mean)


def _compare(path: Path, model: VideoNetwork, pre: Preprocessing, apply: Callable, again: Callable) -> float:
    """Runs both on a CPU where there is one, because accelerators multiply float32 less exactly."""
    video = np.random.default_rng(0).integers(0, 256, (2, *_clip_shape(pre)), np.uint8)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves it out
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        expected, found = np.asarray(jax.jit(apply)(video)), np.asarray(again(video))
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise ExportError(f"{path}: the file gives other logits ({error:.1e} of the largest); nothing was kept")
    return error
