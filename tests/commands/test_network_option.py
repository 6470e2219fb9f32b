"""The commands that use a network take it under one option with two spellings, wherever it is."""

import argparse
import functools
import http.server
import importlib
import threading
from pathlib import Path

import pytest

from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import create_configured_model, save_model
from r23d_jax.config import UserError
from r23d_jax.models.functional import initialize
from r23d_jax.weights import pretrained
from r23d_jax.weights.state_dicts import Converted
from tests.commands.test_predict import CLASSES, make_config, write_video

COMMANDS = ("predict", "explain", "features")
NAME = "mc3_18.kinetics400"


@pytest.mark.parametrize("name", [*COMMANDS, "serve"])
def test_one_option_with_two_spellings(name: str) -> None:
    more = {"serve": [], "features": ["v.mp4", "--out", "x.npz"]}.get(name, ["v.mp4"])
    for spelling in ("--weights", "--workdir"):
        parser = argparse.ArgumentParser()
        importlib.import_module(f"r23d_jax.commands.{name}").add_arguments(parser)
        assert parser.parse_args([*more, spelling, "net"]).weights == "net"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, and a network as a checkpoint, as a folder, and as a file."""
    pytest.importorskip("huggingface_hub", reason="pip install -r requirements-hub.txt")
    root, cfg = tmp_path_factory.mktemp("network"), make_config()
    save_model(root / "run", initialize(lambda: create_configured_model(cfg, len(CLASSES))), cfg, CLASSES)
    assert main(["export", "--workdir", str(root / "run"), "--to", str(root / "folder")]) == 0
    assert main(["export", "--workdir", str(root / "run"), "--to", str(root / "net.safetensors")]) == 0
    write_video(root / "v.avi", 20, 0)
    return root


def call(name: str, root: Path, weights: str, *more: str) -> int:
    more = (*more, "--out", str(root / "f.npz")) if name == "features" else more
    return main([name, str(root / "v.avi"), "--weights", weights, *more])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, "convert", "serve", "new"])
def test_a_network_at_a_url(
    name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory, as fsspec calls it."""
    store = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setenv("R23D_CACHE", str(tmp_path / "cache"))
    store.put(str(root / "net.safetensors"), "/weights/net.safetensors")
    url = "memory://weights/net.safetensors"
    if name == "convert":
        assert main([name, "--from", url, "--to", str(tmp_path / "run")]) == 0
    elif name == "serve":
        pytest.importorskip("gradio")
        from r23d_jax.commands import serve

        class Asked(Exception):
            pass

        def ask(weights: Path, *more: object) -> None:
            assert weights.is_file()
            raise Asked

        monkeypatch.setattr(serve, "Service", ask)
        with pytest.raises(Asked):
            main([name, "--weights", url])
    elif name == "new":
        from r23d_jax.commands.new import _read_weights

        assert _read_weights(url).num_classes == len(CLASSES)
    else:
        assert call(name, root, url) == 0
    assert (tmp_path / "cache/remote/copies/memory/weights/net.safetensors").is_file()


@pytest.mark.parametrize(
    ("argv", "option"),
    [
        (["study", "--config", "study:heads", "--workdir"], "--workdir"),
        (["new", ".", "--out"], "--out"),
        (["export", "--workdir", "run", "--to"], "--to"),
        (["convert", "--from", "net.safetensors", "--to"], "--to"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
def test_a_url_where_only_a_path_can_be_used(
    argv: list[str], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*argv, "s3://bucket/out"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {option} s3://bucket/out: must be a path of this machine; ")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["run", "folder", "net.safetensors", "name:" + NAME, NAME])
def test_a_network_from_anywhere(
    name: str, place: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from r23d_jax.checkpoint import read
    from r23d_jax.evaluation.trained import load_model

    model = load_model(root / "run")
    found = Converted(model.model, model.config.model, 3, "r23d_jax", CLASSES, model.preprocessing, origin=NAME)
    monkeypatch.setattr(read, "read_pretrained", lambda name, log: found)
    weights = place if NAME in place else str(root / place)
    assert call(name, root, weights, "--json") == 0
    told = capsys.readouterr().out
    assert '"features": ' in told if name == "features" else any(f'"{label}"' in told for label in CLASSES)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_video_at_an_address(name: str, root: Path, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    more = {"explain": ["--video", str(tmp_path / "a.mp4")], "features": ["--out", str(tmp_path / "f.npz")]}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/v.avi"
        assert main([name, address, "--weights", str(root / "run"), *more.get(name, [])]) == 0
        server.shutdown()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_network_that_is_not_there(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(name, root, "mc3_18.kinetic") == 2
    wanted = "error: mc3_18.kinetic: there is no such file or folder, and no published weights; did you mean mc3_18"
    assert wanted in capsys.readouterr().err


def test_a_project_starts_from_a_name(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r23d_jax.training.recipes import config_text

    monkeypatch.chdir(tmp_path)
    places = {
        NAME: "name:" + NAME,
        "name:" + NAME: "name:" + NAME,
        "a.ckpt": f"{tmp_path}/a.ckpt",
        "s3://b/r": "s3://b/r",
    }
    for weights, wanted in places.items():
        assert f'cfg.init_from = "{wanted}"' in config_text("last_stage", {}, weights, Path("videos"))
    assert pretrained.pretrained_name("name:" + NAME) == NAME
    with pytest.raises(UserError, match="did you mean mc3_18"):
        config_text("last_stage", {}, "name:mc3_18", Path("videos"))
