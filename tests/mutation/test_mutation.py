"""The table of modules and their tests names files that exist."""

from pathlib import Path

import pytest

from tests.mutation.__main__ import TESTS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", TESTS)
def test_a_module_and_its_tests_exist(module: str) -> None:
    files = [argument for argument in TESTS[module] if argument.startswith("tests/")]
    assert files and (ROOT / "r23d_jax" / f"{module}.py").is_file()
    assert all((ROOT / file).is_file() for file in files)
