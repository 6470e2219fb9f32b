"""One process of a job without any data: prints what all must agree on.

python -m tests.runtime.agreeing COORDINATOR NUM_PROCESSES PROCESS_ID
"""

import json
import os
import signal
import sys
import time

import numpy as np

from r23d_jax.runtime import distributed


def main(coordinator: str, num_processes: int, process_id: int) -> None:
    distributed.join(coordinator, num_processes, process_id, heartbeat_seconds=30)
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from r23d_jax.checkpoint.checksums import leaf_table
    from r23d_jax.runtime import parallel
    from r23d_jax.training.interrupt import StopRequest

    mesh = parallel.make_mesh()
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    placed = {
        "spread": parallel.place(values, NamedSharding(mesh, PartitionSpec(parallel.AXES))),
        "whole": parallel.place(values, NamedSharding(mesh, PartitionSpec())),
    }
    own = jax.device_put(values, jax.local_devices()[0])
    leaves = leaf_table({"own": own, **placed})
    sums = {name: float(jax.jit(jnp.sum)(array)) for name, array in placed.items()}
    with StopRequest(log=lambda line: None) as stop:
        calls = 1
        while not stop.asked():
            if calls == 5 and process_id == 1:
                os.kill(os.getpid(), signal.SIGINT)
            calls += 1
            time.sleep(0.05 * (1 + process_id))  # not in step
    print(json.dumps({"leaves": leaves, "sums": sums, "calls": calls}))


if __name__ == "__main__":
    _, address, number, own_number = sys.argv
    main(address, int(number), int(own_number))
