"""One device, 8 devices under jit, FSDP and pmap, and 2 processes of 4 devices: the same losses."""

import json
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SMOOTH = {"steps": 50, "activation": "gelu", "x64": False, "objective": "supervised"}
KINKED = SMOOTH | {"steps": 5, "activation": "relu"}
DOUBLE = SMOOTH | {"x64": True}
# The rank loss has kinks too. It needs rows of other devices, and a history that all agree on.
RANKED = SMOOTH | {"steps": 10, "objective": "ranked_confidence"}
ALL = ["jit", "fsdp", "pmap"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def strategy_run(
    out: Path,
    settings: dict,
    environment: dict[str, str],
    *,
    processes: int = 1,
    slurm: bool = False,
) -> dict:
    """Losses and facts of each strategy, over 8 devices in all.

    Several processes find each other by flags, or by the variables of a Slurm job step.
    """
    flags = f"--xla_force_host_platform_device_count={8 // processes}"
    environment = environment | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    coordinator, running = f"localhost:{free_port()}", []
    job = str(random.randrange(4096))  # JAX takes the port from it.
    for process_id in range(processes):
        if slurm:
            environment |= {
                "SLURM_JOB_ID": job,
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_NTASKS": str(processes),
                "SLURM_PROCID": str(process_id),
                "SLURM_LOCALID": str(process_id),
            }
        elif processes > 1:
            settings = settings | {
                "hosts": {
                    "coordinator": coordinator,
                    "num_processes": processes,
                    "process_id": process_id,
                }
            }
        command = [sys.executable, "-m", "tests.training.strategy_run", out, json.dumps(settings)]
        running.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        )
    for process in running:
        stderr = process.communicate(timeout=500)[1]
        assert process.returncode == 0, stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [(SMOOTH, 1e-5), (KINKED, 1e-5), (DOUBLE, 1e-10), (RANKED, 1e-5)],
    ids=["smooth", "relu", "float64", "rank loss"],
)
def test_strategies_and_processes_give_the_same_losses(
    settings, tolerance, tmp_path, program_environment
):
    apart = ALL if settings is SMOOTH else ["pmap"] if settings is RANKED else ["jit"]
    together = strategy_run(
        tmp_path / "one_process.json", settings | {"strategies": ["one", *ALL]}, program_environment
    )
    two = strategy_run(
        tmp_path / "two_processes.json",
        settings | {"strategies": apart},
        program_environment,
        processes=2,
        slurm=settings is KINKED,
    )
    expected = together["one"]
    assert expected["devices"] == 1 and len(expected["losses"]) == settings["steps"]
    assert expected["losses"][-1] != expected["losses"][0]
    for found in [*(together[name] for name in ALL), *two.values()]:
        assert found["devices"] == 8
        assert found["dtype"] == ("float64" if settings["x64"] else "float32")
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0, atol=tolerance)
        np.testing.assert_allclose(found["weight"], expected["weight"], atol=10 * tolerance)
        np.testing.assert_allclose(
            found["parameter_sum"], expected["parameter_sum"], rtol=10 * tolerance
        )
    for runs in (together, two):
        # Each is what it claims to be.
        for name, found in runs.items():
            assert found["donated"]
            assert found["mapped"] == (name == "pmap"), name
            assert (found["split_parameters"] > 5) == (name == "fsdp"), name
