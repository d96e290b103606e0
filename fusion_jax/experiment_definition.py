"""What an experiment is: runs to compare, each for several seeds, read from a TOML file.

    name = "av_mnist"
    title = "Audio-visual MNIST: fusion under noise and missing modalities"
    seeds = [0, 1, 2]
    reference = "static"            # what the other methods are compared with
    overrides = ["eval_every=100"]  # optional: of every run
    folds = ["data.fold=0", "data.fold=1"]  # optional: one override for each fold

    [runs.static]
    config = "configs/av_mnist.py:static"
    overrides = ["num_steps=2000"]  # optional: what --config.num_steps=2000 is for train.py

    [runs.image]
    config = "configs/av_mnist.py:image"
    role = "alone"                  # optional: a model of some of the modalities, trained alone

    [endpoints]                     # optional: what the methods are tested on
    inside = ["clean", "noise/*/0.2", "noise/*/0.4"]
    beyond = ["noise/*/0.[68]", "noise/*/1"]

An endpoint is the unweighted mean over the conditions whose label matches one of its patterns, as
`fnmatch` reads them: "*" is any text, "/" included, "[68]" one of these characters, case counts.
Name endpoints before the runs: the correction of their p-values counts no others.

With folds every run is trained and evaluated once for each seed and fold, with the fold's override
after all others, and what the folds were tested on is put behind each other: such are leave-one-out
and cross-validation. The value of the override names the fold in tables.

Paths of configuration files count from the folder that the program is started in. Nothing is
trained, evaluated or written here.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import config_flags

from fusion_jax.cli import config_mistake
from fusion_jax.config import Config
from fusion_jax.errors import FusionError, first_line

ROLES = ("method", "alone")

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # it becomes the name of a file
_FIELDS = {
    "name": str,
    "title": str,
    "seeds": list,
    "reference": str,
    "overrides": list,
    "folds": list,
    "runs": dict,
    "endpoints": dict,
    "primary": dict,
}
_PRIMARY_FIELDS = {"endpoint": str, "run": str, "against": list}
_RUN_FIELDS = {"config": str, "overrides": list, "role": str}
_TYPES: dict[type, str] = {str: "string", list: "list", dict: "table"}
_FIXED = ("seed", "num_seeds")


@dataclasses.dataclass(frozen=True)
class Run:
    """One configuration that is trained and evaluated for every seed and fold.

    Attributes:
        label: its name in tables and files.
        config: path of the configuration file, with :variant if it has any.
        overrides: "path=value", applied as train.py applies --config.path=value.
        role: "method", compared with the reference, or "alone": on fewer modalities, compared with
            the methods where they miss the others.
    """

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    role: str = "method"

    def build(self, seed: int) -> Config:
        """The checked configuration for one seed.

        Raises:
            FusionError: for a file, a field or a value that cannot work, in one line.
        """
        path = self.config.partition(":")[0]
        if not Path(path).is_file():
            raise FusionError(
                f"run {self.label!r}: {path} is missing: its path counts from the folder "
                "that the program is started in"
            )
        arguments = [
            self.label,
            f"--config={self.config}",
            *(f"--config.{override}" for override in self.overrides),
        ]
        # Flags of its own: overrides of one run must not reach another.
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
        try:
            values(arguments)
            config = cast(Config, values["config"].value)
            config.seed, config.num_seeds = seed, 1
            config.check()
        except FusionError as error:
            raise FusionError(f"run {self.label!r}: {error}") from error
        # Whatever ml_collections or the file itself raises, as on the command line.
        except Exception as error:
            mistake = config_mistake(arguments, error)
            raise FusionError(f"run {self.label!r}: {mistake}") from error
        return config


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A mean over conditions on which the methods are compared with the reference.

    Attributes:
        label: its name in tables.
        patterns: of the labels of its conditions.
    """

    label: str
    patterns: tuple[str, ...]

    def conditions(self, labels: Sequence[str]) -> list[str]:
        """Those of the labels that match a pattern, each once and in their order.

        Raises:
            FusionError: for a pattern that none matches.
        """
        for pattern in self.patterns:
            if not any(fnmatchcase(label, pattern) for label in labels):
                raise FusionError(
                    f"endpoints.{self.label}: {pattern!r} matches no condition: there are "
                    f"{', '.join(labels)}"
                )
        return [label for label in labels if any(fnmatchcase(label, p) for p in self.patterns)]


@dataclasses.dataclass(frozen=True)
class Primary:
    """The one comparison that an experiment was made for.

    Attributes:
        endpoint: label of the endpoint.
        run: label of the method in question.
        against: labels of the methods that it has to be ahead of, of each of them.
    """

    endpoint: str
    run: str
    against: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Runs to compare.

    Attributes:
        path: file of the definition.
        name: of the files of results.
        title: heading of the table.
        seeds: of training; every run is trained once for each (and each fold).
        reference: label of the method that the other methods are compared with.
        runs: in the order of the table's columns.
        endpoints: in the order of the table's rows.
        folds: "path=value" of each, none where the runs are trained on one division of the data.
        primary: the comparison named beforehand, None where there is none.
    """

    path: str
    name: str
    title: str
    seeds: tuple[int, ...]
    reference: str
    runs: tuple[Run, ...]
    endpoints: tuple[Endpoint, ...] = ()
    folds: tuple[str, ...] = ()
    primary: Primary | None = None


def read_experiment(path: str | Path) -> Experiment:
    """Read a definition.

    Raises:
        FusionError: where it is missing or wrong: the field and what it may be.
    """
    try:
        tree = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FusionError(
            f"{path} is missing: name a definition, such as experiments/av_mnist.toml"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not TOML
        raise FusionError(f"{path} cannot be read: {first_line(error)}") from error
    _check_fields(str(path), tree, _FIELDS, optional=("overrides", "folds", "endpoints", "primary"))
    common = _read_overrides(str(path), tree)
    seeds = tree["seeds"]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise FusionError(f"{path}: seeds is {seeds}: it must list integers from 0 upwards")
    if len(set(seeds)) < len(seeds):
        raise FusionError(f"{path}: seeds is {seeds}: one of them stands there twice")
    folds = _read_folds(str(path), tree)
    _check_name(f"{path}: name", tree["name"])
    runs = tuple(
        _read_run(f"{path}: runs.{label}", label, tree["runs"][label], common)
        for label in tree["runs"]
    )
    methods = [run.label for run in runs if run.role == "method"]
    if tree["reference"] not in methods:
        raise FusionError(
            f"{path}: reference is {tree['reference']!r}: it must be a run with role 'method', "
            f"one of {methods}"
        )
    return Experiment(
        path=str(path),
        name=tree["name"],
        title=tree["title"],
        seeds=tuple(seeds),
        reference=tree["reference"],
        runs=runs,
        endpoints=tuple(
            _read_endpoint(f"{path}: endpoints.{label}", label, patterns)
            for label, patterns in tree.get("endpoints", {}).items()
        ),
        folds=folds,
        primary=_read_primary(str(path), tree, methods),
    )


def _read_primary(path: str, tree: Mapping[str, Any], methods: Sequence[str]) -> Primary | None:
    """The table [primary], where there is one."""
    if "primary" not in tree:
        return None
    where, given = f"{path}: primary", tree["primary"]
    _check_fields(where, given, _PRIMARY_FIELDS, optional=())
    if given["endpoint"] not in tree.get("endpoints", {}):
        raise FusionError(
            f"{where}: endpoint is {given['endpoint']!r}: there are "
            f"{', '.join(tree.get('endpoints', {})) or 'none'}"
        )
    for label in (given["run"], *given["against"]):
        if label not in methods:
            raise FusionError(f"{where} names {label!r}: it must be one of {methods}")
    if not given["against"] or given["run"] in given["against"]:
        raise FusionError(f"{where}: against must list other runs than {given['run']!r}")
    return Primary(given["endpoint"], given["run"], tuple(given["against"]))


def _read_run(where: str, label: str, tree: Any, common: tuple[str, ...]) -> Run:
    """One entry of [runs], with the overrides that all have."""
    _check_name(where, label)
    if not isinstance(tree, dict):
        raise FusionError(f"{where} is {tree!r}: write a table [runs.{label}] with a config")
    _check_fields(where, tree, _RUN_FIELDS, optional=("overrides", "role"))
    overrides = common + _read_overrides(where, tree)
    role = tree.get("role", ROLES[0])
    if role not in ROLES:
        raise FusionError(f"{where}: role is {role!r}: choose one of {list(ROLES)}")
    return Run(label, tree["config"], overrides, role)


def _read_endpoint(where: str, label: str, patterns: Any) -> Endpoint:
    """One entry of [endpoints]."""
    _check_name(where, label, "a row of tables")
    good = isinstance(patterns, list) and all(isinstance(p, str) and p for p in patterns)
    if not good or not patterns:
        raise FusionError(
            f"{where} is {patterns!r}: list patterns of conditions, such as "
            '["clean", "noise/*/0.4"]'
        )
    return Endpoint(label, tuple(patterns))


def _read_folds(where: str, tree: Mapping[str, Any]) -> tuple[str, ...]:
    """The override of each fold, none where the field is absent."""
    folds = _read_overrides(where, tree, "folds")
    if "folds" in tree and len(folds) < 2:
        raise FusionError(f"{where}: folds is {list(folds)}: list two or more, or leave it out")
    if len(set(folds)) < len(folds):
        raise FusionError(f"{where}: folds is {list(folds)}: one of them stands there twice")
    return folds


def _read_overrides(
    where: str, tree: Mapping[str, Any], name: str = "overrides"
) -> tuple[str, ...]:
    """The "field=value" entries of a table."""
    overrides = tree.get(name, [])
    for override in overrides:
        field, equals, _ = override.partition("=") if isinstance(override, str) else ("", "", "")
        if not equals or field.startswith("-"):
            raise FusionError(f"{where}: the override {override!r} must read 'field=value'")
        if field in _FIXED:
            raise FusionError(f"{where} overrides {field}: seeds are listed once, for all runs")
    return tuple(overrides)


def _check_name(where: str, name: str, named: str = "files") -> None:
    """Names become files and folders."""
    if not _SAFE.fullmatch(name):
        raise FusionError(
            f"{where} is {name!r}: it names {named}, so use letters, digits, '_', '-' and '.', "
            "with a letter or digit first"
        )


def _check_fields(
    where: str, tree: Mapping[str, Any], kinds: Mapping[str, type], *, optional: Sequence[str]
) -> None:
    """Refuse fields that are unknown, absent or of another type."""
    for name in tree:
        if name not in kinds:
            raise FusionError(f"{where} has a field {name!r}: there are {', '.join(kinds)}")
    for name, kind in kinds.items():
        if name not in tree and name not in optional:
            raise FusionError(f"{where} has no {name}: add it")
        if name in tree and not isinstance(tree[name], kind):
            raise FusionError(f"{where}: {name} is {tree[name]!r}: it must be a {_TYPES[kind]}")
