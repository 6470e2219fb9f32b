"""Files of weights and checkpoints are never code."""

import dataclasses
import os
import pickle
import pkgutil
import shutil
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

import r23d_jax
from r23d_jax import config
from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import Checkpoints
from r23d_jax.config import UserError
from r23d_jax.evaluation.trained import load_model
from r23d_jax.runtime import compilation_cache, disk
from r23d_jax.training.warm_start import warm_start
from r23d_jax.weights import files
from r23d_jax.weights.tables import ConversionError
from tests.hostile.security.pickles import HOSTILE, Code, torch_zip
from tests.training.tiny import start, tiny_config


@pytest.mark.parity
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.pth.tar"])
def test_a_pickle_that_would_run_code_is_refused(
    kind: str, name: str, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    path = tmp_path / name
    path.write_bytes(HOSTILE[kind](Code(marker)))
    assert main(["convert", "--from", str(path), "--to", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {path}: ") and said.count("\n") == 1
    refusals = ("refused, because reading it could run code", "damaged, or not a torch file", "members are compressed")
    assert any(refusal in said for refusal in (*refusals, "is a TorchScript archive"))
    # torch explains how to run the code all the same; that is not repeated
    assert not {"trust", "weights_only", "safe_globals"} & set(said.replace("=", " ").replace("`", " ").split())
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parity
def test_what_a_pickle_asks_for_is_named(marker: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    (tmp_path / "a.pth").write_bytes(torch_zip({"a": Code(marker)}))
    with pytest.raises(ConversionError, match=r"could run code that is stored in it \(it asks for posix\.system\)"):
        files.read(tmp_path / "a.pth")


@pytest.mark.parity
@pytest.mark.parametrize("target", ["subprocess.check_call", "shutil.rmtree", "torch.serialization.load"])
def test_code_beside_the_weights_is_left_out_and_not_run(target: str, marker: Path, tmp_path: Path) -> None:
    """Classes that torch does not know become records: nothing is imported, called or set."""
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    folder = tmp_path / "precious"
    folder.mkdir()
    arguments = {"subprocess.check_call": ["touch", str(marker)], "shutil.rmtree": str(folder)}

    class Call:
        def __reduce__(self) -> tuple:
            return pkgutil.resolve_name(target), (arguments.get(target, "a.pth"),), {"state": 1}

    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.ones(2)}, "args": Call()}, path)
    content = files.read(path)
    assert list(content.arrays) == ["a"] and content.arrays["a"].tolist() == [1, 1]
    asked = target.replace("subprocess", "commands")  # the module's name in the pickles that torch writes
    assert content.notes == (f"left out, because only running code could read them: objects of {asked}",)
    torch.save({"model": {"a": torch.ones(2), "b": Call()}}, path)
    with pytest.raises(ConversionError, match=rf"could run code .*it asks for {asked}\)"):
        files.read(path)
    assert not marker.exists() and folder.is_dir()


@pytest.mark.parity
def test_every_other_door_refuses_it_too(marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    path = tmp_path / "a.pth"
    path.write_bytes(torch_zip({"a": Code(marker)}))
    cfg = tiny_config()
    cfg.init_from = str(path)
    state, shardings, _, _ = start(cfg)
    with pytest.raises(UserError, match="refused, because reading it could run code"):
        warm_start(cfg, state, shardings, 3, print)
    with pytest.raises(UserError, match="refused, because reading it could run code"):
        r23d_jax.from_torch(path)
    (tmp_path / "a.avi").touch()
    for *door, said in (
        ["predict", "--weights", str(path), str(tmp_path / "a.avi"), "refused, because reading it could run code"],
        ["explain", "--weights", str(path), str(tmp_path / "a.avi"), "refused, because reading it could run code"],
        ["export", "--workdir", str(path), "--to", "a.pth", "there is no checkpoint in"],
    ):
        assert main(door) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UserError, match="refused, because reading it could run code"):
        load_model(path)
    assert not marker.exists()


def test_a_pickle_under_another_name_is_refused(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, said in (("a.safetensors", "not a whole safetensors file"), ("b.index", "not a whole TensorFlow ")):
        (tmp_path / name).write_bytes(pickle.dumps(Code(marker)))
        (tmp_path / "b.data-00000-of-00001").write_bytes(pickle.dumps(Code(marker)))
        assert main(["convert", "--from", str(tmp_path / name), "--to", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parity
def test_a_torch_that_can_be_made_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -r requirements-torch.txt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ConversionError, match=r"a\.pth: torch 2\.5\.1\+cpu can be made to run code"):
        files.import_torch(tmp_path / "a.pth")


def test_writing_follows_no_link_that_somebody_put_there(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("dear to me")
    target = tmp_path / "a.safetensors"
    for guess in (".a.safetensors.partial.safetensors", f".a.{os.getpid()}.partial.safetensors"):
        (tmp_path / guess).symlink_to(mine)
    with disk.replacing(target) as once, disk.replacing(target) as again:
        assert once != again
        for path in (once, again):
            path.touch()
    umask = os.umask(0o022)
    try:
        files.write(target, {"a": np.zeros(2, np.float32)}, {})
    finally:
        os.umask(umask)
    assert mine.read_text() == "dear to me" and not target.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o644, "as readable as any other file"
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_symlink()) == ["a.safetensors", "mine.txt"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir, cfg = tmp_path_factory.mktemp("run"), tiny_config()
    checkpoints = Checkpoints(workdir, log=lambda line: None)
    about = {"preprocessing": dataclasses.asdict(config.preprocessing(cfg.data)), "class_names": ["a", "b", "c"]}
    checkpoints.save(start(cfg)[0], about | {"config": dataclasses.asdict(cfg)})
    checkpoints.close()
    return workdir


@pytest.mark.parametrize("every", [pytest.param(6, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.long)])
def test_no_file_of_a_checkpoint_is_unpickled(trained: Path, marker: Path, tmp_path: Path, every: int) -> None:
    names = [path.relative_to(trained) for path in sorted(trained.rglob("*")) if path.is_file()][::every]
    assert len(names) > 5
    damaged = 0
    for number, name in enumerate(names):
        workdir = tmp_path / str(number) / "run"
        shutil.copytree(trained, workdir)
        (workdir / name).write_bytes(pickle.dumps(Code(marker)))
        try:
            load_model(workdir)
        except UserError:
            damaged += 1
    assert damaged >= (3 if every == 1 else 1) and not marker.exists()


def test_commands_refuse_a_checkpoint_of_pickles(
    trained: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            path.write_bytes(pickle.dumps(Code(marker)))
    workdir = str(tmp_path / "run")
    for command in (["predict", "--workdir", workdir, "a.avi"], ["export", "--workdir", workdir, "--to", "a.pth"],
                    ["convert", "--from", workdir, "--to", str(tmp_path / "out")]):  # fmt: skip
        if command[-1] == "a.pth":
            command[-1] = str(tmp_path / "a.safetensors")
        assert main(command) == 2
        assert "no checkpoint in" in capsys.readouterr().err
    assert not marker.exists()


def test_a_foreign_workdirs_compiled_programs_are_not_used(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]

    def folder_after(home: str, workdir: Path) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        compilation_cache.keep_compiled(workdir / "compilation_cache")
        return Path(str(jax.config.jax_compilation_cache_dir))  # type: ignore[attr-defined]

    try:
        mine, again = (folder_after("me", trained) for _ in range(2))
        assert mine == again and mine.parent == trained / "compilation_cache"
        assert folder_after("somebody", trained) != mine, "nobody else knows the name"
        assert folder_after("me", tmp_path / "moved").name != mine.name, "nor from a workdir that was given away"
        secret = tmp_path / "me" / "r23d_jax" / "secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        mine.mkdir(parents=True, exist_ok=True)
        torn, foreign = mine / "jit_x-cache", trained / "compilation_cache" / "jit_x-cache"
        for path in (torn, foreign):
            path.write_bytes(b"torn")
        whole, half = mine / "jit_y-cache", mine / "jit_z-cache"
        whole.write_bytes(zlib.compress(b"program" * 99))  # as jax does
        half.write_bytes(whole.read_bytes()[:-3])
        assert folder_after("me", trained) == mine and not torn.exists() and not half.exists() and whole.exists()
        assert foreign.read_bytes() == b"torn", "what lies under a name that anybody knows is not looked at"
        secret.write_bytes(b"")  # torn as well
        assert folder_after("me", trained) != mine and len(secret.read_bytes()) == 32
        assert os.listdir(secret.parent) == ["secret"]
        jax.config.update("jax_compilation_cache_dir", None)
        load_model(trained)
        assert main(["predict", "--workdir", str(trained), str(tmp_path / "none.avi")]) == 3
        assert jax.config.jax_compilation_cache_dir is None, "reading a network uses no cache"  # type: ignore[attr-defined]
        (tmp_path / "file").write_text("")
        assert str(folder_after("file", trained)) == "None", "no home to keep a secret in: no cache"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
