"""What the tests of security share."""

import pickle
from pathlib import Path

import pytest

from tests.hostile.security.pickles import Code


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that appears if a pickle of `Code` is run, as is shown here; it is absent again."""
    path = tmp_path / "code was run"
    pickle.loads(pickle.dumps(Code(path)))
    path.unlink()
    return path
