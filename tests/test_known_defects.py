"""What went wrong in other code and has no test elsewhere: the rows of docs/methods.md, F1 and on.

The table there names these tests, and those of other files that stand for the other rows.
"""

import ast
import importlib
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import warnings
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fusion_jax
from fusion_jax.balancing.mwam import MWAM
from fusion_jax.config import Config, Recipe
from fusion_jax.corruptions.batch import corrupt_batch
from fusion_jax.corruptions.coloured_noise import ColouredNoise
from fusion_jax.corruptions.gaussian_noise import GaussianNoise
from fusion_jax.corruptions.white_noise import WhiteNoise
from fusion_jax.data.arrays import ArrayData
from fusion_jax.data.loader import eval_batches, train_batches
from fusion_jax.encoders.mlp import MLPEncoder
from fusion_jax.errors import FusionError
from fusion_jax.experiment_definition import Run
from fusion_jax.frequency import frequency_ratio
from fusion_jax.fusion.sum import SumFusion
from fusion_jax.models import FusionModel
from fusion_jax.rng import example_keys
from fusion_jax.schedulers.static import StaticScheduler
from fusion_jax.schedulers.udml import UDMLScheduler
from fusion_jax.signals.predicted_noise import PredictedNoise
from fusion_jax.sources import ArraySource
from fusion_jax.tasks.classification import ClassificationHead
from fusion_jax.training.loop import train
from tests.conftest import ROOT, make_batch
from tests.members import members

CORRUPTIONS = members("fusion_jax.corruptions")
PROGRAMS = [ROOT / "train.py", ROOT / "eval.py"]
CODE = [
    *sorted((ROOT / "fusion_jax").rglob("*.py")),
    *sorted((ROOT / "configs").glob("*.py")),
    *PROGRAMS,
]
NAMES = ("left", "right")


# The table itself


def test_every_defect_has_a_number_and_a_test():
    text = (ROOT / "docs" / "methods.md").read_text()
    section = text.partition("\n## Defects of other code that are tested for here\n")[2]
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["id", "elsewhere", "here", "tests"]
    assert [row[0] for row in rows] == [f"F{i}" for i in range(1, len(rows) + 1)]
    assert len(rows) >= 30 and all(len(row) == 4 and all(row) for row in rows)
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[-1])
        assert named, row[0]
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text())
            assert name in {getattr(node, "name", None) for node in tree.body}, f"{path}::{name}"


# Noise


@pytest.mark.parametrize(
    ("noise", "x"),
    [
        (GaussianNoise(deviation=16.0, strengths=(0.0, 1.0)), np.full((200, 200, 1), 127, "uint8")),
        (GaussianNoise(deviation=2.0, strengths=(0.0, 1.0)), np.zeros((200, 200), "float32")),
        (WhiteNoise(strengths=(0.0, 1.0)), np.tile(np.int16([2000, -2000]), 20_000)),
        (ColouredNoise(strengths=(0.0, 1.0)), np.tile(np.float32([0.5, -0.5]), 20_000)),
    ],
    ids=["image", "spectrogram", "waveform", "coloured"],
)
def test_deviation_is_linear_in_the_strength_that_is_told(noise, x):
    # 40,000 draws know a deviation to 0.4 %; 8-bit rounding adds 0.3 grey levels to 4.
    run = jax.jit(lambda severity: noise(jax.random.key(0), x, severity))
    ratios = []
    for severity in (0.25, 0.5, 1.0):
        added = np.asarray(run(np.float32(severity))).astype(np.float64) - x
        ratios.append(added.std() / float(noise.noise_level(severity)))
    assert ratios == pytest.approx([ratios[-1]] * 3, rel=0.02)


def test_corrupted_batches_leave_rows_that_are_not_chosen_and_their_input_alone():
    # One program for rows with and without noise: those without keep their bits and are not zeros.
    x = np.random.default_rng(0).integers(1, 256, (40, 6, 5, 3)).astype(np.uint8)
    before, severity = x.copy(), np.float32([0, 0.7] * 20)
    noise = GaussianNoise(deviation=64.0)
    run = jax.jit(lambda x, keys: corrupt_batch(noise, x, keys=keys, severity=severity))
    found = np.asarray(run(x, example_keys(jax.random.key(0), np.arange(40))))
    np.testing.assert_array_equal(found[::2], x[::2])
    assert (found[1::2] != x[1::2]).reshape(20, -1).any(axis=1).all()
    np.testing.assert_array_equal(x, before)


# Random numbers


def global_draws(text):
    """Uses of the generators that a process shares, and of new ones without a seed."""
    tree, found = ast.parse(text), []
    seeded = {"default_rng", "PCG64", "Philox"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name in ("random", "numpy.random")]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
            found += [n for n in names if n.startswith(("random.", "numpy.random"))]
        elif isinstance(node, ast.Attribute):
            name = re.fullmatch(r"(?:np|numpy)\.random\.(\w+)", ast.unparse(node))
            found += [name[0]] if name and name[1] not in seeded | {"Generator"} else []
        elif isinstance(node, ast.Call) and not (node.args or node.keywords):
            named = re.fullmatch(r"(?:np|numpy)\.random\.\w+", ast.unparse(node.func))
            found += [ast.unparse(node)] if named else []
    return found


@pytest.mark.parametrize(
    "text",
    [
        "np.random.seed(0)",
        "x = np.random.normal(size=3)",
        "np.random.default_rng()",
        "from random import shuffle",
        "import random",
        "from numpy import random",
    ],
)
def test_global_draws_are_recognised(text):
    assert global_draws(text)
    assert not global_draws("np.random.default_rng(3).normal(), jax.random.normal(key)")


def test_no_code_of_the_library_draws_from_a_global_generator():
    wrong = {str(path): global_draws(path.read_text()) for path in CODE}
    assert not {path: found for path, found in wrong.items() if found}


def test_corruptions_and_batches_leave_the_global_generators_alone():
    # Tracing runs the Python of a corruption, which is where a global generator would be met.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    assert len(CORRUPTIONS) > 30
    for kind in CORRUPTIONS:
        corruption, shape, dtype = kind.example()
        x = jax.ShapeDtypeStruct(shape, dtype)
        donor = [x] if getattr(corruption, "needs_donor", False) else []
        jax.eval_shape(corruption, jax.random.key(0), x, np.float32(0.5), *donor)
    source = make_split(20, 0)
    list(itertools.islice(train_batches(source, batch_size=8, seed=0), 4))
    list(eval_batches(source, batch_size=8))
    assert random.getstate() == before[0]
    for mine, kept in zip(np.random.get_state(), before[1], strict=True):  # noqa: NPY002
        np.testing.assert_array_equal(mine, kept)


# The order of modalities


def test_signals_and_weights_keep_their_columns_in_training_and_evaluation():
    # Modalities are given in the other order: columns follow their names.
    model = FusionModel(
        encoders={name: MLPEncoder(hidden=(8,), features=6) for name in reversed(NAMES)},
        scheduler=UDMLScheduler(signals=(PredictedNoise(hidden=4),), exponents=(1.0,)),
        fusion=SumFusion(),
        head=ClassificationHead(3),
    )
    batch, generator = make_batch(12, missing=False), np.random.default_rng(0)
    inputs = {name: batch.inputs[name] for name in reversed(NAMES)}
    other = inputs | {"left": 3 * inputs["left"] + 1}

    def variables_of(key):
        return model.init({"params": key}, inputs, batch.present, train=False)

    shapes = jax.eval_shape(variables_of, jax.random.key(0))
    variables = jax.tree.map(lambda x: np.float32(generator.normal(0, 0.7, x.shape)), shapes)

    def run(inputs, train):
        output, _ = model.apply(
            variables,
            inputs,
            batch.present,
            train=train,
            progress=1.0,
            mutable=True,
            rngs={"dropout": jax.random.key(1)},
        )
        return output.fusion.weights, output.fusion.signals["PredictedNoise"]

    weights, noise = jax.jit(run, static_argnums=1)(inputs, False)
    assert model.modalities == NAMES and np.abs(weights[:, 0] - weights[:, 1]).mean() > 0.05
    for train_now in (False, True):
        found = jax.jit(run, static_argnums=1)
        for now, evaluated in zip(found(inputs, train_now), (weights, noise), strict=True):
            np.testing.assert_allclose(now, evaluated, atol=1e-6)
        changed = (np.asarray(found(other, train_now)[1]) != np.asarray(noise)).any(axis=0)
        assert changed.tolist() == [True, False]


# A run


class Sealed(ArraySource):
    """A split that nobody may read."""

    def __getitem__(self, indices):
        raise AssertionError("the test split was read")


def make_split(num, first_id, kind=ArraySource):
    """Signals of 16 samples, smooth on the left and noisy on the right, that tell the class."""
    generator = np.random.default_rng(first_id)
    target = np.arange(num) % 3
    smooth = np.linspace(0, 1, 16)[None, :] * (target[:, None] - 1)
    inputs = {
        "left": smooth + generator.normal(0, 0.05, (num, 16)),
        "right": generator.normal(size=(num, 16)) + target[:, None],
    }
    inputs = {name: x.astype(np.float32) for name, x in inputs.items()}
    return kind(inputs, target, num_classes=3, first_id=first_id)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps, which are less than one epoch: configuration, folder and last state."""
    config = Config(
        model=FusionModel(
            encoders={name: MLPEncoder(hidden=(8,), features=6) for name in NAMES},
            scheduler=StaticScheduler(),
            fusion=SumFusion(),
            head=ClassificationHead(3),
        ),
        data=ArrayData(
            train=make_split(40, 0),
            validation=make_split(16, 40),
            test=make_split(16, 56, Sealed),
        ),
        balancer=MWAM(),
        recipe=Recipe(modality_dropout=0.0),
        num_steps=4,
        batch_size=8,
        eval_batch_size=8,
        eval_every=2,
        log_every=1,
        compilation_cache="",
    )
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    return config, workdir, train(config, workdir)


def log_of(workdir):
    lines = (workdir / "seed_0" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_training_and_selection_never_read_the_test_split(run):
    # The fixture would have failed; that a reader is told is what the seal is for.
    config, workdir, state = run
    assert int(state.step) == 4
    assert sum("validation/selection" in line for line in log_of(workdir)) == 2
    with pytest.raises(AssertionError, match="the test split was read"):
        next(eval_batches(config.data.source("test"), batch_size=8))


@pytest.mark.slow
def test_balancing_begins_with_the_first_step(run):
    _, workdir, _ = run
    lines = [line for line in log_of(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["update_scale/left"] < 1 < line["update_scale/right"]
        assert line["balancer/bank/left"] > line["balancer/bank/right"] > 0


@pytest.mark.slow
def test_predictions_need_the_folder_of_the_run_alone(run, tmp_path):
    # Elsewhere and without the folder it was trained in.
    config, workdir, _ = run
    inputs = config.data.source("validation")[np.arange(16)]["inputs"]
    expected = fusion_jax.load(workdir)(inputs).probabilities
    away, home = tmp_path / "away", tmp_path / "home"
    shutil.copytree(workdir, away)
    workdir.rename(home)
    try:
        found = fusion_jax.load(away)(inputs).probabilities
    finally:
        home.rename(workdir)
    np.testing.assert_array_equal(found, expected)


# The frequency ratio


def test_robust_ratio_knows_no_sign_and_is_bounded_by_the_size_of_the_input():
    # High coefficients of about 1e-6 meet the constant of the published ratio.
    x = np.float32(1e-6) * np.random.default_rng(0).normal(size=(8, 16, 16, 1)).astype(np.float32)
    np.testing.assert_array_equal(frequency_ratio(x), frequency_ratio(-x))
    official = [np.asarray(frequency_ratio(y, mode="official")) for y in (x, -x)]
    assert (np.abs(official[0] / official[1] - 1) > 0.05).all()
    # An orthonormal coefficient of an 8 x 8 block is at most 8 times the largest sample.
    for scale in (1e-6, 1.0, 1e3):
        flat = np.full((2, 16, 16, 1), scale, np.float32)
        assert (np.asarray(frequency_ratio(flat)) <= 8 * scale / 1e-3).all()
    quiet = frequency_ratio(np.float32(1e-6) + x)
    assert (np.asarray(quiet) < 0.1).all()  # below the floor of 1e-3 nothing counts


# Files of the repository


@pytest.fixture(scope="module")
def tracked():
    """Paths that git holds."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout, so there are no tracked files to look at")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [Path(name) for name in listed.stdout.decode().split("\0") if name]


def test_no_compiled_or_editor_files_are_tracked(tracked):
    assert len(tracked) > 100
    compiled = {".pyc", ".pyo", ".pyd", ".so", ".o", ".class", ".whl", ".iml", ".swp"}
    folders = {"__pycache__", ".idea", ".vscode", ".ipynb_checkpoints", ".venv", "build", "dist"}
    wrong = [
        str(path)
        for path in tracked
        if path.suffix in compiled
        or folders & set(path.parts)
        or path.name == ".DS_Store"
        or any(part.endswith(".egg-info") for part in path.parts)
    ]
    assert not wrong, wrong


# A folder of somebody's machine; base64 may hold slashes too, after a letter or a sign.
PERSONAL = re.compile(r"(?<![\w+/.=~)-])(?:/(?:home|Users|root|work)/\w|[A-Za-z]:\\+Users\\)")


def test_tracked_files_hold_no_path_of_a_machine(tracked):
    assert PERSONAL.search("data = '/" + "home/me/data'") and PERSONAL.search("C:\\" + "Users\\me")
    wrong = []
    for path in tracked:
        whole = ROOT / path
        if whole.is_file() and path.suffix not in (".npz", ".png"):
            wrong += [str(path)] if PERSONAL.search(whole.read_text(errors="replace")) else []
    assert not wrong, wrong


# What is installed and imported


def declared():
    """Requirements of the library, and of each extra."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    runtime = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return runtime, [Requirement(line) for lines in extras.values() for line in lines]


def test_each_package_is_stated_once():
    runtime, extra = declared()
    names = [canonicalize_name(r.name) for r in (*runtime, *extra) if r.specifier]
    assert len(names) > 20 and len(set(names)) == len(names)
    # Without a version only what needs an option of a package that is stated.
    assert {canonicalize_name(r.name) for r in extra if not r.specifier} <= set(names)


def test_installed_versions_are_those_stated_and_fit_each_other():
    runtime, _ = declared()
    wanted = list(runtime)
    for requirement in runtime:
        for line in metadata.requires(requirement.name) or []:
            inner = Requirement(line)
            if inner.marker is None or inner.marker.evaluate({"extra": ""}):
                wanted.append(inner)
    for requirement in wanted:
        version = metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)


def test_imports_are_of_declared_packages():
    # Or of what one of them requires itself; no program outside of Python is needed either.
    runtime, _ = declared()
    known = {canonicalize_name(r.name) for r in runtime}
    for name in list(known):
        needed = map(Requirement, metadata.requires(name) or [])
        known |= {canonicalize_name(r.name) for r in needed if r.marker is None}
    owners, used = metadata.packages_distributions(), set()
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                used.add(str(node.module).split(".")[0])
    used -= {*sys.stdlib_module_names, "fusion_jax"}
    assert {"jax", "numpy"} <= used
    unknown = {
        name for name in used if not known & {canonicalize_name(x) for x in owners.get(name, ())}
    }
    assert not unknown, unknown


WITHOUT = """
import importlib, pkgutil, sys
asked, built = [], False

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch"):
            asked.append(name)
            raise ModuleNotFoundError(f"there is no {name}", name=name)

sys.meta_path.insert(0, Absent())
import fusion_jax
names = [found.name for found in pkgutil.walk_packages(fusion_jax.__path__, "fusion_jax.")]
# Builders prepare data sets with the catalogue of data sets; nothing else needs it.
for name in sorted(names, key=lambda name: ".builders" in name):
    if ".builders" in name and "tensorflow_datasets" in sys.modules and not built:
        print("the catalogue of data sets is loaded without a builder")
    built = ".builders" in name
    importlib.import_module(name)
print(sorted(name for name in asked if name.startswith("tensorflow")))
"""


def test_every_module_loads_where_tensorflow_and_pytorch_are_absent():
    # A package that looks for PyTorch and does without is no dependency. Nobody asks for
    # TensorFlow at all.
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stdout + done.stderr


def member(module, name):
    """What `from module import name` gives."""
    try:
        return getattr(module, name)
    except AttributeError:
        return importlib.import_module(f"{module.__name__}.{name}")


def missing_names(text):
    """Names of other packages that a text uses and that are gone or about to go."""
    tree, aliases, wrong = ast.parse(text), {}, []

    def check(name, look):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)
                warnings.simplefilter("error", FutureWarning)
                return look()
        except (AttributeError, ImportError, DeprecationWarning, FutureWarning) as error:
            wrong.append(f"{name}: {error}")
            return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = check(alias.name, lambda a=alias: importlib.import_module(a.name))
                root = module if alias.asname else sys.modules[alias.name.split(".")[0]]
                aliases[alias.asname or alias.name.split(".")[0]] = root
        elif isinstance(node, ast.ImportFrom) and not node.level:
            module = check(node.module, lambda n=node: importlib.import_module(n.module))
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                value = check(name, lambda m=module, a=alias: member(m, a.name))
                if isinstance(value, types.ModuleType):
                    aliases[alias.asname or alias.name] = value
    for node in ast.walk(tree):
        chain = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        root, *parts = chain.split(".") if re.fullmatch(r"[\w.]+", chain) else [""]
        value = aliases.get(root)
        for part in parts:
            if not isinstance(value, types.ModuleType):
                break
            value = check(chain, lambda v=value, p=part: getattr(v, p))
    return wrong


def test_names_of_other_packages_exist_and_are_not_deprecated():
    assert missing_names("import numpy as np\nx = np.float(3)")
    assert missing_names("from scipy.ndimage.interpolation import zoom\nimport scipy\n")
    banned = {"pkg_resources", "imp", "distutils", "asyncore"}
    wrong = {}
    for path in CODE:
        text = path.read_text()
        wrong[str(path)] = missing_names(text)
        assert not re.search(rf"^\s*(?:import|from) ({'|'.join(banned)})\b", text, re.MULTILINE)
    assert not {path: found for path, found in wrong.items() if found}


# Commands and flags


def documented_commands():
    """(program, arguments) of the commands that documents and docstrings tell readers to run."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    pattern = re.compile(r"python (train\.py|eval\.py|-m [\w.]+)((?:[ \t]+[\w=:./,()*+@%'-]+)*)")
    found = []
    for path in [*documents, *CODE]:
        text = path.read_text()
        text = (ast.get_docstring(ast.parse(text)) or "") if path.suffix == ".py" else text
        for program, rest in pattern.findall(text.replace("\\\n", " ")):
            found.append((program, shlex.split(rest.rstrip("'"))))
    return found


def flags_of(*paths):
    """Names of the flags that programs define."""
    defined = set()
    for path in paths:
        pattern = r"DEFINE_\w+\(\s*\"(\w+)\""
        defined |= set(re.findall(pattern, path.read_text()))
    return defined


def test_documented_commands_have_their_required_flags_and_lead_somewhere(monkeypatch):
    monkeypatch.chdir(ROOT)
    commands, shared = documented_commands(), ROOT / "fusion_jax" / "cli.py"
    programs = [program for program, _ in commands]
    assert programs.count("train.py") > 12 and programs.count("eval.py") > 3
    for program, arguments in commands:
        if program.startswith("-m "):
            assert importlib.util.find_spec(program.removeprefix("-m ")), program
            named = [x for x in arguments if x.endswith(".toml") and len(Path(x).stem) > 1]
            assert all(Path(x).is_file() for x in named), arguments
            continue
        given = dict(re.fullmatch(r"--([\w.]+)=(.+)", x).groups() for x in arguments)
        fields = {name for name in given if name.startswith("config.")}
        assert given.keys() - fields <= flags_of(ROOT / program, shared), arguments
        assert "workdir" in given, arguments
        if program == "train.py":
            overrides = tuple(f"{x.removeprefix('config.')}={given[x]}" for x in sorted(fields))
            assert isinstance(Run("documented", given["config"], overrides).build(0), Config)


@pytest.mark.parametrize("word", ["False", "false", "0"])
def test_boolean_flags_read_false_as_false(word, tmp_path):
    path = tmp_path / "switched_on.py"
    path.write_text(
        "import runpy\n"
        "from fusion_jax.balancing.mwam import MWAM\n"
        "def get_config():\n"
        f"    config = runpy.run_path({str(ROOT / 'configs' / 'av_digits.py')!r})['get_config']()\n"
        "    config.model = config.model.clone(rematerialise=True)\n"
        "    config.balancer = MWAM(permuted=True)\n"
        "    return config\n"
    )
    plain = Run("on", str(path)).build(0)
    assert plain.model.rematerialise is True and plain.balancer.permuted is True
    overrides = (f"model.rematerialise={word}", f"balancer.permuted={word}")
    found = Run("off", str(path), overrides).build(0)
    assert found.model.rematerialise is False and found.balancer.permuted is False
    with pytest.raises(FusionError, match="permuted=maybe"):
        Run("unclear", str(path), ("balancer.permuted=maybe",)).build(0)


def words_as_booleans(text):
    """Calls that make a boolean of any word: bool("False") is true."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(node)
        for node in calls
        if "add_argument" in ast.unparse(node.func)
        and any(k.arg == "type" and ast.unparse(k.value) == "bool" for k in node.keywords)
    ]


def test_no_program_reads_a_boolean_as_any_word():
    assert words_as_booleans('parser.add_argument("--x", type=bool)')
    for path in [*CODE, *(ROOT / "benchmarks").glob("*.py")]:
        assert not words_as_booleans(path.read_text()), path
