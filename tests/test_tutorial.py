"""The blocks of docs/tutorial.md, run in order as they stand, with a shorter training."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.long
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/tutorial.md").read_text()
    assert "```bash" not in text  # which a notebook would run
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = "\n".join(blocks)
    assert code.count("cfg.train.epochs = 9.0") == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))  # for configs/
    names: dict = {}
    exec(code.replace("cfg.train.epochs = 9.0", "cfg.train.epochs = 0.1; cfg.eval.num_clips = 1"), names)
    said = capsys.readouterr().out
    assert re.search(r"^video top-1 \d+\.\d %$", said, re.MULTILINE)
    assert len(re.findall(r"^(?:as it is|backwards|shuffled|still) +\w+ +\d+\.\d %$", said, re.MULTILINE)) == 4
    assert re.search(r"^  (?:gradcam over time|no place of any clip)", said, re.MULTILINE)
    assert Path("runs/tutorial/why.png").stat().st_size > 1000
    assert said.splitlines()[-1] in names["names"]
