"""A trained network as a folder of model.safetensors, config.json and a model card, and such folders on the Hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from r23d_jax.config import UserError
from r23d_jax.models.network import VideoNetwork
from r23d_jax.runtime import disk
from r23d_jax.runtime.disk import cache_folder
from r23d_jax.weights import files
from r23d_jax.weights.state_dicts import Converted, convert, to_arrays
from r23d_jax.weights.tables import ConversionError

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
T = TypeVar("T")


class HubError(UserError):
    """The Hub, or the package that talks to it, is missing or refuses; the message says which repository and why."""


def import_hub() -> Any:
    """huggingface_hub; raises HubError if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            "model cards and the Hub need huggingface_hub, which is not installed: pip install "
            "huggingface_hub. A folder is loaded without it"
        ) from None
    return huggingface_hub


def is_saved(folder: Path) -> bool:
    """Whether `write` has made a folder, or another program of the same files.

    The folder of a run is none, though it has a config.json, and an exported file may lie beside it.
    """
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file() and not (folder / "checkpoints").is_dir()


def write(folder: Path, model: VideoNetwork, description: dict[str, Any], card: str) -> None:
    """Writes the three files.

    Args:
      folder: is made if it is missing; what an earlier call wrote there is replaced.
      model: its values get the names of its code base.
      description: `state_dicts.describe` of the network.

    Raises:
      ConversionError: if the folder holds other files, or the weights read differently.
      WriteError: if the folder cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (is_saved(folder) and _description(folder)):
        raise ConversionError(f"{folder}: holds other files, which must not be replaced; give a new folder")
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, to_arrays(model), description)
    disk.write_atomically(folder / CONFIG, json.dumps(description, indent=2) + "\n")
    disk.write_atomically(folder / CARD, card)


def read(folder: Path) -> Converted:
    """The network in a folder. Needs neither torch nor TensorFlow, and runs nothing that is stored there.

    Raises:
      ConversionError: if a file is missing or damaged, or the two do not fit each other.
    """
    description = _description(folder)
    if description is None:
        raise ConversionError(
            f'{folder / CONFIG}: describes no network of r23d_jax (its "format" must be {files.FORMAT!r})'
        )
    content = files.read(folder / WEIGHTS)
    try:
        return convert(content._replace(meta=description))
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from None


def _description(folder: Path) -> dict[str, Any] | None:
    """What CONFIG says about a network; None if another program wrote it."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: cannot be read ({error})") from None
    return found if isinstance(found, dict) and found.get("format") == files.FORMAT else None


def download(repo: str, revision: str | None = None) -> Path:
    """The folder of a repository of the Hub in the cache, with its weights and its description only.

    Raises:
      HubError: if it does not exist or cannot be reached, or huggingface_hub is missing.
    """
    hub = import_hub()
    place: dict[str, Any] = {"revision": revision, "cache_dir": cache_folder("hub"), "library_name": "r23d_jax"}
    paths = [_ask(repo, lambda n=name: hub.hf_hub_download(repo, n, **place)) for name in (WEIGHTS, CONFIG)]
    return Path(paths[0]).parent


def upload(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads the three files of a folder in one commit; returns the address of the repository.

    Args:
      folder: from `write`.
      repo: `owner/name`; is made if it is missing.
      private: whether only its owner may see a repository that is made.

    Raises:
      HubError: if the Hub refuses, or huggingface_hub is missing.
    """
    hub = import_hub()
    api = hub.HfApi(library_name="r23d_jax")
    made = _ask(repo, lambda: api.create_repo(repo, private=private, exist_ok=True))
    _ask(
        repo,
        lambda: api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
            commit_message="Upload a network of r23d_jax",
        ),
    )
    return str(made)


def _ask(repo: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:  # each version of huggingface_hub has another HTTP library, with errors of its own
        reason = " ".join(str(error).split())[:300]
        raise HubError(
            f"{repo}: the Hub gives no answer, or refuses ({type(error).__name__}: {reason}). Names are owner/name; "
            "private repositories and uploads need a login: hf auth login"
        ) from error
