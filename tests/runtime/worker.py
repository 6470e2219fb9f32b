"""One process of a job: trains on the tiny set and writes down what it read and what came out.

python -m tests.runtime.worker COORDINATOR NUM_PROCESSES PROCESS_ID DATA WORKDIR OUT STOP_AFTER

A process alone that is to stop after a step (0: none) does so by a signal, and writes down nothing.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from r23d_jax.runtime import distributed


def main(
    coordinator: str, num_processes: int, process_id: int, data: Path, workdir: Path, out: Path, stop_after: int
) -> None:
    if num_processes > 1:
        distributed.join(coordinator, num_processes, process_id, heartbeat_seconds=30)
    import jax

    from r23d_jax.checkpoint.checkpoint import load_checkpoint
    from r23d_jax.evaluation.run import evaluate_checkpoint
    from r23d_jax.runtime.journal import read_metrics
    from r23d_jax.training import loop
    from tests.training.test_loop import config_for

    read: list[list[int]] = []
    train_batches = loop.train_batches

    def recorded(*args: Any, **options: Any) -> Any:
        batches = train_batches(*args, **options)
        close = batches.close

        def each() -> Any:
            for batch in batches:
                read.append(batch["video_id"].tolist())
                yield batch
            close()

        return each()

    loop.train_batches = recorded
    add = loop.Meter.add

    def add_and_stop(meter: loop.Meter, step: int, *rest: Any) -> None:
        add(meter, step, *rest)
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.Meter.add = add_and_stop  # type: ignore[method-assign]
    cfg = config_for(data)
    cfg.parallel.fsdp = 2
    cfg.eval.num_clips, cfg.eval.batch_size = 3, 10  # 36 views in batches of 12 or 16: the last is not full
    lines: list[str] = []
    result = loop.train(cfg, workdir, log=lines.append)
    assert (result is None) == bool(stop_after)
    if result is None:
        return
    again = evaluate_checkpoint(cfg, workdir)
    found = {
        "saved": load_checkpoint(workdir, "latest").metrics,
        "evaluated_again": again.metrics,
        "devices": jax.device_count(),
        "read": read,
        "lines": lines,
        "metrics": result.metrics,
        "logits": result.logits.tolist(),
        "losses": [row["train/loss"] for row in read_metrics(workdir) if "train/loss" in row],
    }
    (out / f"{process_id}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    _, address, number, own, data, workdir, out, last = sys.argv
    main(address, int(number), int(own), Path(data), Path(workdir), Path(out), int(last))
