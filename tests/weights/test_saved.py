"""Networks saved as folders, their model cards, and the Hub, which a server on this machine stands in for."""

import dataclasses
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

import r23d_jax
from r23d_jax import config
from r23d_jax.__main__ import main
from r23d_jax.checkpoint.checkpoint import Checkpoints
from r23d_jax.commands import train
from r23d_jax.config import Config, UserError
from r23d_jax.evaluation.bootstrap import interval
from r23d_jax.evaluation.card import _figures, _intervals, _split, model_card, training_command, wilson
from r23d_jax.evaluation.metrics import video_metrics
from r23d_jax.evaluation.result import EvalResult, Protocol, environment, save_evaluation
from r23d_jax.evaluation.trained import TrainedModel, from_pretrained, load_model
from r23d_jax.models.functional import split_model
from r23d_jax.runtime import disk
from r23d_jax.weights import saved
from r23d_jax.weights.saved import HubError
from r23d_jax.weights.tables import ConversionError
from tests.training.tiny import start, tiny_config
from tests.weights.hub_server import COMMIT, Hub, hub_server

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("a", "b|c", "d")
NAMES = [f"v{k}" for k in range(10)]
hub_package = pytest.importorskip("huggingface_hub", reason="pip install -r requirements-hub.txt")


def evaluated(cfg: Config, wrong: int, step: int | None = None, names: Sequence[str] = NAMES) -> EvalResult:
    """Of ten videos, the first `wrong` ones of class "b|c" are taken for "d"."""
    labels = np.array([0, 0, 1, 1, 1, 1, 1, 2, 2, 2], np.int32)
    scores = np.eye(3)[labels]
    scores[2 : 2 + wrong] = np.eye(3)[2]
    more = {} if step is None else {"checkpoint": f"step {step}"}
    return EvalResult(
        metrics=video_metrics(scores, scores, labels) | {"val/top1_clip": 0.5, "val/loss": 1.25},
        class_names=CLASSES,
        names=np.array(names),
        labels=labels,
        logits=scores,
        softmax=scores,
        num_views=np.ones(10, np.int32),
        broken_views=0,
        broken=(),
        missing=("lost",),
        protocol=Protocol.of(cfg),
        environment=environment() | more,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one checkpoint, with the evaluation of its training and two later ones, one of another checkpoint."""
    workdir = tmp_path_factory.mktemp("run")
    cfg = tiny_config("r2plus1d", "vit")
    cfg.data.root, cfg.data.lists, cfg.data.flip = "/home/somebody/ucf5/frames", "/home/somebody/lists", "auto"
    result = evaluated(cfg, wrong=2)
    checkpoints = Checkpoints(workdir, log=lambda line: None)
    meta = {"config": dataclasses.asdict(cfg), "class_names": list(CLASSES)}
    meta |= {"preprocessing": dataclasses.asdict(config.preprocessing(cfg.data))}
    state = start(cfg)[0]
    checkpoints.save(dataclasses.replace(state, step=state.step + 40), meta, result.metrics)
    checkpoints.close()
    save_evaluation(result, workdir)
    for clips, step in ((3, 40), (7, 500)):
        cfg.eval.views, cfg.eval.num_clips = "uniform", clips
        result = evaluated(cfg, wrong=1, step=step)
        save_evaluation(result, workdir / "evaluations" / result.protocol.folder)
    return workdir


@pytest.fixture
def model(workdir: Path) -> TrainedModel:
    return load_model(workdir)


def same(one: TrainedModel, other: TrainedModel) -> None:
    jax.tree.map(np.testing.assert_array_equal, split_model(one.model)[1:], split_model(other.model)[1:])
    assert one.class_names == other.class_names and one.preprocessing == other.preprocessing
    assert one.config.model == other.config.model and one.config.data.num_frames == other.config.data.num_frames


# -- folders -----------------------------------------------------------------------------------------------------------


def test_a_saved_network_is_the_same(model: TrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "new" / "net")
    model.save_pretrained(tmp_path / "new" / "net")  # replaces it
    assert {path.name for path in (tmp_path / "new" / "net").iterdir()} == {saved.WEIGHTS, saved.CONFIG, saved.CARD}
    again = from_pretrained(tmp_path / "new" / "net")
    same(model, again)
    same(again, load_model(tmp_path / "new" / "net"))
    again.save_pretrained(tmp_path / "twice")
    same(model, from_pretrained(str(tmp_path / "twice")))
    card = (tmp_path / "twice" / saved.CARD).read_text()
    assert (
        "No figures that were measured with this code are kept" in card
        and "Trained on" not in card
        and "ucf5" not in card
    )


@pytest.mark.slow
def test_a_folder_needs_no_other_framework(model: TrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "net")
    code = (
        "import sys\n"
        "for name in ('torch', 'tensorflow', 'huggingface_hub', 'matplotlib'): sys.modules[name] = None\n"
        f"import numpy as np, r23d_jax; model = r23d_jax.from_pretrained({str(tmp_path / 'net')!r})\n"
        "assert model(np.zeros((1, 4, 16, 16, 3), np.uint8)).shape == (1, 3)\n"
        "try: model.save_pretrained('x')\n"
        "except r23d_jax.config.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "need huggingface_hub, which is not installed: pip install huggingface_hub" in done.stdout


def test_a_folder_of_somebody_else(model: TrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    path = tmp_path / saved.CONFIG
    good = json.loads(path.read_text())
    for text, message in (
        ("{", r"config.json: cannot be read"),
        ("[" * 100_000, r"config.json: cannot be read"),
        ("[]", "config.json: describes no network of r23d_jax"),
        (json.dumps(good | {"format": "other"}), "describes no network of r23d_jax"),
        (json.dumps({"format": "r23d_jax"}), "description of its network cannot be used"),
        (json.dumps(good | {"class_names": ["a", "b"]}), r"do not fit this network:\n.*classifier.bias: \[3\]"),
        (json.dumps(good | {"config": good["config"] | {"family": "os.system"}}), "family"),
        (json.dumps(good | {"config": good["config"] | {"depth": 18}}), "do not fit this network"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="has no model.safetensors and config.json; a run's folder is read by"):
        from_pretrained(tmp_path)
    path.write_text(json.dumps(good))
    (tmp_path / saved.WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ConversionError, match="not a whole safetensors file"):
        from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written(model: TrainedModel, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        model.save_pretrained(tmp_path / "file")
    theirs = tmp_path / "theirs"  # of another program that uses the same names
    theirs.mkdir()
    (theirs / saved.WEIGHTS).write_bytes(b"theirs")
    (theirs / saved.CONFIG).write_text('{"model_type": "videomae"}')
    for place in (workdir, tmp_path, theirs):
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        with pytest.raises(ConversionError, match="holds other files, which must not be replaced; give a new folder"):
            model.save_pretrained(place)
        assert before == {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_a_run_with_an_exported_file_is_still_a_run(workdir: Path, tmp_path: Path) -> None:
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")  # of the run
    assert main(["export", "--workdir", str(workdir), "--to", str(tmp_path / "run" / saved.WEIGHTS)]) == 0
    same(load_model(tmp_path / "run"), load_model(workdir))
    with pytest.raises(ConversionError, match="holds other files, which must not be replaced"):
        load_model(workdir).save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == "{}"


@pytest.mark.slow
def test_the_commands_take_and_make_folders(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "net"
    assert main(["export", "--workdir", str(workdir), "--to", str(to)]) == 0
    assert f"{to}: model.safetensors, read back and equal; config.json; README.md" in capsys.readouterr().out
    assert main(["convert", "--from", str(to), "--to", str(tmp_path / "run")]) == 0
    assert "r2plus1d_10, vit head, 3 classes" in capsys.readouterr().out
    same(load_model(tmp_path / "run"), load_model(workdir))
    for arguments, message in (
        (["--to", str(to), "--names", "vmz"], "a folder has no --definition and no --names"),
        (["--to", str(to) + ".safetensors", "--push", "a/b"], "--push a/b: needs a folder in --to"),
    ):
        assert main(["export", "--workdir", str(workdir), *arguments]) == 2
        assert message in capsys.readouterr().err


# -- the card ----------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_measured(model: TrainedModel) -> None:
    card = hub_package.ModelCard(model_card(model))
    text = card.text
    assert "r2plus1d_10 with the head `vit`" in text and "3 classes (a, b\\|c, d)" in text
    assert "Trained on `ucf5`, split 1, from random weights: 300 epochs with `adamw`" in text
    assert "These are the values of step 40." in text and "as the best on these videos, as `load_model` does" in text
    assert "all non-overlapping clips of 4 frames x 1 crop of 16x16" in text and "lost" in text
    assert "| video top-1 | 80.00 % | 49.0 to 94.3 % |" in text  # 8 of 10
    assert "| mean class | 86.67 % | - |" in text
    assert "| b\\|c | d | 2 | 40 % |" in text
    assert "3 uniform clips of 4 frames" in text and "| video top-1 | 90.00 % | 59.6 to 98.2 % |" in text
    assert "7 uniform clips" not in text, "that is another checkpoint's"
    assert f"jax {jax.__version__}" in text and "/home/somebody" not in text
    assert card.data.library_name == "r23d_jax" and card.data.pipeline_tag == "video-classification"
    (first, *_) = card.data.eval_results
    assert first.metric_value == 0.8 and first.dataset_split == "test 1" and "video top-1" in first.metric_name
    assert len(card.data.eval_results) == 6
    model.config.train.epochs = 1.0
    assert "from random weights: 1 epoch with `adamw`" in model_card(model)


def test_the_split_of_a_fold_is_told() -> None:
    protocol = Protocol.of(Config())
    assert _split(protocol) == "test 1"
    assert _split(dataclasses.replace(protocol, fold=2)) == "held-out groups of train 1, fold 2"


def test_an_evaluation_of_another_state_is_left_out(model: TrainedModel) -> None:
    other = dataclasses.replace(model, step=500, metrics={"val/top1_video": 0.25})
    text = model_card(other)
    assert "7 uniform clips" in text and "3 uniform clips" not in text and "80.00 %" not in text


def test_published_figures_are_not_taken_as_measured(model: TrainedModel) -> None:
    text = model_card(dataclasses.replace(model, path=Path("name:r2plus1d_18.kinetics400")))
    assert "67.463 % top-1 and 86.175 % top-5 (Kinetics-400 validation, 5 clips of 16 frames" in text
    assert "which was not measured with this code" in text and "No figures that were measured" in text
    assert "license: bsd-3-clause" in text and "model-index" not in text


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
def test_the_cards_command_makes_the_same_config(model: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = model.config
    cfg.init_skip, cfg.init_from = ("stage4", "head"), "weights of mine.pth"
    cfg.fusion.first_root = "/home/somebody/frames"
    command = training_command(cfg)
    assert command in model_card(model)
    _, name, *arguments = shlex.split(command.replace("\\\n", ""))
    assert name == "train"
    again = config.validate(train._parse(arguments, "train").config)
    assert (again.data.root, again.data.lists) == ("frames", "lists")
    again.data.root, again.data.lists = cfg.data.root, cfg.data.lists
    assert again.fusion.first_root == "frames" and "/home" not in command
    again.fusion.first_root = cfg.fusion.first_root
    assert again == cfg


def test_the_intervals_are_over_recordings_where_the_names_tell_them(model: TrainedModel) -> None:
    recordings = ["v_a_g01_c01", "v_a_g01_c02", *(f"v_b_g{k:02}_c01" for k in range(1, 6))]
    recordings += [f"v_d_g{k:02}_c01" for k in range(1, 4)]
    result = evaluated(model.config, wrong=2, names=recordings)
    intervals, words = _intervals(result)
    hits = (result.predictions == result.labels).astype(float)
    wanted = interval(hits, np.zeros(10, int), np.array([0, 0, *range(1, 9)]))
    assert intervals["val/top1_video"] == (wanted.low, wanted.high) and wanted.low < 0.8 < wanted.high
    low, high = intervals["val/mean_class"]
    assert low < result.metrics["val/mean_class"] < high
    assert "a bootstrap over the 9 recordings that the names of the 10 videos tell" in words
    text = "\n".join(_figures(result))
    assert f"| video top-1 | 80.00 % | {100 * wanted.low:.1f} to {100 * wanted.high:.1f} % |" in text
    assert "| video top-5 | 100.00 % | - |" in text and "Wilson" not in text
    _, words = _intervals(evaluated(model.config, wrong=2, names=[*recordings[:-1], "mine"]))
    assert "The interval (Wilson) treats videos as independent, because not all of their names tell" in words
    nothing = dataclasses.replace(result, num_views=np.zeros(10, np.int32))
    assert _intervals(nothing) == ({}, "No video was evaluated, so there is no interval.")


def test_wilson_holds_the_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for share in (0.5, 0.9):
        held = [low <= share <= high for low, high in (wilson(k / 40, 40) for k in rng.binomial(40, share, 2_000))]
        assert 0.93 < np.mean(held) < 0.98
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4) and wilson(0.0, 10)[0] == 0.0


# -- the Hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv(disk.CACHE, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with hub_server() as hub:
        constants = importlib.import_module("huggingface_hub.constants")  # not imported with the package
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub


def test_there_and_back(hub: Hub, model: TrainedModel, tmp_path: Path) -> None:
    assert model.push_to_hub("me/net", private=True) == f"{hub.url}/me/net"
    assert hub.private == {"me/net": True} and set(hub.files["me/net"]) == {saved.WEIGHTS, saved.CONFIG, saved.CARD}
    assert b"| video top-1 | 80.00 % |" in hub.files["me/net"][saved.CARD]
    hub.files["me/net"]["modeling.py"] = b"raise SystemExit"
    hub.asked.clear()
    again = r23d_jax.from_pretrained("me/net")
    same(model, again)
    asked = {path.rpartition("/")[2] for _, path in hub.asked if "/resolve/" in path}
    assert asked == {saved.WEIGHTS, saved.CONFIG}, "and no code"
    assert (tmp_path / "cache" / "hub") in again.path.parents
    same(model, from_pretrained("me/net", revision=COMMIT))


def test_the_command_pushes(
    hub: Hub, workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", "--workdir", str(workdir), "--to", str(tmp_path / "net"), "--push", "me/net"]
    assert main(arguments) == 0
    assert f"pushed   {hub.url}/me/net" in capsys.readouterr().out and saved.WEIGHTS in hub.files["me/net"]
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(arguments) == 2
    assert "error: me/net: the Hub gives no answer, or refuses (" in (said := capsys.readouterr().err)
    assert "401" in said and "hf auth login" in said


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("me/none", None, "me/none: the Hub gives no answer, or refuses .*RepositoryNotFoundError"),
        ("me/net", "v9", "me/net: .*RevisionNotFoundError"),
        ("me/net", None, "me/net: .*EntryNotFoundError"),
        ("no/such/folder", None, "no/such/folder: .*Names are owner/name"),
    ],
)
def test_what_the_hub_has_not(hub: Hub, repo: str, revision: str | None, message: str) -> None:
    hub.files["me/net"] = {"pytorch_model.bin": b""}
    with pytest.raises(HubError, match=message):
        from_pretrained(repo, revision)
