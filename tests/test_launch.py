"""The entry point as a user meets it: every config is valid, and mistakes get one message."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from r23d_jax.commands import train
from r23d_jax.config import Config, ConfigError, validate
from r23d_jax.study.grid import cells, load_study
from r23d_jax.training import loop

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = [
    "quickstart", "quickstart:f_r2d,avgpool", "r23d", "r23d:34", "r23d:18,vit_time", "r23d:18,avgpool",
    "r23d:18,attention_pool", "r2plus1d", "r2plus1d:34", "r2plus1d:18,tv", "original", "original:r2plus3d",
    "r23d:finetune", "r2plus1d:finetune", "r2plus1d:finetune,tv", "r2plus1d:bert", "r3d", "r3d:finetune", "r3d:inflate",
    "defaults", "two_stream", "two_stream:i3d", "r23d:flow", "r23d:34,flow", "r23d:published",
    "r23d:18,avgpool,published", "i3d:flow", "r2plus1d:34,flow", "i3d", "i3d:finetune",
    "i3d:finetune,gamma", "i3d:inflate",
    "small_cpu", "small_cpu:avgpool,flow", "ucf5_cpu", "ucf5_cpu:avgpool", "ucf5_cpu:vit,plain",
    "small_cpu:avgpool,rgb_and_diff", "ucf5_cpu:vit,rgb_diff", "ucf5_cpu:vit,flow",
    "pretrain", "pretrain:synthetic", "pretrain:frames,rgb_diff", "pretrain:synthetic,rgb_diff",
]  # fmt: skip


def get_config(name: str) -> Config:
    name, _, arg = name.partition(":")
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_config_is_valid(name: str) -> None:
    assert validate(get_config(name)) is not None


def test_every_config_file_is_tried_and_says_how_it_is_run() -> None:
    files = sorted((ROOT / "configs").glob("*.py"))
    assert {path.stem for path in files} == {name.partition(":")[0] for name in VARIANTS} | {"study"}
    for path in files:
        command = "python -m r23d_jax study" if path.stem == "study" else "python launch.py"
        assert f"{command} --config=configs/{path.name}" in path.read_text()


STUDIES = {
    "": 24, "heads": 12, "heads_ucf5": 63, "heads_diff_ucf5": 63, "heads_full_ucf5": 72, "inputs_ucf5": 27,
    "recipe_ucf5": 99,
    "ucf101": 72, "table": 162, "table_ucf5": 162,
}  # fmt: skip


@pytest.mark.parametrize(("arg", "count"), STUDIES.items())
def test_every_study_has_valid_cells(arg: str, count: int) -> None:
    assert len(cells(load_study(str(ROOT / "configs" / "study.py"), arg))) == count


@pytest.mark.parametrize(
    "name",
    [
        "r23d:19",
        "r23d:18,vitt",
        "r2plus1d:50x",
        "r2plus1d:finetun",
        "r3d:34",
        "i3d:flo",
        "original:i3d",
        "ucf5_cpu:vit,flo",
        "pretrain:frames,flow",
        "pretrain:pictures",
    ],
)
def test_an_unknown_variant_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="known"):
        get_config(name)


def launch(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), *args]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What launch.py writes to stderr for a mistake in its arguments, in this process: each start takes a second."""
    monkeypatch.chdir(ROOT)

    def run(*args: str) -> str:
        assert train.main(list(args)) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")  # ml_collections' own way to run a file
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=configs/quickstart.py", "--config.optimizer.learning_rat=0.1"], "learning_rate"),
        (["--config=configs/quickstart.py", "--config.train.epochs=-1"], "config.train.epochs=-1"),
        (["--config=configs/quickstart.py", "train"], "unexpected argument 'train'"),
        (["--config=configs/r23d.py:19"], "configs/r23d.py:19: depth '19' is unknown; known: 18, 34, published, flow"),
        (["--config=configs/r32d.py"], "--config=configs/r32d.py: no such file; did you mean configs/r"),
        (["--config=configs/r3d.py:finetune"], "config.init_from=weights/r3d_18.pth: there is no such file or folder"),
        (["--config=configs/study.py"], "has no get_config(arg); it describes a study: use the command study"),
        (["--config=configs/quickstart.py", "--config.optimizer.name=lyon"], "config.optimizer.name='lyon': unknown"),
        (["--config=configs/two_stream.py"], "trained streams, which can only be evaluated: use python "),
        ([], "--config is missing: --config=configs/quickstart.py runs anywhere"),
    ],
)
def test_a_mistake_gets_one_message_and_no_traceback(args: list[str], message: str, said: Callable[..., str]) -> None:
    err = said(*args)
    assert err.startswith("error: ") and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "from r23d_jax.config import Config\ndef get_config(arg=''):\n    cfg = Config()\n"
            "    cfg.optimizer.lr = 0.1\n    cfg.train.batch_size = 8\n    return cfg\n",
            "error: config.optimizer.lr: unknown; did you mean learning_rate?\n",
        ),
        (
            "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'lr': 0.1})\n",
            "get_config() must return a r23d_jax.config.Config, not a ConfigDict\n",
        ),
        ("x = 1\n", "has no get_config(arg); it is no config file\n"),
        ("x = 1\ny = (\n", ", line 2: SyntaxError: '(' was never closed"),
        ("def get_config(arg=''):\n    return undefined\n", ", line 2: NameError: name 'undefined' is not defined\n"),
        ("def get_config(arg):\n    return arg\n", ": TypeError: missing a required argument: 'arg'\n"),
    ],
    ids=["unknown field", "another config", "no config", "syntax", "name", "argument"],
)
def test_a_wrong_config_file_gets_one_sentence(
    tmp_path: Path, text: str, message: str, said: Callable[..., str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    err = said(f"--config={file}", "--config.optimizer.learning_rate=0.1", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
def test_a_lack_of_memory_names_the_fields_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(loop, "train", lambda cfg, workdir, **_: jax.numpy.zeros(2**46, "uint8").block_until_ready())
    assert train.main(["--config=quickstart", f"--workdir={tmp_path}"], "train") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: lower config.train.global_batch_size, or set config.train.accumulate")


@pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("args", "folder"),
    [
        (["--config=quickstart"], "runs/quickstart"),
        (["--config=configs/r2plus1d.py:18,flow"], "runs/r2plus1d_18_flow"),
        (["--config", "r2plus1d:finetune"], "runs/r2plus1d_finetune"),
        (["--config=r23d:34", "--workdir=mine"], "mine"),
    ],
)
def test_each_variant_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, args: list[str], folder: str) -> None:
    given: list[Path] = []
    monkeypatch.setattr(loop, "train", lambda cfg, workdir, **_: given.append(workdir) or True)
    assert train.main(args, "train") == 0 and given == [Path(folder)]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", [["info"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_ends_is_no_error(command: list[str], unbuffered: str) -> None:
    """As `| head -1`, which closes the pipe before everything is written."""
    full = [sys.executable, "-m", "r23d_jax", *command]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    pipe = subprocess.PIPE
    with subprocess.Popen(full, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().decode() == "" and process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("redirected", "status", "said"),
    [("> /dev/full", 2, "error: the output cannot be written: No space left on device\n"), (">&-", 0, "")],
    ids=["full", "closed"],
)
def test_an_output_that_takes_nothing(redirected: str, status: int, said: str) -> None:
    line = f"{sys.executable} -m r23d_jax info r3d_18 {redirected}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, said)


def test_help() -> None:
    done = launch("--help")
    assert done.returncode == 0 and "--config.<group>.<field>=VALUE" in done.stdout
    assert "configs/quickstart.py" in done.stdout and "--workdir" in done.stdout


@pytest.mark.parametrize(
    ("command", "left_out"),
    [("", {"study.py"}), ("evaluate", {"study.py"}), ("train", {"study.py", "two_stream.py"})],
)
def test_help_lists_the_configs_that_a_command_takes(
    command: str, left_out: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train.parse(["--help"], command, "", lambda values: None)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Configs: ")]
    files = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py") if path.name not in left_out}
    assert set(line.removeprefix("Configs: ").split(", ")) == files


def test_missing_data_says_what_to_download_and_where_to_put_it(tmp_path: Path) -> None:
    done = launch("--config=configs/r23d.py", f"--workdir={tmp_path}/run", f"--config.data.lists={tmp_path}/lists")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stdout.startswith("running on ")
    for part in ("https://www.crcv.ucf.edu/data/UCF101.php", "--config.data.root=", "--config=configs/quickstart.py"):
        assert part in done.stderr
