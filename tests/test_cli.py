"""What bad input gets: one clear line, exit status 2, and nothing half-written."""

import subprocess
import sys

import pytest

from fusion_jax.cli import config_mistake
from tests.conftest import ROOT

CONFIG = "--config=configs/av_digits.py"


def program(name, *arguments, environment):
    return subprocess.run(
        [sys.executable, name, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(done):
    """The one line of a program that refused its input."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            [CONFIG, "--config.stepz=3"],
            "no field 'stepz' here; there are accumulation, balancer",
        ),
        ([CONFIG, "--config.num_steps=x"], "--config.num_steps=x"),
        (
            [CONFIG, "--config.model.encoders.sound.features=3"],
            "'sound' here; there are audio, image",
        ),
        ([CONFIG, "--config.recipe.corruptions.audio.loud=3"], "'loud' here; there are reference"),
        ([CONFIG, "--config.batch_size=0"], "config.batch_size is 0: it must be at least 1"),
        ([CONFIG, "--config.model.encoders.audio.groups=7"], "7 groups do not divide 16 channels"),
        ([CONFIG, "--config.data.modalities=('audio',)"], "the data's ['audio']"),
        ([CONFIG + ":fast"], "unknown variant 'fast': choose one of ['udml', 'static']"),
        ([CONFIG, "--fast"], "Unknown command line flag 'fast'"),
        ([CONFIG, "more"], "unexpected argument 'more'"),
        (["--config=configs/absent.py"], "configs/absent.py"),
        ([], "--config"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else None,
)
def test_train_refuses_bad_input_in_one_line(arguments, expected, tmp_path, program_environment):
    workdir = tmp_path / "run"
    done = program("train.py", *arguments, f"--workdir={workdir}", environment=program_environment)
    assert expected in refused(done)
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdir", "expected"),
    [("", "give the folder of the run"), ("file", "cannot make the folder")],
    ids=["empty", "file"],
)
def test_train_refuses_a_workdir_that_is_no_folder(
    workdir, expected, tmp_path, program_environment
):
    (tmp_path / "file").touch()
    flag = f"--workdir={tmp_path / workdir if workdir else ''}"
    done = program("train.py", CONFIG, flag, environment=program_environment)
    assert expected in refused(done)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not (ROOT / "config.json").exists()


@pytest.mark.slow
def test_train_names_missing_data(tmp_path, program_environment):
    nowhere = tmp_path / "nowhere"
    done = program(
        "train.py",
        "--config=configs/av_mnist.py",
        f"--config.data.data_dir={tmp_path / 'datasets'}",
        f"--workdir={tmp_path / 'run'}",
        environment=program_environment | {"FUSION_JAX_DATA": str(nowhere)},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and str(nowhere) in lines[0], done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_eval_refuses_folders_that_are_no_runs(tmp_path, program_environment):
    def evaluate(*arguments):
        return refused(program("eval.py", *arguments, environment=program_environment))

    assert "is not the folder of a run" in evaluate(f"--workdir={tmp_path}")
    (tmp_path / "config.json").write_text('{"$class": "fusion_jax.con')
    assert "config.json is damaged" in evaluate(f"--workdir={tmp_path}")
    assert "--workdir" in evaluate()
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("def get_config():\n    return {}['x']\n", "KeyError: 'x' (FILE, line 2)"),
        ("def get_config(:\n", "invalid syntax (config.py, line 1)"),
        ("x = 1\n", "FILE has no get_config(): it is not a config file"),
    ],
    ids=["raises", "syntax", "other"],
)
def test_broken_config_files_are_one_line(content, expected, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(content)
    message = config_mistake(["train.py", f"--config={path}"], KeyError())
    assert message.endswith(expected.replace("FILE", str(path)))
    assert "\n" not in message


def test_mistakes_in_lists_are_named_too():
    argument = "--config.model.scheduler.signals[7].hidden=3"
    message = config_mistake(
        ["train.py", f"--config={ROOT}/configs/av_digits.py", argument], KeyError()
    )
    assert message.startswith(f"{argument}: there is no field '7' here; there are 0, 1")
