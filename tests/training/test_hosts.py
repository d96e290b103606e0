"""Two processes that train together, and what happens when one of them dies."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from fusion_jax.errors import FusionError
from fusion_jax.evaluation.records import Records
from fusion_jax.training import hosts
from fusion_jax.training.checkpoints import digest
from tests.conftest import ROOT
from tests.training.conftest import COMMAND, NUM_STEPS, finish, log_lines, restored
from tests.training.test_strategies import free_port

HEARTBEAT = 10
# 304 is the multiple of 8 devices next to the 300 validation examples.
EIGHT = ["--config.eval_batch_size=304"]


def start_together(
    workdir: Path,
    environment: dict[str, str],
    *flags: str,
    processes: int = 2,
    devices: int = 8,
    command: Sequence[str] = (*COMMAND, *EIGHT),
) -> list[subprocess.Popen]:
    """Start a program as some processes that have so many devices together."""
    own_devices = f"--xla_force_host_platform_device_count={devices // processes}"
    port = free_port()
    started = []
    for number in range(processes):
        together = [
            f"--coordinator=localhost:{port}",
            f"--num_processes={processes}",
            f"--process_id={number}",
            f"--heartbeat_timeout={HEARTBEAT}",
        ]
        everything = [*command, *flags, *(together if processes > 1 else [])]
        started.append(
            subprocess.Popen(
                [*everything, f"--workdir={workdir}"],
                env=environment | {"XLA_FLAGS": own_devices, "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def wait_for_step(workdir: Path, step: int, *, seconds: float = 300) -> None:
    """Until the log of the run tells of a step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path = workdir / "seed_0" / "metrics.jsonl"
        if path.exists() and any(line["step"] >= step for line in log_lines(workdir)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, program_environment) -> Path:
    """The folder of a run of two processes that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("hosts") / "run"
    for process in start_together(workdir, program_environment):
        status, stderr = finish(process)
        assert status == 0, stderr
    return workdir


def assert_same_training(workdir: Path, reference: Path, *, bits: bool) -> None:
    mine, theirs = restored(workdir), restored(reference)
    assert int(mine.step) == int(theirs.step) == NUM_STEPS
    if bits:
        assert int(digest(mine)) == int(digest(theirs))
    losses = [
        [line["loss"] for line in log_lines(d) if "loss" in line] for d in (workdir, reference)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(undisturbed, tmp_path, program_environment):
    (process,) = start_together(tmp_path / "run", program_environment, processes=1)
    status, stderr = finish(process)
    assert status == 0, stderr
    assert_same_training(tmp_path / "run", undisturbed, bits=False)
    # One of them wrote the log: no line is there twice.
    steps = [line["step"] for line in log_lines(undisturbed) if "loss" in line]
    assert steps == list(range(3, NUM_STEPS + 1, 3))


def read_all(records):
    """Not memory-mapped: the next evaluation replaces the files."""
    return {name: np.array(records[name]) for name in records}


@pytest.mark.slow
def test_two_processes_evaluate_what_one_evaluates(undisturbed, tmp_path, program_environment):
    workdir = shutil.copytree(undisturbed, tmp_path / "run")
    reports, records = [], []
    for processes in (2, 1):
        command = [sys.executable, str(ROOT / "eval.py")]
        for process in start_together(
            workdir, program_environment, processes=processes, command=command
        ):
            status, stderr = finish(process)
            assert status == 0, stderr
        reports.append(json.loads((workdir / "report.json").read_text()))
        records.append(read_all(Records(workdir / "seed_0" / "records_test")))
        (workdir / "report.json").unlink()
    assert records[0]["correct"].shape == records[1]["correct"].shape
    np.testing.assert_array_equal(records[0]["example_id"], records[1]["example_id"])
    np.testing.assert_allclose(records[0]["nll"], records[1]["nll"], atol=1e-5)
    assert len(reports[0]["cells"]) == len(reports[1]["cells"]) > 5


@pytest.mark.slow
def test_survivors_of_a_killed_process_stop_and_a_restart_gives_the_same_result(
    undisturbed, tmp_path, program_environment
):
    workdir = tmp_path / "run"
    victim, step = random.randint(0, 1), random.randint(3, NUM_STEPS - 6)
    print(f"process {victim} is killed after step {step}")  # Shown where the test fails.
    processes = start_together(workdir, program_environment)
    wait_for_step(workdir, step)
    processes[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    status, stderr = finish(processes[1 - victim])
    # The heartbeat, and time to notice on a busy machine.
    assert time.monotonic() - killed < HEARTBEAT + 20
    assert status != 0
    assert "another task died" in stderr or "unhealthy" in stderr or "UNAVAILABLE" in stderr
    processes[victim].communicate()
    for process in start_together(workdir, program_environment):
        status, stderr = finish(process)
        assert status == 0, stderr
    assert_same_training(workdir, undisturbed, bits=True)


@pytest.mark.slow
def test_sigterm_at_one_process_saves_and_stops_all(undisturbed, tmp_path, program_environment):
    workdir = tmp_path / "run"
    processes = start_together(workdir, program_environment)
    wait_for_step(workdir, 9)
    processes[1].send_signal(signal.SIGTERM)
    ended = [finish(process) for process in processes]
    assert [status for status, _ in ended] == [143, 143]
    assert all("saved; the same command goes on" in stderr for _, stderr in ended)
    stopped = int(restored(workdir).step)
    assert 9 <= stopped < NUM_STEPS
    # On with another number of processes and devices: nothing was lost.
    (process,) = start_together(workdir, program_environment, processes=1)
    status, stderr = finish(process)
    assert status == 0, stderr
    assert min(line["step"] for line in log_lines(workdir) if "loss" in line) == 3
    mine, theirs = restored(workdir), restored(undisturbed)
    for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_run_goes_on_with_other_numbers_of_devices(undisturbed, tmp_path, program_environment):
    workdir = tmp_path / "run"
    for devices, step in ((8, 6), (4, 15), (8, None)):
        (process,) = start_together(workdir, program_environment, processes=1, devices=devices)
        if step:
            wait_for_step(workdir, step)
            process.send_signal(signal.SIGTERM)
        status, stderr = finish(process)
        assert status == (143 if step else 0), stderr
    mine, theirs = restored(workdir), restored(undisturbed)
    for a, b in zip(jax.tree.leaves(mine.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    last = [log_lines(folder)[-1]["validation/nll"] for folder in (workdir, undisturbed)]
    assert last[0] == pytest.approx(last[1], abs=1e-5)


@pytest.mark.slow
def test_both_processes_end_where_the_first_refuses(undisturbed, program_environment):
    flag = "--config.optimizer.weight_decay=0.5"
    ended = [finish(process) for process in start_together(undisturbed, program_environment, flag)]
    assert [status for status, _ in ended] == [2, 2]
    assert "weight_decay = 0.0001, not 0.5" in ended[0][1]
    assert "process 0 cannot go on" in ended[1][1]


def test_half_of_the_flags_is_refused():
    with pytest.raises(FusionError, match="belong together: give all or none"):
        hosts.start(coordinator="localhost:1", num_processes=2)


def test_a_run_of_one_process_leads_and_connects_to_nobody():
    hosts.start()
    assert hosts.is_lead() and hosts.this_host() == (0, 1)
    assert hosts.should_stop(3, True) and not hosts.should_stop(3, False)


def test_slurm_is_noticed_by_its_variables(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not hosts._in_cluster()
    for name, value in {"NTASKS": "2", "JOB_ID": "7", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert not hosts._in_cluster()  # A batch script without srun: nobody else was started.
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node1")
    assert hosts._in_cluster()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not hosts._in_cluster()
