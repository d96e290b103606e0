"""Several hosts (processes) that run one program together through `jax.distributed`.

There is no engine of our own: JAX connects the processes, watches their heartbeats and ends all of
them where one dies. Here is what a program must decide besides: who writes, and that all stop
together.
"""

import glob
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fusion_jax.errors import FusionError, first_line


def start(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout: int = 60,
) -> None:
    """Connect to the other processes of this run; does nothing for a run of one process.

    Call it before anything else uses JAX. Under Slurm (a job step of several tasks) and on TPU
    hosts JAX finds the others by itself; elsewhere all three of `coordinator`, `num_processes` and
    `process_id` are needed.

    Args:
        coordinator: "address:port" of process 0, reachable from all.
        num_processes: how many processes there are.
        process_id: which of them this is, from 0.
        heartbeat_timeout: seconds after which a process that is not heard of counts as dead, and
            the others end.

    Raises:
        FusionError: where only some are given, or the processes do not come together.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and any(value is None for value in given):
        raise FusionError(
            "--coordinator, --num_processes and --process_id belong together: give all or none"
        )
    if coordinator is None and not _in_cluster():
        return
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        raise FusionError(
            f"the processes of this run did not come together ({first_line(error)}): "
            "check the address, and that all were started"
        ) from error


def is_lead() -> bool:
    """Whether this process is the one that writes logs and reports."""
    return jax.process_index() == 0


def this_host() -> tuple[int, int]:
    """Index of this process, and the number of processes."""
    return jax.process_index(), jax.process_count()


def lead_does(action: Callable[[], Any]) -> None:
    """Run an action on the leading process; where it fails there, all processes end.

    Raises:
        FusionError: what the action raised, or on the others that it failed.
    """
    failure: FusionError | None = None
    if is_lead():
        try:
            action()
        except FusionError as error:
            failure = error
    failed = bool(shared(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise FusionError("process 0 cannot go on: see what it says")


def wait_for_all(name: str) -> None:
    """Return when all processes have come to the place of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def should_stop(step: int, noted: bool) -> bool:
    """Whether all processes save and stop after this step, because one of them got SIGTERM.

    Args:
        step: the finished step; all processes ask at every step.
        noted: whether this process got SIGTERM; used where it is the only one.
    """
    if jax.process_count() == 1:
        return noted
    return multihost_utils.reached_preemption_sync_point(step)


def shared(value: int) -> int:
    """The leading process's number, on all."""
    if jax.process_count() == 1:
        return int(value)
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def agreed(look: Callable[[], int]) -> int:
    """What a function gives on the leading process, on all; where it fails there, all end.

    Raises:
        FusionError: as `lead_does`.
    """
    found = []
    lead_does(lambda: found.append(look()))
    return shared(found[0] if found else 0)


def _in_cluster() -> bool:
    """Whether JAX can find the other processes by itself."""
    # The last is set by srun: in a batch script without it nobody else was started.
    wanted_by_jax = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST")
    step = all(name in os.environ for name in wanted_by_jax)
    slurm = step and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    tpu = "tpu" in wanted and importlib.util.find_spec("libtpu") is not None and bool(chips)
    return slurm or tpu
