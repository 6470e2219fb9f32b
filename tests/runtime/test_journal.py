"""What a run writes down stays consistent with the checkpoint it resumes from."""

import json
from pathlib import Path

from r23d_jax.runtime.journal import Journal, read_metrics


def test_rows_are_json_objects_and_not_finite_values_are_null(tmp_path: Path) -> None:
    journal = Journal(tmp_path, resume_step=0)
    journal.write(10, 0.5, {"train/loss": 1.25, "train/grad_norm": float("inf")})
    journal.close()
    line = (tmp_path / "metrics.jsonl").read_text().strip()
    assert json.loads(line) == {"step": 10, "epoch": 0.5, "train/loss": 1.25, "train/grad_norm": None}
    assert list((tmp_path / "tensorboard").iterdir())


def test_resume_takes_out_the_rows_of_steps_that_run_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, resume_step=0)
    for step in (10, 20, 30):
        journal.write(step, step / 10, {"train/loss": 1.0})
    journal.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "train/lo')  # torn by a kill
    resumed = Journal(tmp_path, resume_step=20)
    assert resumed.has(20, "train/loss") and not resumed.has(30, "train/loss")
    resumed.write(30, 3.0, {"train/loss": 2.0})
    resumed.close()
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path)] == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", resume_step=0, active=False)
    journal.write(1, 0.1, {"train/loss": 1.0})
    journal.close()
    assert not (tmp_path / "run").exists()
