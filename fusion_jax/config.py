"""What a run is: one mutable dataclass whose fields are the modules themselves, and its JSON form.

A config file in `configs/` is Python with a `get_config(variant="")` that returns a `Config`.
Overrides on the command line set fields in place (`--config.model.encoders.audio.features=32`). A
saved run is data, not code: a JSON tree of class paths and fields, from which only allowed modules
are imported.
"""

import dataclasses
import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from fusion_jax.balancing.none import NoBalancer
from fusion_jax.cells import Conditions
from fusion_jax.errors import FusionError, first_line, writing
from fusion_jax.models import FusionModel
from fusion_jax.objectives.supervised import Supervised
from fusion_jax.optimizers import SGD, AdamW
from fusion_jax.tasks.classification import Classification

CLASS = "$class"
IN_MEMORY = "$in_memory"


@dataclasses.dataclass
class Recipe:
    """What happens to training inputs, the same for every method, static fusion included.

    Attributes:
        corruptions: modality name -> corruption; modalities without one stay clean in training.
        noise_rate: probability that a modality of an example is corrupted, independently, in [0,
            1].
        max_severity: severities of corrupted modalities are uniform in (0, max_severity].
        severities: the grid that they are drawn from instead, each with the same probability, each
            in (0, max_severity]; () for none.
        noise_start: fraction of training before which nothing is corrupted, in [0, 1): the first of
            two stages; modality dropout acts from the first step.
        modality_dropout: probability that a present modality is dropped, per example and modality,
            at least one kept (`fusion_jax.corruptions.batch.drop_modalities`).
    """

    corruptions: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise_rate: float = 0.5
    max_severity: float = 0.4
    severities: tuple[float, ...] = ()
    noise_start: float = 0.0
    modality_dropout: float = 0.2

    def largest_severity(self) -> float:
        """The largest severity that training meets, 0 where nothing is ever corrupted."""
        if not self.corruptions or not self.noise_rate or self.noise_start >= 1:
            return 0.0
        return max(self.severities) if self.severities else self.max_severity


@dataclasses.dataclass
class Parallel:
    """How training is laid over devices. It changes speed and memory, not the numbers.

    Attributes:
        strategy: "jit" (the batch is split, the state is on every device), "fsdp" (large arrays of
            the state are split too) or "pmap"; see `fusion_jax.training.parallel`.
        min_shard_size: elements from which "fsdp" splits an array, > 0.
        seeds_at_once: train all seeds of a run in one program, vectorised over them, in place of
            one after the other; on one host. It pays where a step of one seed cannot fill the
            device (docs/performance.md), and takes the memory, and the `num_workers`, of all.
            Numbers agree up to rounding, also with those of a run that was interrupted. A loss that
            is not finite ends all seeds.
    """

    strategy: str = "jit"
    min_shard_size: int = 2**14
    seeds_at_once: bool = False


@dataclasses.dataclass
class Config:
    """One experiment.

    Attributes:
        model: the model; its modules are closed over by the compiled step.
        data: has `name` and `source(split)` for "train", "validation" and "test".
        task: loss and metrics.
        objective: what is minimised, over which views.
        balancer: re-weights losses and updates per modality.
        recipe: noise and modality dropout in training.
        optimizer: builds the Optax transformation.
        parallel: how training is laid over devices.
        num_steps: training steps.
        batch_size: examples of a training step, over all devices.
        accumulation: parts that a training batch is worked through in, one after the other, to save
            memory; running statistics (batch norm, scheduler, balancer) see each part by itself.
        eval_batch_size: examples of an evaluation step, over all devices.
        seed: of the first run; run i of `num_seeds` uses seed + i.
        num_seeds: runs that share one compiled step, one after the other unless
            `parallel.seeds_at_once`; the best checkpoint is kept of each.
        log_every: steps between log lines.
        eval_every: steps between validations; each saves a checkpoint.
        evaluation_severities: of the robustness evaluation, per modality.
        unseen: modality -> corruptions that training does not use, for the robustness evaluation;
            of other classes than the recipe's.
        compilation_cache: folder of XLA's persistent cache, "" for none.
        num_workers: processes that read training data; 0 reads in threads of this process, which is
            faster unless reading an example takes much Python.
        data_timeout: seconds to wait for a training batch before the run ends with an error.
    """

    model: FusionModel
    data: Any
    task: Any = dataclasses.field(default_factory=Classification)
    objective: Any = dataclasses.field(default_factory=Supervised)
    balancer: Any = dataclasses.field(default_factory=NoBalancer)
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    optimizer: AdamW | SGD = dataclasses.field(default_factory=AdamW)
    parallel: Parallel = dataclasses.field(default_factory=Parallel)
    num_steps: int = 1000
    batch_size: int = 128
    accumulation: int = 1
    eval_batch_size: int = 512
    seed: int = 0
    num_seeds: int = 1
    log_every: int = 50
    eval_every: int = 250
    evaluation_severities: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)
    unseen: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    compilation_cache: str = "~/.cache/fusion_jax/compiled"
    num_workers: int = 0
    data_timeout: float = 600.0

    def conditions(self) -> Conditions:
        """What the robustness evaluation does to inputs."""
        return Conditions(
            self.recipe.corruptions,
            self.unseen,
            tuple(self.evaluation_severities),
            self.recipe.largest_severity(),
        )

    def evaluation_corruptions(self) -> dict[str, tuple[Any, ...]]:
        """Modality -> the recipe's corruption, then those that training does not use."""
        return self.conditions().corruptions

    def check(self) -> None:
        """Refuse values that cannot work, by name.

        Raises:
            FusionError: one line, with the field and what it may be.
        """
        for name in (
            "num_steps",
            "batch_size",
            "accumulation",
            "eval_batch_size",
            "num_seeds",
            "log_every",
            "eval_every",
        ):
            if getattr(self, name) < 1:
                raise FusionError(f"config.{name} is {getattr(self, name)}: it must be at least 1")
        if self.num_workers < 0 or self.data_timeout <= 0:
            raise FusionError("config.num_workers must be at least 0, config.data_timeout above 0")
        _refuse_shared(self.model, "config.model", {})
        for name in ("noise_rate", "max_severity", "noise_start", "modality_dropout"):
            if not 0 <= getattr(self.recipe, name) <= 1:
                raise FusionError(
                    f"config.recipe.{name} is {getattr(self.recipe, name)}: it must lie in [0, 1]"
                )
        limit = self.recipe.max_severity
        if not all(0 < severity <= limit for severity in self.recipe.severities):
            raise FusionError(
                f"config.recipe.severities is {self.recipe.severities}: each must lie in "
                f"(0, {limit}], above 0 and up to config.recipe.max_severity"
            )
        if not all(0 < severity <= 1 for severity in self.evaluation_severities):
            raise FusionError("config.evaluation_severities must lie in (0, 1]")
        for modality, corruption in self.recipe.corruptions.items():
            if getattr(corruption, "needs_donor", False):
                raise FusionError(
                    f"config.recipe.corruptions[{modality!r}] is {type(corruption).__name__}: it "
                    "takes inputs of other examples, in evaluation only; put it in config.unseen"
                )
        for modality, corruptions in self.evaluation_corruptions().items():
            kinds = [type(corruption).__name__ for corruption in corruptions]
            twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
            if twice:
                raise FusionError(
                    f"config.unseen[{modality!r}] has another {twice}: corruptions of one modality "
                    "must be of different classes, since tables are named after them"
                )
        fields = {"recipe.corruptions": self.recipe.corruptions, "unseen": self.unseen}
        for name, named in fields.items():
            unknown = set(named) - set(self.model.modalities)
            if unknown:
                raise FusionError(
                    f"config.{name} names {sorted(unknown)[0]!r}; "
                    f"the model's modalities are {list(self.model.modalities)}"
                )


def _refuse_shared(value: Any, place: str, seen: dict[int, str]) -> None:
    """Refuse one module object in two places.

    Flax gives both places the same parameters, and a saved configuration cannot say so: the run
    could not be read back.
    """
    if isinstance(value, dict):
        parts = {f"{place}.{key}": item for key, item in value.items()}
    elif isinstance(value, list | tuple):
        parts = {f"{place}[{index}]": item for index, item in enumerate(value)}
    elif isinstance(value, nn.Module):
        if id(value) in seen:
            raise FusionError(
                f"{seen[id(value)]} and {place} are one {type(value).__name__} object, which would "
                "share its parameters: make one for each"
            )
        seen[id(value)] = place
        parts = {f"{place}.{name}": getattr(value, name) for name in _fields(type(value))}
    else:
        return
    for name, item in parts.items():
        _refuse_shared(item, name, seen)


def to_tree(value: Any) -> Any:
    """A JSON-ready tree: dataclasses (Linen modules too) as class path and fields, tuples as lists.

    Raises:
        FusionError: for values that are not data (functions, arrays).
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: to_tree(value[key]) for key in sorted(value)}
    kind = type(value)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if getattr(value, "in_memory", False):
        return {IN_MEMORY: path}
    if dataclasses.is_dataclass(value):
        return {CLASS: path} | {name: to_tree(getattr(value, name)) for name in _fields(kind)}
    raise FusionError(
        f"a config holds a {path}, which cannot be saved as data: use a dataclass field"
    )


def from_tree(tree: Any, *, allow: Sequence[str] = ()) -> Any:
    """The value that `to_tree` described. Data that was held in memory comes back as None.

    Args:
        tree: nested dicts, lists and scalars.
        allow: top-level packages besides fusion_jax from which classes may be imported.

    Raises:
        FusionError: for a class outside the allowed packages, one that does not exist, or other
            fields.
    """
    if isinstance(tree, list):
        return tuple(from_tree(item, allow=allow) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if IN_MEMORY in tree:
        return None
    fields = {key: from_tree(item, allow=allow) for key, item in tree.items() if key != CLASS}
    if CLASS not in tree:
        return fields
    kind = _import_class(str(tree[CLASS]), allow)
    unknown = sorted(set(fields) - set(_fields(kind)))
    if unknown:
        raise FusionError(
            f"{tree[CLASS]} has no field {unknown[0]!r}: the run was saved by another version"
        )
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise FusionError(f"{tree[CLASS]} cannot be rebuilt: {first_line(error)}") from error


def _import_class(path: str, allow: Sequence[str]) -> type:
    """The dataclass at a dotted path, if its top-level package is allowed."""
    module, _, name = path.rpartition(".")
    if module.split(".")[0] not in ("fusion_jax", *allow):
        raise FusionError(
            f"the run uses {path}, which is not part of fusion_jax: "
            f"name its package to allow it, allow=({module.split('.')[0]!r},)"
        )
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FusionError(f"the run uses {path}, which cannot be imported: {error}") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise FusionError(f"the run names {path}, which is not a configuration class")
    return kind


def _fields(kind: type) -> list[str]:
    """Fields that describe a value; Linen's own bookkeeping fields are not among them."""
    hidden = {"parent", "name"} if issubclass(kind, nn.Module) else set()
    return [
        field.name for field in dataclasses.fields(kind) if field.init and field.name not in hidden
    ]


def field_default(path: str, name: str) -> Any:
    """The JSON form of the default of a field of a class of this library.

    Raises:
        FusionError: where there is no such class, field or default.
    """
    for field in dataclasses.fields(_import_class(path, ())):
        if field.name == name and field.default is not dataclasses.MISSING:
            return to_tree(field.default)
        if field.name == name and field.default_factory is not dataclasses.MISSING:
            return to_tree(field.default_factory())
    raise FusionError(f"{path} has no field {name!r} with a default")


def first_difference(a: Any, b: Any) -> tuple[str, Any, Any] | None:
    """Path and both values of the first place where two trees differ, or None."""
    left, right = dict(_leaves(a)), dict(_leaves(b))
    for path in [*left, *right]:
        if left.get(path) != right.get(path) or (path in left) != (path in right):
            return path, left.get(path, "(absent)"), right.get(path, "(absent)")
    return None


def meaningful_difference(before: Any, now: Any) -> tuple[str, Any, Any] | None:
    """`first_difference`, but for fields that came or went and have their class's default.

    Classes count by their bare names, wherever they are defined: what was saved by another version
    is the same configuration still.
    """
    return first_difference(_shared(before, now), _shared(now, before))


def _shared(tree: Any, other: Any) -> Any:
    """`tree` without default fields of objects that `other` lacks; classes by their bare name."""
    if isinstance(tree, dict) and isinstance(other, dict):
        return {
            name: item.rpartition(".")[2] if name == CLASS else _shared(item, other.get(name))
            for name, item in tree.items()
            if name in other or CLASS not in tree or not _at_default(tree[CLASS], name, item)
        }
    if isinstance(tree, list) and isinstance(other, list):
        return [
            _shared(item, other[index] if index < len(other) else None)
            for index, item in enumerate(tree)
        ]
    return tree


def _at_default(path: str, name: str, item: Any) -> bool:
    """Whether a field has its class's default; true where there is no such class or field now."""
    try:
        return bool(item == field_default(path, name))
    except FusionError:
        return True


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each leaf."""
    if isinstance(tree, dict):
        for key, item in tree.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(tree, list):
        yield f"{path}.length", len(tree)
        for index, item in enumerate(tree):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, tree


def read_json(path: Path) -> Any:
    """Read a JSON file of a run folder.

    Raises:
        FusionError: where it is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FusionError(f"{path} is missing: {path.parent} is not the folder of a run") from None
    except OSError as error:
        raise FusionError(f"cannot read {path}: {first_line(error)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FusionError(f"{path} is damaged ({error}): restore it or train again") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    with writing(f"cannot write {path}"):
        temporary.write_text(json.dumps(value, indent=1) + "\n")
        temporary.replace(path)
