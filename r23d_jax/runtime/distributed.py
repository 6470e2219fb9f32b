"""Joins the processes of one job: one per host, or one per device."""

import os
import socket
import sys
import threading
import time

from r23d_jax.config import ConfigError, UserError
from r23d_jax.runtime import remote

LOOKED_FOR = "SLURM (srun), Open MPI 4 (mpirun), Kubernetes (with the package `kubernetes`), a Cloud TPU"
JOIN_SECONDS = 300  # time for all processes of a job to arrive
HEARTBEAT_SECONDS = 30
REPORT_SECONDS = 3600  # in which the first process draws the report, while the others wait at their end
LOST = 3  # exit status after the loss of another process of the job
# Words in the errors of the libraries that connect processes
_SIGNS_OF_LOSS = ("Gloo", "NCCL", "oordination service", "heartbeat", "onnection reset", "onnection closed")


def check_flags(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Raises ConfigError, naming the flag, if the flags for a place in a job are incomplete or wrong."""
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [flag for flag, value in given.items() if value in ("", None)]
    if missing:
        raise ConfigError(f"{', '.join(given)} go together; {' and '.join(missing)} is missing")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator}: must be HOST:PORT of process 0, e.g. 10.0.0.1:1234")
    assert num_processes is not None and process_id is not None
    if num_processes < 1:
        raise ConfigError(f"--num_processes={num_processes}: must be at least 1")
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"--process_id={process_id}: must be 0 to {num_processes - 1} for {num_processes} processes")


def join(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    join_seconds: int = JOIN_SECONDS,
) -> None:
    """Joins the other processes, which then see each other's devices. Must precede every other use of jax.

    If the others do not arrive in time, this process ends with a message and status 2.

    Args:
      coordinator: HOST:PORT of process 0; "": the cluster's environment gives this and the next two.
      process_id: number of this process, 0 to num_processes - 1.
      heartbeat_seconds: a process that is silent for this long counts as lost, and all others end.
      join_seconds: how long to wait for the others.

    Raises:
      ConfigError: if the flags are wrong, or no cluster is recognized.
      UserError: if the coordinator cannot be reached, or the cluster refuses an answer.
    """
    import jax

    if coordinator:
        check_flags(coordinator, num_processes, process_id)
        if process_id == 0:
            _check_free(coordinator)
        else:
            _await_coordinator(coordinator, join_seconds)
    # jax itself would abort with a C++ stack, and cannot be interrupted while it waits.
    late = threading.Timer(join_seconds, _give_up, (num_processes, join_seconds))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator or None,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=join_seconds + 60,
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=REPORT_SECONDS,
        )
    except ValueError as error:
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise
        raise ConfigError(
            f"--distributed: no cluster is recognized here; looked for {LOOKED_FOR}. Elsewhere give --coordinator, "
            "--num_processes and --process_id"
        ) from None
    except RuntimeError as error:  # the cluster refused jax's request, or does not know a name
        raise UserError(
            f"the processes of the job cannot be joined: {error}\n--coordinator, --num_processes and --process_id set "
            "the place of each by hand"
        ) from error
    finally:
        late.cancel()


def process_index() -> int:
    """The number of this process in its job; 0 without one."""
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this is process 0, which prints for all."""
    return process_index() == 0


def several() -> bool:
    """Whether the job has more than one process."""
    import jax

    return jax.process_count() > 1


def sync(name: str) -> None:
    """Makes all processes of the job wait for each other; the name must be the same in all."""
    from jax.experimental import multihost_utils

    if several():
        multihost_utils.sync_global_devices(name)


def leave_job(message: str, status: int) -> None:
    """Ends a failed process at once, without waiting for the others of its job; returns if there are no others.

    The others end when they miss its heartbeat, or its part of their computation.
    """
    import jax

    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return
    print(f"error: process {jax.process_index()} of {jax.process_count()}: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def means_loss(error: Exception) -> bool:
    """Whether an error means that another process of the job is gone, and not e.g. that an object store is away."""
    lines = str(error).strip().splitlines()[:1]
    signs = any(word in line for line in lines for word in _SIGNS_OF_LOSS)
    return signs and not isinstance(error, remote.RemoteError)


def leave_lost_job(error: Exception) -> None:
    """Ends this process with a message if an error means that another process of its job is gone; else returns."""
    if means_loss(error):
        first = str(error).strip().splitlines()[0]
        leave_job(
            f"another process of the job has ended or hangs ({first[:160]}). Start all processes again with the "
            "same command: they resume from the newest checkpoint.",
            LOST,
        )


def _give_up(num_processes: int | None, seconds: float) -> None:
    several = f"{num_processes} processes" if num_processes else "processes"
    print(
        f"error: the {several} of the job have not come together in {seconds:g} s; check that all of them were "
        "started, read their messages, and start all again with the same --coordinator and --num_processes",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


def _check_free(coordinator: str) -> None:
    host, _, port = coordinator.rpartition(":")
    with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise UserError(
                f"--coordinator={coordinator}: port {port} cannot be used on this host ({error.strerror}); is another "
                "job running here? Choose another port, the same for all processes"
            ) from None


def _await_coordinator(coordinator: str, seconds: float) -> None:
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={coordinator}: not reached in {seconds:g} s ({error}); is process 0 running there, "
                    "and is the port open between the hosts?"
                ) from None
            time.sleep(1)
