"""Config files: Python files with a function that returns a config or a study."""

import importlib.machinery
import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import Any, TypeVar

from r23d_jax.config.fields import ConfigError, UserError, nearest

T = TypeVar("T")

# The purpose of a file that has one of these functions, and not the wanted one
_OTHERS = {
    "get_study": "it describes a study: use the command study",
    "get_config": "it describes one training: use launch.py or the command train",
}


class _Loader(importlib.machinery.SourceFileLoader):
    """Leaves no __pycache__ beside the file, which is often in a folder of the user's."""

    def set_data(self, *args: Any, **options: Any) -> None:
        pass


def call_file(path: str, function: str, kind: type[T], *args: str) -> T:
    """Runs a config file and calls its function.

    Args:
      function: "get_config" or "get_study".

    Raises:
      ConfigError: if there is no such file, or anything in it fails; one sentence that names the file and the line.
      UserError: raised by the file itself.
    """
    if not Path(path).is_file():
        known = [str(found) for found in sorted(Path("configs").glob("*.py"))]
        raise ConfigError(f"--config={path}: no such file; {nearest(path, known)}")
    if Path(path).suffix != ".py":
        raise ConfigError(f"--config={path}: is no Python file; its name must end in .py")
    loader = _Loader(Path(path).stem, str(Path(path).absolute()))
    spec = importlib.util.spec_from_file_location(loader.name, loader.path, loader=loader)
    assert spec is not None, "a loader is given"
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        call = getattr(module, function, None)
        if call is None:
            purpose = next((text for name, text in _OTHERS.items() if hasattr(module, name)), "it is no config file")
            raise ConfigError(f"--config={path}: has no {function}(arg); {purpose}")
        inspect.signature(call).bind(*args)
        value = call(*args)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={path}{_line(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        wanted = f"{kind.__module__}.{kind.__name__}"
        raise ConfigError(f"--config={path}: {function}() must return a {wanted}, not a {type(value).__name__}")
    return value


def _line(error: Exception, path: str) -> str:
    """The line of the file that caused an error; "" if the error is not in the file."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(path).absolute()]
    return f", line {lines[-1]}" if lines else ""
