"""`requirements`: the packages that each command needs, and how to install those that are missing."""

import argparse
import importlib.util
import platform
from importlib import metadata

from r23d_jax.commands.json_output import add_json, print_json
from r23d_jax.runtime import program

# Packages that only some commands need
OPTIONAL = (
    "tensorflow",
    "tensorflow_datasets",
    "tensorboardX",
    "matplotlib",
    "sklearn",
    "torch",
    "apache_beam",
    "onnxruntime",
    "onnxscript",
    "huggingface_hub",
    "s3fs",
    "gcsfs",
    "gradio",
    "wandb",
    "mlflow",
)
BASE = ("jax", "flax", "optax", "orbax.checkpoint", "ml_collections", "jaxtyping", "numpy", "safetensors", "scipy")
BASE += ("flatbuffers", "tqdm", "pooch", "google_crc32c")
VIDEO = ("av", "cv2")
_READING = (*VIDEO, "tensorflow", "matplotlib")
_TRAINING = (*_READING, "tensorboardX")
NEEDS = {
    "train": _TRAINING,
    "evaluate": _READING,
    "log to W&B and MLflow": ("wandb", "mlflow"),
    "data and runs at s3://": ("s3fs",),
    "data and runs at gs://": ("gcsfs",),
    "prepare": VIDEO,
    "prepare --format packed": (*VIDEO, "tensorflow", "tensorflow_datasets"),
    "prepare --beam-runner": (*VIDEO, "tensorflow", "tensorflow_datasets", "apache_beam"),
    "new": _READING,
    "status": (),
    "study": _TRAINING,
    "predict": VIDEO,
    "predict --picture": (*VIDEO, "matplotlib"),
    "explain": VIDEO,
    "features": VIDEO,
    "features --config": (*VIDEO, "tensorflow"),
    "features --map, --nearest": (*VIDEO, "matplotlib", "sklearn"),
    "features --probe": (*VIDEO, "sklearn"),
    "serve": (*VIDEO, "gradio", "matplotlib"),
    "info": (),
    "plan": (*VIDEO, "tensorflow"),  # and the plug-in of its devices, which it names
    "convert": (),
    "convert a TensorFlow checkpoint": ("tensorflow",),
    "convert a .pth or .pt file": ("torch",),
    "weights by name": ("torch",),
    "weights of I3D by name": ("tensorflow",),
    "export": (),
    "export to .savedmodel or .tflite": ("tensorflow",),
    "export to .onnx": ("torch", "onnxruntime", "onnxscript"),
    "export to .pth or .pt": ("torch",),
    "export to a folder or the Hub": ("huggingface_hub",),
}
# Names for pip that differ from the name to import
_PIP_NAMES = {
    "orbax.checkpoint": "orbax-checkpoint",
    "ml_collections": "ml-collections",
    "cv2": "opencv-contrib-python-headless",
    "tensorflow": "tensorflow-cpu",  # `_remedy` replaces it where there is no such wheel
    "tensorflow_datasets": "tensorflow-datasets importlib-resources",
    "apache_beam": "apache-beam",
    "sklearn": "scikit-learn",
    "google_crc32c": "google-crc32c",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of this sub-command."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints a table; always returns 0, because no command needs every package."""
    system = f"{platform.system()} {platform.machine()}"
    packages = {name: _version(name) if is_installed(name) else None for name in (*BASE, *VIDEO, *OPTIONAL)}
    missing = {what: [name for name in (*BASE, *needed) if packages[name] is None] for what, needed in NEEDS.items()}
    remedies = {what: _remedy(names) if names else "" for what, names in missing.items()}
    if args.json:
        commands = {what: {"missing": missing[what], "install": remedies[what]} for what in NEEDS}
        told = {"python": platform.python_version(), "system": system, "packages": packages, "commands": commands}
        print_json(told)
        return 0
    print(f"Python {platform.python_version()} on {system}")
    for name, version in packages.items():
        print(f"  {name:20} {'missing' if version is None else version}")
    for what, remedy in remedies.items():
        print(f"{what:32} {'missing: ' + remedy if remedy else 'ready'}")
    return 0


def explain(command: str, error: Exception) -> str | None:
    """A sentence with the pip command, if an error of a command means that an optional package is missing."""
    name = error.name.partition(".")[0] if isinstance(error, ModuleNotFoundError) and error.name else ""
    if name not in OPTIONAL:
        return None
    return f"{program.command(command)} needs {name}, which is not installed: {_remedy([name])}"


def _remedy(names: list[str]) -> str:
    packages = " ".join(_PIP_NAMES.get(name, name) for name in names)
    if platform.machine().lower() not in ("x86_64", "amd64") or platform.system() == "Darwin":
        packages = packages.replace("tensorflow-cpu", "tensorflow")
    return f"pip install {packages}"


def is_installed(name: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is missing; None in sys.modules
        return False


def _version(name: str) -> str:
    distributions = metadata.packages_distributions().get(name.partition(".")[0], [])
    return ", ".join(metadata.version(distribution) for distribution in sorted(set(distributions)))
