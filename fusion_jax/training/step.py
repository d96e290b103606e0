"""The training step: one pure function (state, batch) -> (state, metrics) for every method."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from fusion_jax.axes import count, mean_share, psum, total
from fusion_jax.balancing.scale_by_modality import SITES
from fusion_jax.config import Recipe
from fusion_jax.corruptions.batch import corrupt_batch, drop_modalities
from fusion_jax.errors import FusionError
from fusion_jax.models import FusionModel
from fusion_jax.rng import example_keys, stream
from fusion_jax.types import Batch, Metrics, ModelOutput, Step, TrainState


def make_train_step(
    *,
    model: FusionModel,
    task: Any,
    objective: Any,
    balancer: Any,
    recipe: Recipe,
    tx: optax.GradientTransformationExtraArgs,
    num_steps: int,
    accumulation: int = 1,
) -> Step:
    """Build the step. Everything given is closed over; only arrays are arguments.

    With `accumulation` = A > 1 the batch is worked through in A parts of every A-th row, and the
    gradient is the one of the mean over all its rows. Running statistics (batch norm, scheduler,
    balancer, objective) see one part after the other; the update scale is the mean over the parts.

    Raises:
        FusionError: for a balancer that names a site that no optimiser has.
    """
    _site(balancer)

    def part(
        state: TrainState, batch: Batch, rows: Array, number: Array | None
    ) -> tuple[TrainState, Any]:
        progress, first_view = state.step / num_steps, objective.views[0]
        views = {name: make_view(name, batch, recipe, state, progress) for name in objective.views}
        views[first_view] = drop_for_balance(balancer, state, *views[first_view])
        batches = {name: view for name, (view, _) in views.items()}

        def loss_of(params: Any) -> tuple[Array, tuple[Any, ...]]:
            outputs, collections = run_views(model, params, state, views, num_steps, number)
            first = jax.lax.stop_gradient(outputs[first_view])
            clean = clean_view(model, params, state, batch)
            loss_weights, scale, balancer_state = balancer.observe(state.balancer, clean, first)
            losses, objective_state, terms = objective(
                outputs, batches, state.objective, task=task, loss_weights=loss_weights
            )
            states = dict(
                collections=collections, balancer=balancer_state, objective=objective_state
            )
            share = mean_share(losses, batch.mask, rows=rows)
            return share, (states, scale, first, {"loss": losses, **terms})

        (_, (states, scale, first, terms)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        sums = metric_sums(model, task, first, batches[first_view], terms)
        return dataclasses.replace(state, **states), (grads, scale, sums)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rows = count(batch.mask)
        if accumulation == 1:
            after, found = part(state, batch, rows, None)
        else:
            after, found = _accumulate(part, state, _split(batch, accumulation), rows)
        grads, update_scale, sums = found[0], found[1] / accumulation, found[2]
        grads, sums = psum((grads, sums))
        scales = scale_arguments(balancer, update_scale, state)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, **scales)
        metrics = {name: over / jnp.maximum(number, 1) for name, (over, number) in sums.items()}
        metrics |= balancer_metrics(update_scale, after.balancer)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(
            after, step=state.step + 1, params=params, opt_state=opt_state
        ), metrics

    return step


def drop_for_balance(
    balancer: Any, state: TrainState, view: Batch, noise_level: Float[Array, "b m"]
) -> tuple[Batch, Float[Array, "b m"]]:
    """A view without what the balancer drops from it, and its noise level as it is."""
    if not hasattr(balancer, "drop_rates"):
        return view, noise_level
    key = stream(state.key, "balancer", state.step)
    present = drop_modalities(
        stream(key, "drop"),
        view.present,
        rate=balancer.drop_rates(state.balancer, key),
        example_id=view.example_id,
    )
    return dataclasses.replace(view, present=present), noise_level


def scale_arguments(balancer: Any, scale: Float[Array, " m"], state: TrainState) -> dict[str, Any]:
    """What the optimiser is told of the balancer's decision, by where it acts."""
    arguments: dict[str, Any] = {f"{_site(balancer)}_scale": scale}
    noise = getattr(balancer, "gradient_noise", 0.0)
    if noise:
        key = stream(state.key, "gradient_noise", state.step)
        arguments |= {"gradient_noise": noise, "noise_key": key}
    return arguments


def _site(balancer: Any) -> str:
    """Where a balancer's scale acts. Under another name the optimiser would not notice it."""
    site = getattr(balancer, "site", "update")
    if site not in SITES:
        raise FusionError(f"config.balancer.site is {site!r}: choose one of {list(SITES)}")
    return str(site)


def balancer_metrics(scale: Float[Array, " m"], state: Any) -> dict[str, Float[Array, " m"]]:
    """The scales of a step and the [M] numbers of the balancer's state, for the log."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shown = {
        f"balancer/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
        for path, leaf in leaves
        if leaf.shape == scale.shape and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    return {"update_scale": scale} | shown


def _split(batch: Batch, parts: int) -> Batch:
    """The batch as [parts, rows of a part, ...].

    A part takes every `parts`-th row, so that it has rows on every device and none have to move.
    """
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)


def _accumulate(
    part: Callable[..., tuple[TrainState, Any]], state: TrainState, parts: Batch, rows: Array
) -> tuple[TrainState, Any]:
    """The state after all parts, and the sums of what they return."""

    def add(carried: tuple[TrainState, Any], item: tuple[Batch, Array]) -> tuple[Any, None]:
        before, sums = carried
        after, found = part(before, item[0], rows, item[1])
        return (after, jax.tree.map(jnp.add, sums, found)), None

    numbers = jnp.arange(parts.mask.shape[0], dtype=jnp.uint32)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda *args: part(*args)[1], state, first, rows, numbers[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carried, _ = jax.lax.scan(add, (state, zeros), (parts, numbers))
    return carried


def run_views(
    model: FusionModel,
    params: Any,
    state: TrainState,
    views: Mapping[str, tuple[Batch, Array]],
    num_steps: int,
    part: Array | None,
) -> tuple[dict[str, ModelOutput], dict[str, Any]]:
    """Outputs of each view, and the collections after the last one.

    Dropout is keyed by view, step, row and, where the batch is worked through in parts, part.
    """
    collections: Any = state.collections
    outputs = {}
    for name, (view, noise_level) in views.items():
        dropout = stream(state.key, "dropout", name, state.step)
        output, collections = model.apply(
            {"params": params, **collections},
            view.inputs,
            view.present,
            view.mask,
            train=True,
            progress=state.step / num_steps,
            noise_level=noise_level,
            mutable=list(state.collections),
            rngs={"dropout": dropout if part is None else stream(dropout, part)},
        )
        outputs[name] = cast(ModelOutput, output)
    return outputs, dict(collections)


def clean_view(model: FusionModel, params: Any, state: TrainState, batch: Batch) -> Batch:
    """The batch as loaded, preprocessed, for the balancer; unused, it costs nothing."""
    variables = {"params": params, **state.collections}
    prepared: Any = model.apply(
        variables, batch.inputs, batch.present, train=False, method="prepare"
    )
    return jax.lax.stop_gradient(dataclasses.replace(batch, inputs=prepared))


def make_view(
    name: str, batch: Batch, recipe: Recipe, state: TrainState, progress: Array | float
) -> tuple[Batch, Float[Array, "b m"]]:
    """A view of a batch and its noise level [B, M].

    Views: "clean" (the batch as loaded), "corrupted" (the recipe's noise and modality dropout).
    `progress` is the fraction of training in [0, 1].
    """
    if name == "clean":
        return batch, jnp.zeros(batch.present.shape, jnp.float32)
    if name != "corrupted":
        raise FusionError(
            f"unknown view {name!r}: an objective may ask for 'clean' and 'corrupted'"
        )
    inputs, levels = dict(batch.inputs), []
    for modality in sorted(inputs):
        level = jnp.zeros(batch.mask.shape[0], jnp.float32)
        if modality in recipe.corruptions and recipe.noise_rate and recipe.max_severity:
            inputs[modality], level = _corrupt_modality(modality, batch, recipe, state, progress)
        levels.append(level)
    present = batch.present
    if recipe.modality_dropout:
        present = drop_modalities(
            stream(state.key, "modality_dropout", state.step),
            present,
            rate=recipe.modality_dropout,
            example_id=batch.example_id,
        )
    view = dataclasses.replace(batch, inputs=inputs, present=present)
    return view, jnp.stack(levels, axis=-1)


def _corrupt_modality(
    modality: str, batch: Batch, recipe: Recipe, state: TrainState, progress: Array | float
) -> tuple[Array, Float[Array, " b"]]:
    """Corrupted input of one modality and the noise levels [B] that were injected."""
    corruption = recipe.corruptions[modality]
    keys = example_keys(stream(state.key, "severity", modality, state.step), batch.example_id)
    severity = jax.vmap(lambda key: _draw_severity(stream(key, "value"), recipe))(keys)
    noisy = jax.vmap(lambda key: jax.random.bernoulli(stream(key, "coin"), recipe.noise_rate))(keys)
    noisy &= progress >= recipe.noise_start
    severity = jnp.where(noisy, severity, 0)
    noise_keys = example_keys(
        stream(state.key, "corruption", modality, state.step), batch.example_id
    )
    corrupted = corrupt_batch(
        corruption, batch.inputs[modality], keys=noise_keys, severity=severity
    )
    return corrupted, corruption.noise_level(severity)


def _draw_severity(key: Key[Array, ""], recipe: Recipe) -> Float[Array, ""]:
    """A severity of the recipe's grid, or of all in (0, max_severity]."""
    if not recipe.severities:
        return recipe.max_severity * (1 - jax.random.uniform(key))
    grid = jnp.asarray(recipe.severities, jnp.float32)
    return grid[jax.random.randint(key, (), 0, len(recipe.severities))]


def metric_sums(
    model: FusionModel, task: Any, output: ModelOutput, view: Batch, terms: dict[str, Array]
) -> dict[str, tuple[Array, Array]]:
    """What the metrics are ratios of: sum and number, over the local rows that are not padding.

    Scalars are over rows, [M] vectors over the rows with the modality. Sums of parts and devices
    add up, so a metric is never a mean of means.
    """
    valid = view.mask
    number = jnp.sum(valid, dtype=jnp.float32)
    correct = task.records(output.prediction, view.target)["correct"]
    sums = {name: (total(x, valid), number) for name, x in (terms | {"accuracy": correct}).items()}
    alone = [
        task.records(output.unimodal[:, m], view.target)["correct"]
        for m in range(len(model.modalities))
    ]
    by_modality = {"unimodal_accuracy": jnp.stack(alone, axis=-1), "weight": output.fusion.weights}
    by_modality |= {f"signal/{name}": value for name, value in output.fusion.signals.items()}
    here = view.present & valid[:, None]
    numbers = jnp.sum(here, axis=0, dtype=jnp.float32)
    for name, values in by_modality.items():
        sums[name] = (total(jnp.where(here, values, 0), valid), numbers)
    return sums
