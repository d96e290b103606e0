"""The one training loop."""

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Iterator, Mapping, Sequence
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
from fusion_jax.training.seeds import OneSeed, SeedsAtOnce
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
    if config.parallel.seeds_at_once and config.num_seeds > 1 and jax.process_count() > 1:
        raise FusionError(
            "config.parallel.seeds_at_once is for one host: train the seeds of a run on several "
            "hosts one after the other"
        )
    workdir = Path(workdir)
    sources = {split: config.data.source(split) for split in ("train", "validation")}
    spec = sources["train"].spec
    _check_modalities(config, spec)
    _check_corruptions(config, spec)
    # All that can be refused is refused before anything is written: a folder with a configuration
    # in it takes no other.
    run = Trainer(config, spec)
    _check_prediction(config, spec, run.shapes)
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            stack.enter_context(locked(workdir))
            record_run(config, workdir, spec)

        hosts.lead_does(enter)
        at_once = config.num_seeds if config.parallel.seeds_at_once else 1
        for first in range(0, config.num_seeds, at_once):
            indices = range(first, first + at_once)
            state = run.train_seeds(workdir, indices, sources, profile=profile)
    return state


@dataclasses.dataclass
class Seed:
    """A seed in training.

    Attributes:
        state: before the first step, which gives it up.
        checkpoints: what it saves.
        log: what it tells.
        batches: what it reads, on the devices.
    """

    state: TrainState | None
    checkpoints: Checkpoints
    log: RunLog
    batches: Iterator[Any]


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
        init = functools.partial(new_state, config, spec)
        self._create = self.parallel.creator(init, self.shapes)
        self._programs: dict[int, OneSeed] = {}
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

    def train_seeds(
        self,
        workdir: Path,
        indices: Sequence[int],
        sources: dict[str, Source],
        *,
        profile: bool = False,
    ) -> TrainState:
        """Train seeds at once, from their last checkpoints or from the start; the last one's state.

        Seeds that an earlier process left at another step than the others go on apart from them.
        """
        with contextlib.ExitStack() as stack:
            checkpoints = {
                index: stack.enter_context(
                    contextlib.closing(Checkpoints(seed_folder(workdir, index) / "checkpoints"))
                )
                for index in indices
            }
            states: dict[int, TrainState] = {}
            begun: dict[int, list[int]] = {}
            for index, kept in checkpoints.items():
                state = self._start(index, kept)
                if int(state.step) < self.config.num_steps:
                    begun.setdefault(int(state.step), []).append(index)
                elif index != indices[-1]:
                    continue
                states[index] = state
            for together in begun.values():
                given = {index: (states.pop(index), checkpoints[index]) for index in together}
                states |= self._train(workdir, given, sources, profile=profile)
        return states[indices[-1]]

    def _train(
        self,
        workdir: Path,
        given: dict[int, tuple[TrainState, Checkpoints]],
        sources: dict[str, Source],
        *,
        profile: bool,
    ) -> dict[int, TrainState]:
        """Train seeds that are at one step; the state of each after the last one.

        What is given is taken, so that nobody holds the states that the first step replaces.
        """
        indices = list(given)
        folder = seed_folder(workdir, indices[0]) / "profile"
        watch = Profiler(folder, lead=hosts.is_lead()) if profile else Watch()
        with contextlib.ExitStack() as stack:
            seeds = []
            for index in indices:
                state, checkpoints = given.pop(index)
                opened = self._opened(workdir, index, int(state.step), sources["train"])
                seeds.append(Seed(state, checkpoints, *stack.enter_context(opened)))
            del state
            after = self._steps(seeds, sources["validation"], watch)
            with watch.part("checkpoint"):
                for seed in seeds:
                    seed.checkpoints.wait()
        watch.finish(functools.partial(self.flops_per_step, seeds=len(seeds)))
        return dict(zip(indices, after, strict=True))

    def _start(self, index: int, checkpoints: Checkpoints) -> TrainState:
        """The state of a seed's last checkpoint, or a fresh one."""
        state = checkpoints.restore_last(self.parallel.template(self.shapes))
        return self._create(root_key(self.config, index)) if state is None else state

    @contextlib.contextmanager
    def _opened(
        self, workdir: Path, index: int, first: int, source: Source
    ) -> Iterator[tuple[RunLog, Iterator[Any]]]:
        """The log and the batches of a seed from a step on."""
        config = self.config
        log = RunLog(
            seed_folder(workdir, index) if hosts.is_lead() else None,
            first_step=first,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            title=f"seed {config.seed + index}",
        )
        batches = train_batches(
            source,
            batch_size=config.batch_size,
            seed=config.seed + index,
            first_step=first,
            host=hosts.this_host(),
            num_workers=config.num_workers,
            timeout=config.data_timeout,
            # Waited for in the thread that reads: a step then waits for nothing else.
            place=lambda batch: jax.block_until_ready(self.parallel.place_batch(batch)),
        )
        with contextlib.closing(log), contextlib.closing(batches):
            yield log, batches

    def _program(self, count: int) -> OneSeed:
        """What steps so many seeds at once; compiled once for each number."""
        if count not in self._programs:
            several = functools.partial(SeedsAtOnce, count=count)
            program = OneSeed if count == 1 else several
            self._programs[count] = program(self.parallel, self._one_step, self.shapes)
        return self._programs[count]

    def flops_per_step(self, *, seeds: int = 1) -> float:
        """Floating-point operations of a step of so many seeds over all devices, by XLA's count.

        Of the program as it is written, before XLA changes it. Parts of a batch that are worked
        through one after the other are counted once by XLA, so by their number here.
        """
        batch = batch_shapes(self.spec, size=self.config.batch_size)
        alone = self.parallel.flops(self._one_step, self.shapes, batch)
        return seeds * self.config.accumulation * alone

    def _steps(self, seeds: Sequence[Seed], validation: Source, watch: Watch) -> list[TrainState]:
        """The state of each seed after the last step; all start at one step."""
        config, pending = self.config, []
        program, states = self._program(len(seeds)), [cast(TrainState, s.state) for s in seeds]
        first, packed = int(states[0].step), program.pack(states)
        for seed in seeds:
            seed.state = None
        states = []
        with _sigterm_noted() as stop:
            for step in range(first + 1, config.num_steps + 1):
                with watch.part("input"):
                    batches = [next(seed.batches) for seed in seeds]
                with watch.part("step"):
                    packed, metrics = program.step(packed, batches)
                    watch.settle(metrics)
                pending.append((step, metrics))
                for seed in seeds:
                    seed.log.advance()
                validate = step % config.eval_every == 0 or step == config.num_steps
                # Read once: it may come at any moment.
                stopping = hosts.should_stop(step, bool(stop))
                if step % config.log_every == 0 or validate or stopping:
                    self._flush(pending, seeds, program)
                if validate or stopping:
                    states, packed = program.unpack(packed), None
                if validate:
                    states = [
                        self._validated(seed, state, validation, watch)
                        for seed, state in zip(seeds, states, strict=True)
                    ]
                    if step < config.num_steps and not stopping:
                        packed, states = program.pack(states), []
                elif stopping:
                    for seed, state in zip(seeds, states, strict=True):
                        seed.checkpoints.save(state, metrics=None)
                # Asked again of this process alone: it may have come during a validation, and
                # after the last step nobody else would ask.
                if stopping or (step == config.num_steps and stop):
                    for seed in seeds:
                        seed.checkpoints.wait()
                    raise Stopped(
                        f"stopped by SIGTERM after step {step}: saved; the same command goes on"
                    )
        return states

    def _validated(
        self, seed: Seed, state: TrainState, validation: Source, watch: Watch
    ) -> TrainState:
        """The state after its validation, saved with what it scored."""
        step = int(state.step)
        with watch.part("evaluation"):
            state = self._scaled(state, validation, seed.log)
            scores = self.validate(state, validation)
        named = {f"validation/{name}": score for name, score in scores.items()}
        _refuse_not_finite(named, step, seed.checkpoints)
        seed.log.write(step, named, say=SHOWN)
        with watch.part("checkpoint"):
            seed.checkpoints.save(state, metrics=scores)
        return state

    def _flush(self, pending: list[Any], seeds: Sequence[Seed], program: OneSeed) -> None:
        """Fetch and log the steps since the last call; refuse a loss that is not finite.

        Every save comes after a flush and, unless stopped, a validation, so a state behind a bad
        loss or with useless predictions never becomes a checkpoint.
        """
        fetched = [(step, program.metrics(jax.device_get(metrics))) for step, metrics in pending]
        pending.clear()
        for step, metrics in fetched:
            for seed, mine in zip(seeds, metrics, strict=True):
                vital = {name: mine[name] for name in ("loss", "gradient_norm")}
                _refuse_not_finite(vital, step, seed.checkpoints)
        if not fetched:
            return
        for number, seed in enumerate(seeds):
            steps = [metrics[number] for _, metrics in fetched]
            means = {name: np.mean([each[name] for each in steps], axis=0) for name in steps[0]}
            seed.log.write(fetched[-1][0], flatten_metrics(means, self.modalities), say=SHOWN)

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


def _check_prediction(config: Config, spec: DataSpec, shapes: TrainState) -> None:
    """The model must predict what the task takes."""
    if not hasattr(config.task, "check"):
        return
    batch = first_batch(spec)
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
