"""Bad weight files: one error that names the file, no traceback, and no memory spent on sizes they claim."""

import subprocess
import sys
from pathlib import Path

import pytest

import r23d_jax
from r23d_jax.__main__ import main
from r23d_jax.weights import files
from r23d_jax.weights.tables import ConversionError
from tests.hostile.bad_files.corpus import WEIGHTS, flip_bits, forbidden, pipe, safetensors, tensor, torch_file

ROOT = Path(__file__).resolve().parents[3]
NAMES = [pytest.param(name, marks=[pytest.mark.parity] if name.startswith("torch") else []) for name in WEIGHTS]


def need_torch(name: str) -> None:
    if name.startswith("torch"):
        pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")


@pytest.mark.parametrize("name", NAMES)
def test_convert_refuses_them_in_words(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need_torch(name)
    path = WEIGHTS[name].write(tmp_path, name)
    assert main(["convert", "--from", str(path), "--to", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: {path}: ") and len(said) < 1500
    with pytest.raises(ConversionError, match=f"(?s){WEIGHTS[name].reason}"):
        r23d_jax.from_torch(path)
    assert not (tmp_path / "out").exists()


def test_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix in (".pth", ".safetensors"):
        folder, gone, itself = (tmp_path / f"{name}{suffix}" for name in ("folder", "gone", "itself"))
        folder.mkdir()
        gone.symlink_to("nowhere")
        itself.symlink_to(itself.name)
        with pipe(tmp_path / f"pipe{suffix}") as waiting:
            for path, reason in (
                (waiting, "is no file, but a folder, a pipe or a device"),
                (gone, "there is no such file"),
                (itself, "there is no such file"),
            ):
                assert main(["convert", "--from", str(path), "--to", str(tmp_path / "out")]) == 2
                assert f"error: {path}: {reason}" in capsys.readouterr().err
        with pytest.raises(ConversionError, match="is no file, but a folder"):
            files.read(folder)
        # a folder is taken for a checkpoint
        assert main(["convert", "--from", str(folder), "--to", str(tmp_path / "out")]) == 2
        assert f"there is no checkpoint in {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.safetensors", pytest.param("torch.pth", marks=pytest.mark.parity)])
def test_what_may_not_be_read(name: str, tmp_path: Path) -> None:
    need_torch(name)
    path = tmp_path / name
    path.write_bytes(torch_file())
    with forbidden(path), pytest.raises(ConversionError, match=r"Permission denied"):
        files.read(path)


def test_flipped_bits(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for seed in range(50):
        path.write_bytes(flip_bits(safetensors({"a": tensor(), "b": tensor(16, 32)}, bytes(32)), 3, seed))
        try:
            arrays = files.read(path).arrays
        except ConversionError as error:
            assert str(path) in str(error)
        else:
            assert sum(value.nbytes for value in arrays.values()) == 32


@pytest.mark.parity
def test_bombs_do_not_take_memory(tmp_path: Path) -> None:
    need_torch("torch")
    intact = tmp_path / "intact.pth"
    intact.write_bytes(torch_file())
    bombs = [WEIGHTS[name].write(tmp_path, name) for name in WEIGHTS if name.startswith("torch_") or "huge" in name]
    code = (
        "import re, sys\n"
        "from r23d_jax.weights import files, tables\n"
        # Not ru_maxrss, which begins with the peak of the process that starts this one
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "files.read(sys.argv[1])\n"
        "before = peak()\n"
        "for bomb in sys.argv[2:]:\n"
        "    try: files.read(bomb)\n"
        "    except tables.ConversionError: continue\n"
        "    sys.exit(f'{bomb}: was read')\n"
        "print(peak() - before)\n"
    )
    args = [sys.executable, "-c", code, str(intact), *map(str, bombs)]
    done = subprocess.run(args, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64_000  # KiB; the bomb holds 512 MB
