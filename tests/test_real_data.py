"""Short runs on real data: train, resume, evaluate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.evaluation.records import Records

ROOT = Path(__file__).parent.parent


def program(*arguments: str) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_av_mnist_trains_and_evaluates_on_the_real_data(tmp_path, real_data):
    workdir = tmp_path / "run"
    options = ["--config.num_steps=200", "--config.eval_every=100", "--config.data.limit=6000"]
    cache = f"--config.data.data_dir={tmp_path / 'datasets'}"
    arguments = [
        "train.py",
        "--config=configs/av_mnist.py",
        f"--workdir={workdir}",
        cache,
        *options,
    ]
    done = program(*arguments)
    assert done.returncode == 0, done.stderr
    lines = [
        json.loads(line) for line in (workdir / "seed_0/metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["task_loss"] for line in lines if "task_loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    # Nothing is left to do: the same command reports and leaves everything as it is.
    before = (workdir / "seed_0/metrics.jsonl").read_bytes()
    assert program(*arguments).returncode == 0
    assert (workdir / "seed_0/metrics.jsonl").read_bytes() == before
    done = program("eval.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "report.json").read_text())
    assert report["data"] == {
        "name": "av_mnist",
        "split": "test",
        "num_examples": 6000,
        "num_classes": 10,
        "modalities": ["audio", "image"],
    }
    trained = [row for row in report["cells"] if not row["unseen"]]
    rows = {(row["modality"], row["severity"], tuple(row["missing"])): row for row in trained}
    # Another kind of noise on either modality, and inputs of others; every pair of severities, and
    # two mixtures.
    assert len(report["cells"]) == 13 + 20 and len(report["joint"]) == 25 + 4
    # clean, five severities of two modalities, two missing patterns
    assert len(rows) == 13
    # 200 steps reach far above chance; the full run is in docs/results.
    assert rows[None, 0.0, ()]["accuracy"] > 0.8
    records = Records(workdir / "seed_0/records_test")
    assert len(np.unique(records["recording"])) <= 300 and len(records["example_id"]) == 6000
    # Noise hurts more than less noise, in each modality.
    for name in ("audio", "image"):
        assert rows[name, 0.2, ()]["accuracy"] > rows[name, 1.0, ()]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_steps", "num_test", "num_kinds", "num_patterns", "accuracy"),
    [
        # Accuracies are far above chance (0.04, 0.1, 0.1, 0.25) and below those of whole runs.
        ("grid_letters", 120, 200, 3, 2, 0.3),
        ("grid_digits", 120, 200, 2, 2, 0.6),
        ("handwritten", 120, 400, 3, 62, 0.8),
        ("uea", 100, 152, 1, 2, 0.4),
    ],
    ids=["letters", "digits", "views", "series"],
)
def test_config_trains_and_evaluates_on_the_real_data(
    name, num_steps, num_test, num_kinds, num_patterns, accuracy, tmp_path, real_data
):
    workdir = tmp_path / "run"
    done = program(
        "train.py",
        f"--config=configs/{name}.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={tmp_path / 'datasets'}",
        f"--config.num_steps={num_steps}",
        f"--config.eval_every={num_steps}",
    )
    assert done.returncode == 0, done.stderr
    done = program("eval.py", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "report.json").read_text())
    assert report["data"]["num_examples"] == num_test
    modalities = report["data"]["modalities"]
    # Clean, five severities of each kind of corruption on each modality, every missing pattern.
    assert len(report["cells"]) == 1 + 5 * num_kinds * len(modalities) + num_patterns
    assert report["cells"][0]["accuracy"] > accuracy
    # The noise of every modality reaches the predictions, at every strength. It need not hurt yet:
    # after few steps five clean views carry the sixth.
    for modality in modalities:
        cells = [row for row in report["cells"] if row["modality"] == modality]
        found = {row["nll"] for row in [report["cells"][0], *cells]}
        assert len(found) == 1 + 5 * num_kinds
