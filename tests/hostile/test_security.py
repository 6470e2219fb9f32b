"""Weights and data are never code, never leave their folder, and never speak to the terminal or the browser."""

import ast
import csv
import dataclasses
import html.parser
import importlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

import r23d_jax
from r23d_jax import config
from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import Checkpoints, load_model
from r23d_jax.commands import predict
from r23d_jax.config import Config, UserError
from r23d_jax.data.find import packed as packed_module
from r23d_jax.data.find.frames import FrameFiles, index_frames
from r23d_jax.data.find.packed import index_packed
from r23d_jax.data.find.splits import DataError, Entry, VideoList, read_list
from r23d_jax.data.make.packed_builder import PackSource, write_packed
from r23d_jax.evaluation import fusion, report
from r23d_jax.evaluation.result import EvalResult, Protocol, save_evaluation
from r23d_jax.runtime import compilation_cache, disk
from r23d_jax.runtime.progress import PrintableStream, Progress, printable
from r23d_jax.study.grid import Study, cells
from r23d_jax.study.results import write_results
from r23d_jax.study.run import Outcome
from r23d_jax.training.warm_start import warm_start
from r23d_jax.weights import files
from r23d_jax.weights.tables import ConversionError
from tests.training.tiny import start, tiny_config

ROOT = Path(__file__).resolve().parents[2]

# -- what the source may not call --------------------------------------------------------------------------------------

# Where a call that is forbidden elsewhere is right: studies are config files, which are Python.
EXCUSED = {("r23d_jax/study/grid.py", "exec_module"), ("configs/study.py", "exec_module")}
FORBIDDEN = {
    "eval", "exec", "__import__", "exec_module",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "dill.load", "dill.loads", "cloudpickle.load", "cloudpickle.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
    "extractall", "shutil.unpack_archive", "torch.jit.load", "torch.hub.load",
}  # fmt: skip
DANGEROUS_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "torch.hub"}


def faults(source: str) -> list[str]:
    """Calls that would run code from data, hand words to a shell, or use a name that others can guess."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in DANGEROUS_MODULES:
            found.append(f"from {node.module} import")  # its functions would have short names here
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        for forbidden in FORBIDDEN:
            if name == forbidden or ("." not in forbidden and name.endswith(f".{forbidden}") and forbidden != "eval"):
                found.append(forbidden)
        if name in ("np.load", "numpy.load") and not _is(given.get("allow_pickle"), False):
            found.append("np.load")
        if name.endswith("torch.load") and not _is(given.get("weights_only"), True):
            found.append("torch.load")
        if "shell" in given and not _is(given["shell"], False):
            found.append("shell")
        if _is(given.get("allow_pickle"), True):
            found.append("allow_pickle")
    return found


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


SOURCES = [
    ROOT / "launch.py",
    *sorted(path for top in ("r23d_jax", "benchmarks", "configs", ".ci") for path in (ROOT / top).rglob("*.py")),
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_data(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    found = [fault for fault in faults(path.read_text()) if (name, fault) not in EXCUSED]
    assert not found, f"{name}: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')", "exec(text)", "pickle.load(f)", "from pickle import loads", "os.system('ls')", "yaml.load(f)",
        "np.load(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=x)", "np.savez(f, allow_pickle=True)",
        "torch.load(f)", "torch.load(f, weights_only=False)", "subprocess.run('ls', shell=True)",
        "subprocess.Popen(x, shell=flag)", "tempfile.mktemp()", "archive.extractall()", "spec.loader.exec_module(m)",
        "__import__(name)", "builtins.exec(text)",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(source: str) -> None:
    assert faults(source)


def test_what_is_right_is_not_found() -> None:
    assert not faults("np.load(f, allow_pickle=False); torch.load(f, weights_only=True); model.eval(); a.load(f)")


# -- files of weights --------------------------------------------------------------------------------------------------


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that appears if a pickle of `Code` is run, as is shown here; it is absent again."""
    path = tmp_path / "code was run"
    pickle.loads(pickle.dumps(Code(path)))
    path.unlink()
    return path


def torch_zip(state: Any, **extra: bytes) -> bytes:
    """A file as `torch.save` writes it, with any pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(state, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in extra.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_tar(code: Any) -> bytes:
    """The oldest of torch's formats."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(code)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def torch_legacy(code: Any) -> bytes:
    """The format before zip: a magic number, a version, the machine, the content, storage keys."""
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001, "type_sizes": {}})
    return b"".join(pickle.dumps(part, protocol=2) for part in (*parts, {"state_dict": code}, []))


HOSTILE: dict[str, Callable[[Code], bytes]] = {
    "pickle 0": lambda code: pickle.dumps({"a": code}, protocol=0),
    "pickle 2": lambda code: pickle.dumps({"a": code}, protocol=2),
    "pickle 5": lambda code: pickle.dumps({"a": code}, protocol=5),
    "legacy": torch_legacy,
    "zip": lambda code: torch_zip({"state_dict": code}),
    "tar": torch_tar,
    "TorchScript": lambda code: torch_zip({}, **{"archive/constants.pkl": pickle.dumps(code)}),
    "member that leaves": lambda code: torch_zip({}, **{"../../evil.pkl": pickle.dumps(code)}),
    "compressed": lambda code: _compressed(code),
}


def _compressed(code: Code) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(code))
    return buffer.getvalue()


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
    assert any(refusal in said for refusal in refusals)
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
    for door in (["predict", "--workdir", str(path), "a.avi"], ["export", "--workdir", str(path), "--to", "a.pth"]):
        assert main(door) == 2
        assert "there is no checkpoint in" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no checkpoint in"):
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


# -- checkpoints, and what lies beside them ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir, cfg = tmp_path_factory.mktemp("run"), tiny_config()
    checkpoints = Checkpoints(workdir, log=lambda line: None)
    about = {"preprocessing": dataclasses.asdict(config.preprocessing(cfg.data)), "class_names": ["a", "b", "c"]}
    checkpoints.save(start(cfg)[0], about | {"config": dataclasses.asdict(cfg)})
    checkpoints.close()
    return workdir


def test_no_file_of_a_checkpoint_is_unpickled(trained: Path, marker: Path, tmp_path: Path) -> None:
    names = [path.relative_to(trained) for path in sorted(trained.rglob("*")) if path.is_file()]
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
    assert damaged > 2 and not marker.exists()


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


# -- data folders ------------------------------------------------------------------------------------------------------


def write_frames(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"image_{number + 1:05d}.jpg"), np.full((16, 16, 3), 50, np.uint8))


VIDEOS = VideoList(("Diving",), (Entry("v_Diving_g01_c01", 0, "Diving", "g01"),))


def cache_of(root: Path) -> Path:
    (path,) = (root / ".r23d_jax").glob("*.npz")
    return path


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_a_cache_that_would_run_code_is_built_again(how: str, marker: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_frames(root / "v_Diving_g01_c01")
    first = index_frames(root, VIDEOS)
    path = cache_of(root)
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Code(marker)))
    else:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"names": np.array([Code(marker)], object)})
    again = index_frames(root, VIDEOS)
    assert again.names.tolist() == first.names.tolist() and not marker.exists()


@pytest.mark.parametrize("field", ["folder", "prefix", "suffix"])
@pytest.mark.parametrize("value", ["../other/", "/etc/", "a/../../b"])
def test_a_cache_does_not_point_outside(field: str, value: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_frames(root / "v_Diving_g01_c01")
    first = index_frames(root, VIDEOS)
    with np.load(cache_of(root), allow_pickle=False) as file:
        arrays = dict(file)
    np.savez(cache_of(root), **arrays | {field: np.array([value])})
    again = index_frames(root, VIDEOS)
    assert isinstance(first.frames, FrameFiles) and isinstance(again.frames, FrameFiles)
    assert again.frames.path(0, 0) == first.frames.path(0, 0)


def test_a_link_that_the_owner_of_the_data_placed_is_followed(tmp_path: Path) -> None:
    write_frames(tmp_path / "elsewhere" / "v_Diving_g01_c01")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "Diving").symlink_to(tmp_path / "elsewhere")
    assert len(index_frames(tmp_path / "data", VIDEOS)) == 1
    (tmp_path / "root").symlink_to(tmp_path / "data")
    assert len(index_frames(tmp_path / "root", VIDEOS)) == 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    jpeg = cv2.imencode(".jpg", np.full((16, 16, 3), 50, np.uint8))[1].tobytes()
    sources = [PackSource("v_Diving_g01_c01", "Diving", lambda: [jpeg, jpeg])]
    return write_packed(tmp_path_factory.mktemp("made") / "packed", sources, ("Diving",), num_shards=1)


def with_text(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize(
    "name", ["foreign_data.evil.Feature", "antigravity.Feature", "tensorflow_datasets_evil.core.F"]
)
def test_the_features_of_a_dataset_import_nothing(
    key: str, name: str, shards: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tensorflow-datasets would import the module, and a folder of data below the working directory is importable."""
    folder = tmp_path / "foreign_data"
    shutil.copytree(shards, folder)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with_text(folder, "features.json", '"tensorflow_datasets.core.features.text_feature.Text"', f'"{name}"')
    with_text(folder, "features.json", '"pythonClassName": "' + name, f'"{key}": "{name}')
    with pytest.raises(DataError, match=rf"features\.json: refused, because reading it would run code: .*'{name}'"):
        index_packed(folder, VIDEOS, "train")
    assert not marker.exists() and "foreign_data.evil" not in sys.modules


def test_a_dataset_that_names_shards_outside_is_refused(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    with_text(folder, "dataset_info.json", "{DATASET}-{SPLIT}", "../{DATASET}-{SPLIT}")
    with pytest.raises(DataError, match=r"dataset_info\.json: names a shard outside of its folder|cannot read it"):
        index_packed(folder, VIDEOS, "train")


def test_a_cache_of_shards_does_not_point_outside(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(shards, folder)
    index_packed(folder, VIDEOS, "train")
    with np.load(cache_of(folder), allow_pickle=False) as file:
        arrays = dict(file)
    (name,) = arrays["shards"].tolist()
    other = tmp_path / name
    shutil.copy2(folder / name, other)
    np.savez(cache_of(folder), **arrays | {"shards": np.array([f"../{name}"])})
    index = index_packed(folder, VIDEOS, "train")
    assert [Path(path) for path in index.frames.shards] == [folder / name]  # type: ignore[union-attr]


def test_a_packed_name_with_a_control_character_is_left_out() -> None:
    name = b"v_\x1b[2J"
    data = np.frombuffer(name, np.uint8)

    def parsed(*_: Any) -> dict:
        return {"video": [(0, 1)], "label": [0], "name": [(0, len(name))]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_module, "parse_example", parsed)
        record = packed_module.Record(0, len(name), "")
        with pytest.raises(ValueError, match=r"its name 'v_\\x1b\[2J' holds a control character"):
            packed_module._parse_video(data, record, ("video", "label", "name"), 1)


WAYS_OUT = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b.avi",
    "..\\..\\b.avi",
    "\\\\host\\b.avi",
    "C:\\b.avi",
    "C:/b.avi",
    "..",
]


@pytest.mark.parametrize("path", WAYS_OUT)
def test_listed_paths_stay_in_the_data_folder(path: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"path,label\n{path},Diving\n")
    with pytest.raises(DataError, match=r"train\.csv:2: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "classInd.txt").write_text("1 Diving\n")
    (tmp_path / "trainlist01.txt").write_text(f"{path} 1\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")


@pytest.mark.parametrize("name", WAYS_OUT)
def test_class_names_do_not_leave_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"path,label\nv_a_g01_c01.avi,{name}\n")
    with pytest.raises(DataError, match=r"train\.csv:2: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "train.csv").write_text("path,label\nv_a_g01_c01.avi,0\n")
    (tmp_path / "classes.txt").write_text(f"{name}\n")
    with pytest.raises(DataError, match=r"classes\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")
    (tmp_path / "classInd.txt").write_text(f"1 {name}\n")
    (tmp_path / "trainlist01.txt").write_text("a/v_a_g01_c01.avi 1\n")
    with pytest.raises(DataError, match=r"classInd\.txt:1: path .* leaves the data folder"):
        read_list(tmp_path, "train")


@pytest.mark.parametrize("text", ["v\0.avi", "v\x1b[2J.avi", "v\r.avi", "v\x9b2J.avi"])
def test_names_hold_no_control_characters(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f'path,label\n"{text}",Diving\n', newline="")
    with pytest.raises(DataError, match=r"holds a control character|not CSV") as error:
        read_list(tmp_path, "train")
    assert str(error.value).isprintable()


def test_a_class_name_with_a_slash_is_a_class_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("path,label\na.mp4,lie/sleep\n")
    assert read_list(tmp_path, "train").class_names == ("lie/sleep",)


def test_prepare_writes_nothing_outside_of_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos, lists, out = tmp_path / "videos", tmp_path / "lists", tmp_path / "in" / "out"
    videos.mkdir()
    lists.mkdir()
    (videos / "v_.._g01_c01.avi").write_bytes(b"of a class that its name calls ..")
    before = sorted(tmp_path.iterdir())
    assert main(["prepare", "--videos", str(videos), "--out", str(out)]) == 3
    assert "outside of --out" in (out / "broken.txt").read_text()
    assert sorted(path.name for path in out.iterdir()) == [".prepare.lock", "broken.txt", "prepare.json"]
    (lists / "train.csv").write_text("path,label\nv_.._g01_c01.avi,../../../way/out\n")
    (lists / "test.csv").write_text("path,label\nother.avi,Diving\n")
    assert main(["prepare", "--videos", str(videos), "--out", str(tmp_path / "b"), "--lists", str(lists)]) == 2
    assert "leaves the data folder" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "in"])


def test_a_cell_of_a_study_has_a_folder_of_its_own() -> None:
    for label in ("..", ".", ".hidden"):
        with pytest.raises(UserError, match="folder would be called"):
            cells(Study("A title", Config(), {"a": {label: {}}}))
    (cell,) = cells(Study("A title", Config(), {"a": {"x/../y": {}}}))
    assert "/" not in cell.name


# -- terminal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("v_Diving_g01_c01", "v_Diving_g01_c01"),
        ("Ünïcode 跳水　\u200a", "Ünïcode 跳水　\u200a"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b2Jb", r"a\x9b2Jb"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        ("a\udcffb", r"a\udcffb"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_printed_passes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--workdir", str(tmp_path / "a\x1b[2J"), "--to", str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said and r"a\x1b[2J" in said
    stream = io.StringIO()
    print("two\nlines\x1b[2J", file=PrintableStream(stream))  # type: ignore[arg-type]
    with Progress(1, "videos", "read", stream=stream) as progress:
        progress.message("name\x1b]0;title\x07")
    assert (
        stream.getvalue().startswith("two\nlines\\x1b[2J\nname\\x1b]0;title\\x07\n") and "\x1b" not in stream.getvalue()
    )


def test_launch_prints_no_commands(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch.py"), "--config=a\x1b[2J.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and r"a\x1b[2J.py: no such file" in done.stderr and "\x1b" not in done.stderr


def test_class_names_of_a_foreign_network_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    seen = type("Seen", (), {"num_frames": 1, "num_clips": 1})
    predict._print_ranking("a\nb", [("Di\x1b[2Jving\nRowing", 0.9), ("x", 0.1)], seen, False)
    assert capsys.readouterr().out.splitlines() == [
        r"a\nb  (1 frames, 1 clip)",
        "  Di\\x1b[2Jving\\nRowing   90.00 %",
        "  x                       10.00 %",
    ]


# -- pages, tables and pictures ----------------------------------------------------------------------------------------

ATTACKS = (
    "<script>alert(1)</script>",
    '"onmouseover="alert(1)',
    "</style><script>alert(1)</script>",
    "</title></svg><img src=x onerror=alert(1)>",
    "'><a href='javascript:alert(1)'>x</a>",
    "]]><!--",
    "\x1b[2J\udcff",
)


class Skeleton(html.parser.HTMLParser):
    """Elements and the names of their attributes; texts aside."""

    def __init__(self, page: str):
        super().__init__()
        self.elements: list[tuple] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def result_of(names: tuple[str, ...]) -> EvalResult:
    """An evaluation in which everything that may come from outside is one of some names."""
    count = len(names)
    predicted = np.roll(np.arange(count), 1)
    scores = np.full((count, count), 0.1)
    scores[np.arange(count), predicted] = 1.0
    return EvalResult(
        metrics={"val/top1_video": 0.0, "val/top5_video": 0.5, "val/mean_class": 0.0, "val/top1_clip": 0.25},
        class_names=names,
        names=np.array(names),
        labels=np.arange(count, dtype=np.int32),
        logits=scores,
        softmax=scores,
        num_views=np.full(count, 1, np.int32),
        broken_views=1,
        broken=tuple((name, name) for name in names),
        missing=names,
        protocol=dataclasses.replace(Protocol.of(Config()), input=names[0]),
        environment={name: name for name in names},
    )


def page_of(names: tuple[str, ...], workdir: Path) -> str:
    cfg = Config()
    cfg.model.family, cfg.model.head.kind, cfg.data.root, cfg.data.source = names[:4]
    cfg.data.classes = names
    save_evaluation(result_of(names), workdir)
    return report.write_report(workdir, cfg=cfg).read_text()


def harmless() -> tuple[str, ...]:
    return tuple(f"name{k}" for k in range(len(ATTACKS)))


def test_names_make_no_elements_of_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_find_videos", lambda cfg: (None, "No film strips."))
    attacked, plain = page_of(ATTACKS, tmp_path / "a"), page_of(harmless(), tmp_path / "b")
    assert Skeleton(attacked).elements == Skeleton(plain).elements and len(Skeleton(plain).elements) > 100
    assert ATTACKS[0] in Skeleton(attacked).texts and "\x1b" not in attacked


def test_a_report_may_load_and_run_nothing(tmp_path: Path) -> None:
    page = report.write_report(tmp_path, cfg=Config()).read_text()
    head = page.partition("<title>")[0]
    assert "Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'" in head


def test_names_make_no_elements_of_a_page_of_two_streams(tmp_path: Path) -> None:
    def page(names: tuple[str, ...], folder: Path) -> str:
        first = second = result_of(names)
        fused = fusion.fuse(first, second, 0.5, "softmax")
        return fusion.write_page(folder, names[:2], (first, second, fused), 0.5, names[2], "softmax").read_text()

    attacked, plain = page(ATTACKS, tmp_path / "a"), page(harmless(), tmp_path / "b")
    assert Skeleton(attacked).elements == Skeleton(plain).elements


@pytest.mark.parametrize("how", ["object array", "bare pickle"])
def test_an_evaluation_that_would_run_code_is_refused(how: str, marker: Path, tmp_path: Path) -> None:
    save_evaluation(result_of(harmless()), tmp_path)
    path = tmp_path / "evaluation.npz"
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(Code(marker)))
    else:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        np.savez(path, **arrays | {"names": np.array([Code(marker)], object)})
    with pytest.raises(
        UserError, match=r"evaluation\.npz: cannot be read \(refused, because reading it could run code"
    ):
        report.write_report(tmp_path, cfg=Config())
    assert not marker.exists()


def test_results_of_a_study_are_text(tmp_path: Path) -> None:
    labels = ("=cmd|'/c calc'!A1", "+1+1", "-x", "@SUM(A1)", "-0.5", "a|b<script>[x](y)`$\\frac$", "e\x1b[2J\nf")
    grid = cells(Study("# <b>T</b>", Config(), {"a": {label: {} for label in labels}}))
    for cell in grid:
        outcome = Outcome("done", 1.0, {"val/top1_video": 0.5}, dict.fromkeys(ATTACKS, 0.5), 10, 1.0, "=1+1")
        (tmp_path / cell.name).mkdir()
        (tmp_path / cell.name / "outcome.json").write_text(json.dumps(dataclasses.asdict(outcome)))
    study = Study("# <b>T</b>", Config(), {"a": {label: {} for label in labels}})
    page = write_results(study, grid, tmp_path).read_text()
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:5]] == [f"'{label}" for label in labels[:4]] and rows[1][-1] == "'=1+1"
    assert rows[5][0] == "-0.5", "a number is a number"
    assert "\x1b" not in page and "<" not in page.replace(r"\<", "") and r"a\|b\<script\>\[x\](y)" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(labels)
    assert len({line.replace(r"\|", "").count("|") for line in table}) == 1, "no label makes a column"
    for name in ("accuracy_gmacs.svg", "accuracy_parameters.svg", "per_class.svg"):
        kinds = {element.tag.rpartition("}")[2] for element in ET.parse(tmp_path / name).iter()}
        assert not kinds & {"script", "a", "foreignObject", "b"}
