"""The folder of a run: what is written into it and how it is read back."""

import contextlib
import dataclasses
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import optax

from fusion_jax.config import (
    Config,
    from_tree,
    meaningful_difference,
    read_json,
    to_tree,
    write_json,
)
from fusion_jax.data.loader import first_batch
from fusion_jax.errors import FusionError, first_line, writing
from fusion_jax.models import parameter_modality
from fusion_jax.sources import ArraySpec, DataSpec
from fusion_jax.training.checkpoints import Checkpoints
from fusion_jax.training.state import create_state
from fusion_jax.training.step import make_train_step
from fusion_jax.types import Batch, Step, TrainState

# What may change when a run goes on: more seeds, and what leaves its numbers as they are.
FREE_FIELDS = ("num_seeds", "compilation_cache", "parallel", "num_workers", "data_timeout")
LOCK = ".lock"


def seed_folder(workdir: Path, index: int) -> Path:
    """Folder of seed number `index` of a run."""
    return workdir / f"seed_{index}"


def build_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """The optimiser of a configuration; balancing scales the model's encoders."""
    modalities = config.model.modalities
    return config.optimizer.build(
        num_steps=config.num_steps,
        path_to_modality=lambda path: parameter_modality(path, modalities),
        modalities=modalities,
    )


def build_step(config: Config) -> Step:
    """The training step of a configuration."""
    return make_train_step(
        model=config.model,
        task=config.task,
        objective=config.objective,
        balancer=config.balancer,
        recipe=config.recipe,
        tx=build_optimizer(config),
        num_steps=config.num_steps,
        accumulation=config.accumulation,
    )


def batch_shapes(spec: DataSpec, *, size: int) -> Batch:
    """Shapes and types of a batch on the device."""
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, first_batch(spec, size=size)))


def root_key(config: Config, index: int) -> jax.Array:
    """The root random key of seed number `index` of a run."""
    return jax.random.key(config.seed + index)


def new_state(config: Config, spec: DataSpec, key: jax.Array) -> TrainState:
    """The state before the first step of the seed with this root key."""
    return create_state(
        model=config.model,
        tx=build_optimizer(config),
        balancer=config.balancer,
        objective=config.objective,
        example=first_batch(spec),
        key=key,
    )


def state_shapes(config: Config, spec: DataSpec) -> TrainState:
    """`new_state` with shapes and types in place of arrays; nothing is compiled.

    Raises:
        FusionError: where no state can be made of the configuration.
    """
    try:
        return jax.eval_shape(lambda key: new_state(config, spec, key), root_key(config, 0))
    except (TypeError, ValueError) as error:
        raise FusionError(f"the configuration cannot be built: {first_line(error)}") from error


def load_config(
    workdir: str | Path, *, allow: Sequence[str] = ()
) -> tuple[Config, DataSpec, dict[str, Any]]:
    """Configuration, data specification and record of a saved run; no code of it is run.

    Args:
        workdir: folder of the run.
        allow: top-level packages besides fusion_jax whose classes the configuration may name.

    Raises:
        FusionError: for a folder that is not a run, or a configuration that cannot be rebuilt.
    """
    config = from_tree(read_json(Path(workdir) / "config.json"), allow=allow)
    run = read_json(Path(workdir) / "run.json")
    if not isinstance(config, Config):
        raise FusionError(f"{workdir}/config.json does not describe a run")
    try:
        modalities = {
            name: ArraySpec(tuple(entry["shape"]), entry["dtype"])
            for name, entry in run["modalities"].items()
        }
        spec = DataSpec(modalities, run["data"]["num_classes"], tuple(run["data"]["clusters"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise FusionError(
            f"{workdir}/run.json is damaged ({error!r}): restore it or train again"
        ) from error
    return config, spec, run


def restore_best(template: TrainState, workdir: str | Path, index: int) -> TrainState:
    """The best state of seed number `index`.

    Args:
        template: shapes and types, with the placement of each array where it has one.
        workdir: folder of the run.
        index: number of the seed.

    Raises:
        FusionError: where there is none, all are damaged, or they are of another model.
    """
    folder = seed_folder(Path(workdir), index)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_best(template)


@contextlib.contextmanager
def held(path: Path) -> Iterator[tuple[TextIO, bool]]:
    """A lock file, made with its folder if missing, and whether this process alone holds it.

    The system lets go when the process ends, however.
    """
    with writing(f"cannot make the folder {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield file, free


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep other training runs out of a folder.

    Raises:
        FusionError: where another process trains there.
    """
    with held(workdir / LOCK) as (file, free):
        if not free:
            file.seek(0)
            raise FusionError(
                f"another run trains in {workdir} ({file.read().strip() or 'just started'}): "
                "wait for it, or use another --workdir"
            )
        with writing(f"cannot write in {workdir}"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        yield


def record_run(config: Config, workdir: Path, spec: DataSpec) -> None:
    """Write what the run is, or check that it is the one already in the folder."""
    tree = to_tree(config)
    if (workdir / "config.json").exists():
        saved = read_json(workdir / "config.json")
        kept = {key: value for key, value in saved.items() if key in FREE_FIELDS}
        difference = meaningful_difference(saved, tree | kept)
        if difference:
            path, old, new = difference
            raise FusionError(
                f"{workdir} holds a run with config.{path} = {old}, not {new}: "
                "use another --workdir, or the same configuration to go on"
            )
        if saved != tree:
            write_json(workdir / "config.json", tree)
        return
    with writing(f"cannot make the folder {workdir}"):
        workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "run.json", describe_run(config, spec))
    write_json(workdir / "config.json", tree)


def describe_machine() -> dict[str, Any]:
    """The command, commit, versions and hardware that this process works with."""
    packages = ("fusion_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = jax.devices()[0]
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
        "versions": versions,
        "hardware": f"{jax.device_count()} x {device.device_kind}, {os.cpu_count()} CPU cores",
    }


def describe_run(config: Config, spec: DataSpec) -> dict[str, Any]:
    """Where and with what a run was made."""
    return {
        **describe_machine(),
        "data": {
            "name": config.data.name,
            "num_classes": spec.num_classes,
            "clusters": list(spec.clusters),
        },
        "modalities": {name: dataclasses.asdict(spec.modalities[name]) for name in spec.names},
    }


def _commit() -> str | None:
    """Commit of the source tree that this module runs from, with + for uncommitted changes."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()
