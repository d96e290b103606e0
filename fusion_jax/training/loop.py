"""The one training loop."""

import contextlib
import functools
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from fusion_jax.cells import Cell, robustness_cells
from fusion_jax.config import Config
from fusion_jax.data.loader import eval_batches, first_batch, train_batches
from fusion_jax.errors import FusionError, Stopped, first_line
from fusion_jax.evaluation.grid import evaluate_grid, make_grid_program
from fusion_jax.rng import stream
from fusion_jax.runs import (
    batch_shapes,
    build_step,
    locked,
    new_state,
    record_run,
    root_key,
    seed_folder,
    state_shapes,
)
from fusion_jax.sources import DataSpec, Source
from fusion_jax.training import hosts
from fusion_jax.training.checkpoints import SELECTION, Checkpoints
from fusion_jax.training.parallel import make_strategy
from fusion_jax.training.profiling import Profiler, Watch
from fusion_jax.training.progress import RunLog, flatten_metrics
from fusion_jax.training.temperature import TemperatureScaling
from fusion_jax.types import ModelOutput, TrainState

SHOWN = ("loss", "accuracy", "validation/accuracy", "validation/selection")


def train(config: Config, workdir: str | Path, *, profile: bool = False) -> TrainState:
    """Train, or go on where a run in `workdir` stopped.

    Layout: `config.json` (the resolved configuration), `run.json` (versions, commit, data
    specification), and for each seed `seed_<i>/` with `checkpoints/`, `metrics.jsonl` and
    TensorBoard events.

    On several hosts (`fusion_jax.training.hosts`) all call it with the same arguments and a folder
    that all of them see; each loads its part of every batch, and the first writes the log.

    Args:
        config: the experiment. Selection is on validation; the test split is not read.
        workdir: folder of the run; made if missing. A run there must have the same configuration.
        profile: write a trace of a few steps and a breakdown of the time into `seed_<i>/profile`,
            and print it (`fusion_jax.training.profiling`). Every step is waited for.

    Returns:
        The state after the last step of the last seed.

    Raises:
        FusionError: bad configuration, data or checkpoints, a full disk, a loss that is not finite,
            data that do not come, or another run in the folder.
        Stopped: SIGTERM came; the state was saved and the same call goes on from there.
    """
    config.check()
    workdir = Path(workdir)
    sources = {split: config.data.source(split) for split in ("train", "validation")}
    spec = sources["train"].spec
    _check_modalities(config, spec)
    _check_prediction(config, spec)
    _check_corruptions(config, spec)
    # All that can be refused is refused before anything is written: a folder with a configuration
    # in it takes no other.
    run = Trainer(config, spec)
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(locked(workdir))
            record_run(config, workdir, spec)

        hosts.lead_does(enter)
        for index in range(config.num_seeds):
            state = run.train_seed(index, seed_folder(workdir, index), sources, profile=profile)
    return state


class Trainer:
    """Everything that the seeds of a run share: the compiled step and the compiled evaluation."""

    def __init__(self, config: Config, spec: DataSpec):
        """Build the programs; nothing is compiled before its first use."""
        self.config, self.spec = config, spec
        self.modalities = config.model.modalities
        self.shapes = state_shapes(config, spec)
        self.parallel = make_strategy(config.parallel)
        self.parallel.check(
            batch_size=config.batch_size,
            eval_batch_size=config.eval_batch_size,
            accumulation=config.accumulation,
        )
        self._one_step = build_step(config)
        self.step = self.parallel.compile(self._one_step, self.shapes)
        # Validation meets what training meets.
        self.grid = make_grid_program(
            config.model,
            config.task,
            {name: (corruption,) for name, corruption in config.recipe.corruptions.items()},
            compiled=self.parallel.evaluation,
        )
        self.scaling = (
            TemperatureScaling(
                config.model,
                self.grid,
                compiled=self.parallel.evaluation,
                place=self.parallel.place_rows,
            )
            if config.model.temperature_scaling
            else None
        )

    def train_seed(
        self, index: int, folder: Path, sources: dict[str, Source], *, profile: bool = False
    ) -> TrainState:
        """Train one seed from its last checkpoint, or from the start."""
        config = self.config
        checkpoints = Checkpoints(folder / "checkpoints")
        state = checkpoints.restore_last(self.parallel.template(self.shapes))
        if state is None:
            init = functools.partial(new_state, config, self.spec)
            state = self.parallel.create(init, root_key(config, index))
        first = int(state.step)
        if first >= config.num_steps:
            checkpoints.close()
            return state
        log = RunLog(
            folder if hosts.is_lead() else None,
            first_step=first,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            title=f"seed {config.seed + index}",
        )
        batches = train_batches(
            sources["train"],
            batch_size=config.batch_size,
            seed=config.seed + index,
            first_step=first,
            host=hosts.this_host(),
            num_workers=config.num_workers,
            timeout=config.data_timeout,
        )
        watch = Profiler(folder / "profile", lead=hosts.is_lead()) if profile else Watch()
        with contextlib.closing(log), contextlib.closing(checkpoints), contextlib.closing(batches):
            state = self._steps(state, batches, checkpoints, log, sources["validation"], watch)
            with watch.part("checkpoint"):
                checkpoints.wait()
        watch.finish(self.flops_per_step)
        return state

    def flops_per_step(self) -> float:
        """Floating-point operations of a training step over all devices, by XLA's count.

        Of the program as it is written, before XLA changes it. Parts of a batch that are worked
        through one after the other are counted once by XLA, so by their number here.
        """
        batch = batch_shapes(self.spec, size=self.config.batch_size)
        return self.config.accumulation * self.parallel.flops(self._one_step, self.shapes, batch)

    def _steps(
        self,
        state: TrainState,
        batches: Iterator[Any],
        checkpoints: Checkpoints,
        log: RunLog,
        validation: Source,
        watch: Watch,
    ) -> TrainState:
        """From the state's step to the last one."""
        config, pending = self.config, []
        with _sigterm_noted() as stop:
            for step in range(int(state.step) + 1, config.num_steps + 1):
                with watch.part("input"):
                    batch = self.parallel.place_batch(next(batches))
                with watch.part("step"):
                    state, metrics = self.step(state, batch)
                    watch.settle(metrics)
                pending.append((step, metrics))
                log.advance()
                validate = step % config.eval_every == 0 or step == config.num_steps
                # Read once: it may come at any moment.
                stopping = hosts.should_stop(step, bool(stop))
                if step % config.log_every == 0 or validate or stopping:
                    self._flush(pending, log, checkpoints)
                if validate:
                    with watch.part("evaluation"):
                        state = self._scaled(state, validation, log)
                        scores = self.validate(state, validation)
                    named = {f"validation/{name}": score for name, score in scores.items()}
                    _refuse_not_finite(named, step, checkpoints)
                    log.write(step, named, say=SHOWN)
                    with watch.part("checkpoint"):
                        checkpoints.save(state, metrics=scores)
                elif stopping:
                    checkpoints.save(state, metrics=None)
                # Asked again of this process alone: it may have come during a validation, and
                # after the last step nobody else would ask.
                if stopping or (step == config.num_steps and stop):
                    checkpoints.wait()
                    raise Stopped(
                        f"stopped by SIGTERM after step {step}: saved; the same command goes on"
                    )
        return state

    def _flush(self, pending: list[Any], log: RunLog, checkpoints: Checkpoints) -> None:
        """Fetch and log the steps since the last call; refuse a loss that is not finite.

        Every save comes after a flush and, unless stopped, a validation, so a state behind a bad
        loss or with useless predictions never becomes a checkpoint.
        """
        fetched = [(step, jax.device_get(metrics)) for step, metrics in pending]
        pending.clear()
        for step, metrics in fetched:
            vital = {name: metrics[name] for name in ("loss", "gradient_norm")}
            _refuse_not_finite(vital, step, checkpoints)
        means = {
            name: np.mean([metrics[name] for _, metrics in fetched], axis=0)
            for name in (fetched[0][1] if fetched else ())
        }
        if fetched:
            log.write(fetched[-1][0], flatten_metrics(means, self.modalities), say=SHOWN)

    def _scaled(self, state: TrainState, source: Source, log: RunLog) -> TrainState:
        """The state with its temperature fitted on the validation split, where it has one."""
        if self.scaling is None:
            return state
        step = int(state.step)
        state, why = self.scaling.fit(
            state, self._validation_batches(source), progress=step / self.config.num_steps
        )
        if why:
            log.say(step, f"the temperature is 1: {why}")
        return state

    def _validation_batches(self, source: Source) -> Iterator[Any]:
        """All of a split, this host's part of each batch."""
        return eval_batches(source, batch_size=self.config.eval_batch_size, host=hosts.this_host())

    def validate(self, state: TrainState, source: Source) -> dict[str, float]:
        """Scores on the validation split.

        "selection", by which the best checkpoint is chosen, is the mean accuracy over the clean
        cell, each corruptible modality at the recipe's largest severity, and each missing pattern.
        """
        recipe = self.config.recipe
        severity = recipe.largest_severity()
        cells = robustness_cells(
            self.modalities,
            corrupted=self.config.conditions().names,
            severities=[severity] if severity else [],
        )
        found = evaluate_grid(
            self.grid,
            {"params": state.params, **state.collections},
            self._validation_batches(source),
            cells=cells,
            key=stream(jax.random.key(0), "validation"),
            progress=int(state.step) / self.config.num_steps,
            place=self.parallel.place_rows,
        )
        with np.errstate(invalid="ignore"):  # What is not finite is refused by name.
            scores = [self.config.task.compute(cell.records) for cell in found]
        named = {
            f"{_cell_name(cell)}": score["accuracy"]
            for cell, score in zip(cells[1:], scores[1:], strict=True)
        }
        if self.scaling is not None:
            named["temperature"] = float(state.collections["calibration"]["temperature"])
        return {**scores[0], **named, SELECTION: float(np.mean([s["accuracy"] for s in scores]))}


def _cell_name(cell: Cell) -> str:
    """Name of a cell in the validation log."""
    if cell.missing:
        return "without_" + "_".join(cell.missing)
    return f"noisy_{cell.noise[0][0]}"


def _refuse_not_finite(values: Mapping[str, Any], step: int, checkpoints: Checkpoints) -> None:
    """Stop at a number that is NaN or infinite; what was saved before stays."""
    for name, value in values.items():
        if not np.isfinite(value):
            checkpoints.wait()
            raise FusionError(
                f"the {name} became {value} at step {step}: lower config.optimizer.learning_rate "
                "(in another --workdir) or look at the data; "
                f"checkpoints from before are kept in {checkpoints.folder}"
            )


def _check_modalities(config: Config, spec: DataSpec) -> None:
    """The model and the data must speak of the same modalities."""
    if config.model.modalities != spec.names:
        raise FusionError(
            f"the model's modalities are {list(config.model.modalities)}, "
            f"the data's {list(spec.names)}: change config.model.encoders or config.data"
        )


def _check_prediction(config: Config, spec: DataSpec) -> None:
    """The model must predict what the task takes."""
    if not hasattr(config.task, "check"):
        return
    shapes, batch = state_shapes(config, spec), first_batch(spec)
    # Controls that are told the noise are trained and evaluated with it.
    predict = functools.partial(
        config.model.apply, train=False, noise_level=np.zeros(batch.present.shape, np.float32)
    )
    variables = {"params": shapes.params, **shapes.collections}
    output = jax.eval_shape(predict, variables, batch.inputs, batch.present)
    config.task.check(cast(ModelOutput, output).prediction.shape, spec)


def _check_corruptions(config: Config, spec: DataSpec) -> None:
    """Every corruption must take the inputs of its modality; traced, not run."""
    for name, corruptions in config.evaluation_corruptions().items():
        wanted = spec.modalities[name]
        x = jax.ShapeDtypeStruct(wanted.shape, wanted.dtype)
        for corruption in corruptions:
            try:
                donor = [x] if getattr(corruption, "needs_donor", False) else []
                made = jax.eval_shape(corruption, jax.random.key(0), x, np.float32(0.5), *donor)
            except (FusionError, TypeError, ValueError) as error:
                raise FusionError(
                    f"{type(corruption).__name__} cannot be applied to modality {name!r}: "
                    f"{first_line(error)}"
                ) from error
            if (made.shape, made.dtype) != (x.shape, x.dtype):
                raise FusionError(
                    f"{type(corruption).__name__} turns {x.dtype} {x.shape} of modality {name!r} "
                    f"into {made.dtype} {made.shape}: a corruption keeps both"
                )


@contextlib.contextmanager
def _sigterm_noted() -> Iterator[list[int]]:
    """A list that fills when SIGTERM arrives; outside the main thread it stays empty.

    With several hosts it stays empty too: JAX watches for the signal there (`hosts.should_stop`).
    """
    noted: list[int] = []
    if jax.process_count() > 1:
        yield noted
        return
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    except ValueError:  # signal handlers can only be set in the main thread
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)
