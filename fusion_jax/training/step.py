"""The training step: one pure function (state, batch) -> (state, metrics) for every method."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fusion_jax.axes import masked_mean, mean_share, psum
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
) -> Step:
    """Build the step. Everything given is closed over; only arrays are arguments."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        views = {name: make_view(name, batch, recipe, state) for name in objective.views}
        batches = {name: view for name, (view, _) in views.items()}
        first_view = objective.views[0]

        def loss_of(params: Any) -> tuple[Array, tuple[Any, ...]]:
            outputs, collections = run_views(model, params, state, views, state.step / num_steps)
            first = jax.lax.stop_gradient(outputs[first_view])
            clean = clean_view(model, params, state, batch)
            loss_weights, scale, balancer_state = balancer.observe(state.balancer, clean, first)
            rows, objective_state, terms = objective(
                outputs, batches, state.objective, task=task, loss_weights=loss_weights
            )
            states = (collections, balancer_state, objective_state)
            return mean_share(rows, batch.mask), (states, scale, first, {"loss": rows, **terms})

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (_, (states, update_scale, first, rows)), grads = gradient(state.params)
        collections, balancer_state, objective_state = states
        grads = psum(grads)
        updates, opt_state = tx.update(
            grads, state.opt_state, state.params, update_scale=update_scale
        )
        metrics = step_metrics(model, task, first, batches[first_view], rows)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        next_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            collections=collections,
            opt_state=opt_state,
            balancer=balancer_state,
            objective=objective_state,
            key=state.key,
        )
        return next_state, metrics

    return step


def run_views(
    model: FusionModel,
    params: Any,
    state: TrainState,
    views: Mapping[str, tuple[Batch, Array]],
    progress: Array,
) -> tuple[dict[str, ModelOutput], dict[str, Any]]:
    """Outputs of each view, and the collections after the last one."""
    collections: Any = state.collections
    outputs = {}
    for name, (view, noise_level) in views.items():
        output, collections = model.apply(
            {"params": params, **collections},
            view.inputs,
            view.present,
            view.mask,
            train=True,
            progress=progress,
            noise_level=noise_level,
            mutable=list(state.collections),
            rngs={"dropout": stream(state.key, "dropout", name, state.step)},
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
    name: str, batch: Batch, recipe: Recipe, state: TrainState
) -> tuple[Batch, Float[Array, "b m"]]:
    """A view of a batch and its noise level [B, M].

    Views: "clean" (the batch as loaded), "corrupted" (the recipe's noise and modality dropout).
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
            inputs[modality], level = _corrupt_modality(modality, batch, recipe, state)
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
    modality: str, batch: Batch, recipe: Recipe, state: TrainState
) -> tuple[Array, Float[Array, " b"]]:
    """Corrupted input of one modality and the noise levels [B] that were injected."""
    corruption = recipe.corruptions[modality]
    keys = example_keys(stream(state.key, "severity", modality, state.step), batch.example_id)
    severity = jax.vmap(lambda key: jax.random.uniform(stream(key, "value")))(keys)
    noisy = jax.vmap(lambda key: jax.random.bernoulli(stream(key, "coin"), recipe.noise_rate))(keys)
    severity = jnp.where(noisy, recipe.max_severity * (1 - severity), 0)
    noise_keys = example_keys(
        stream(state.key, "corruption", modality, state.step), batch.example_id
    )
    corrupted = corrupt_batch(
        corruption, batch.inputs[modality], keys=noise_keys, severity=severity
    )
    return corrupted, corruption.noise_level(severity)


def step_metrics(
    model: FusionModel, task: Any, output: ModelOutput, view: Batch, rows: dict[str, Array]
) -> Metrics:
    """Global means over the batch: scalars, and [M] vectors over rows with the modality."""
    metrics = {name: masked_mean(value, view.mask) for name, value in rows.items()}
    metrics["accuracy"] = masked_mean(
        task.records(output.prediction, view.target)["correct"], view.mask
    )
    here = (view.present & view.mask[:, None]).astype(jnp.float32)
    count = jnp.maximum(psum(here.sum(axis=0)), 1)

    def over_present(values: Array) -> Array:
        return psum(jnp.sum(values * here, axis=0)) / count

    alone = [
        task.records(output.unimodal[:, m], view.target)["correct"]
        for m in range(len(model.modalities))
    ]
    metrics["unimodal_accuracy"] = over_present(jnp.stack(alone, axis=-1))
    metrics["weight"] = over_present(output.fusion.weights)
    for name, value in output.fusion.signals.items():
        metrics[f"signal/{name}"] = over_present(value)
    return metrics
