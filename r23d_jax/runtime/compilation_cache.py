"""Keeps compiled programs on disk, in a folder that only their owner can have written."""

import hmac
import os
import secrets
import zlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_SECRET_SIZE = 32  # bytes
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # its files begin with this


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs below a folder for the next process, unless JAX_COMPILATION_CACHE_DIR names another.

    They are machine code, which jax runs without a check, and a workdir may come from somebody else. Therefore they are
    in a subfolder with an unpredictable name. Without a home folder for the secret, none are kept.
    """
    mark = _secret_name(folder)
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or mark is None:
        return
    _remove_torn(folder / mark)
    compilation_cache.reset_cache()  # this process may have used another folder
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / mark))


def _secret_name(folder: Path) -> str | None:
    """A name computed from the folder's path and a secret of this user, which the first call creates."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(home, "r23d_jax", "secret")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.stat().st_size != _SECRET_SIZE:
            partial = path.with_name(f".secret.{secrets.token_hex(8)}")
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_SECRET_SIZE))
            os.replace(partial, path)
        secret = path.read_bytes()
    except OSError:
        return None
    return hmac.new(secret, os.fsencode(folder.absolute()), "sha256").hexdigest()[:32]


def _remove_torn(folder: Path) -> None:
    """Removes files that cannot be read back.

    jax writes them in place and never replaces one, so a file torn by a kill or a full disk would cost a compilation
    and a warning at every start. It compresses them with zstandard if that is installed, else with zlib.
    """
    for file in folder.glob("*-cache"):
        try:
            data = file.read_bytes()
            if data.startswith(_ZSTANDARD):
                import zstandard  # pyright: ignore[reportMissingImports]

                zstandard.ZstdDecompressor().decompress(data)
            else:
                zlib.decompress(data)
        except Exception:  # noqa: BLE001  without zstandard, jax cannot read the file either
            file.unlink(missing_ok=True)
