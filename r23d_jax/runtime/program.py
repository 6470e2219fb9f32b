"""The command line that starts this program, and the config files that come with it."""

import shlex
import sys
import types
from pathlib import Path

from r23d_jax.config import ConfigError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
# A wheel holds the configs inside the package; a checkout keeps them beside it.
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _CHECKOUT / "configs") if folder.is_dir())


def command(name: str) -> str:
    """The command line for a key of `__main__.COMMANDS`, e.g. `r23d-jax predict` or `python -m r23d_jax predict`.

    In a checkout, training and evaluation use launch.py.
    """
    started = Path(sys.argv[0])
    if started.stem == "r23d-jax":
        return f"r23d-jax {name}"
    if name in ("train", "evaluate") and (_CHECKOUT / "launch.py").is_file():
        script = Path("launch.py") if Path.cwd() == _CHECKOUT else _CHECKOUT / "launch.py"
        script = started if started.name == "launch.py" else script
        return f"python {shlex.quote(str(script))}" + (" --mode=eval" if name == "evaluate" else "")
    return f"python -m r23d_jax {name}"


def find_config(text: str) -> str:
    """The path that `--config=NAME_OR_FILE[:ARG]` means, with its `:ARG`.

    An existing file comes first. Otherwise `r23d`, `r23d.py` and `configs/r23d.py` all name the file that comes with
    the package, from any folder. Config files may import each other as `configs.NAME`.

    Raises:
      ConfigError: if there is no such file; suggests the nearest one.
    """
    name, colon, arg = text.partition(":")
    path = Path(name)
    if not path.is_file():
        path = CONFIGS / f"{path.stem}.py"
        if name not in _spellings(path) or not path.is_file():
            style = 2 if "/" in name else int(name.endswith(".py"))
            files = [*Path("configs").glob("*.py"), *CONFIGS.glob("*.py")]
            known = sorted({_spellings(file)[style] for file in files})
            raise ConfigError(f"--config={name}: no such file; {nearest(name, known)}")
    package = types.ModuleType("configs")
    package.__path__ = [str(Path("configs").absolute()), str(CONFIGS)]
    sys.modules.setdefault("configs", package)
    return f"{path}{colon}{arg}"


def _spellings(path: Path) -> tuple[str, str, str]:
    return path.stem, path.name, f"configs/{path.name}"
