"""FusionModel: preprocess, encode, schedule, fuse, head. It knows no method by name."""

import dataclasses
import math
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.blocks.input_statistics import input_statistics
from fusion_jax.blocks.presence import uniform_weights
from fusion_jax.errors import FusionError
from fusion_jax.types import Features, ModelOutput, SchedulerInput


class FusionModel(nn.Module):
    """A multimodal model that weighs its modalities example by example.

    Attributes:
        encoders: modality name -> encoder; all project to one width D. The names define the
            modalities.
        scheduler: gives the fusion weights.
        fusion: the fusion operator.
        head: fused Features -> prediction.
        preprocess: modality name -> module on the device, raw input to encoder input; others pass
            as are.
        rematerialise: compute the encoders' activations again in the backward pass instead of
            keeping them: less memory, about a third more time, the same numbers.
        temperature_scaling: divide the logits by a temperature in evaluation mode, one number that
            `fusion_jax.training.temperature` fits on validation examples: the same answers, with
            confidences that match how often they are right. Unimodal logits, from which schedulers
            take signals, are left as they are. For predictions that are logits [B, K].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from fusion_jax.encoders.mlp import MLPEncoder
        >>> from fusion_jax.fusion.sum import SumFusion
        >>> from fusion_jax.schedulers.static import StaticScheduler
        >>> from fusion_jax.tasks.classification import ClassificationHead
        >>> model = FusionModel(
        ...     encoders={"a": MLPEncoder(hidden=(8,)), "b": MLPEncoder(hidden=(8,))},
        ...     scheduler=StaticScheduler(), fusion=SumFusion(), head=ClassificationHead(3))
        >>> inputs = {"a": jnp.ones((4, 5)), "b": jnp.ones((4, 2))}
        >>> present = jnp.ones((4, 2), bool)
        >>> output, _ = model.init_with_output(jax.random.key(0), inputs, present, train=False)
        >>> output.prediction.shape, output.fusion.weights.shape
        ((4, 3), (4, 2))
    """

    encoders: dict[str, nn.Module]
    scheduler: nn.Module
    fusion: nn.Module
    head: nn.Module
    preprocess: dict[str, nn.Module] = dataclasses.field(default_factory=dict)
    rematerialise: bool = False
    temperature_scaling: bool = False

    def setup(self) -> None:
        """Declare the temperature, 1 before it is fitted."""
        if self.temperature_scaling:
            self.temperature = self.variable("calibration", "temperature", jnp.ones, ())

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of the M axis."""
        return tuple(sorted(self.encoders))

    def prepare(
        self, inputs: dict[str, Any], present: Bool[Array, "b m"], *, train: bool
    ) -> dict[str, Any]:
        """Preprocess raw inputs; rows of a missing modality become zeros.

        Zeros and not whatever stands there: a NaN in a missing input would reach the gradients even
        where its value is masked out later.
        """
        missing = set(self.modalities) - set(inputs)
        if missing:
            raise FusionError(
                f"the model needs the modality {sorted(missing)[0]!r}; given are {sorted(inputs)}"
            )
        return {
            name: self._prepare_one(name, inputs[name], present[:, m], train=train)
            for m, name in enumerate(self.modalities)
        }

    def encode(
        self,
        prepared: dict[str, Any],
        present: Bool[Array, "b m"],
        mask: Bool[Array, " b"],
        *,
        train: bool,
    ) -> dict[str, Features]:
        """Encode each modality apart; only present, unpadded rows enter batch statistics."""
        return {
            name: self._encode_one(name, prepared[name], mask & present[:, m], train=train)
            for m, name in enumerate(self.modalities)
        }

    def encode_modality(
        self, name: str, x: Any, here: Bool[Array, " b"], mask: Bool[Array, " b"], *, train: bool
    ) -> Features:
        """Preprocess and encode the raw input of one modality, present in the rows `here`.

        What the other modalities are does not matter to it, so many conditions of one modality can
        be combined with many of another without encoding each combination.
        """
        prepared = self._prepare_one(name, x, here, train=train)
        return self._encode_one(name, prepared, mask & here, train=train)

    def _prepare_one(self, name: str, x: Any, here: Bool[Array, " b"], *, train: bool) -> Any:
        x = _zero_absent(x, here)
        if name in self.preprocess:
            x = _zero_absent(self.preprocess[name](x, train=train), here)
        return x

    def _encode_one(self, name: str, x: Any, rows: Bool[Array, " b"], *, train: bool) -> Features:
        def call(encoder: nn.Module, x: Any, rows: Array) -> Features:
            return cast(Any, encoder)(x, train=train, mask=rows)

        encode = nn.remat(call) if self.rematerialise else call
        features = encode(self.encoders[name], x, rows)
        for signal in getattr(self.scheduler, "signals", ()):
            if hasattr(signal, "measure_frequency_ratio"):
                try:
                    ratio = signal.measure_frequency_ratio(x)
                except FusionError as error:
                    raise FusionError(f"the frequency ratio of {name!r}: {error}") from error
                features = dataclasses.replace(features, frequency_ratio=ratio)
            if getattr(signal, "reads_statistics", False):
                features = dataclasses.replace(features, statistics=input_statistics(x))
        return features

    def decide(
        self,
        features: dict[str, Features],
        present: Bool[Array, "b m"],
        mask: Bool[Array, " b"],
        *,
        train: bool,
        progress: Float[Array, ""] | float = 1.0,
        noise_level: Float[Array, "b m"] | None = None,
    ) -> ModelOutput:
        """Schedule, fuse and predict from features; see `__call__`."""
        stopped = jax.lax.stop_gradient(features)
        ratios = [features[name].frequency_ratio for name in self.modalities]
        measured = [ratio for ratio in ratios if ratio is not None]

        def predict(subsets: Bool[Array, "*lead b m"]) -> Float[Array, "*lead b k"]:
            return jax.lax.stop_gradient(self._on_subsets(stopped, _within(subsets, present)))

        alone = _within(jnp.eye(len(self.modalities), dtype=bool)[:, None, :], present)
        unimodal = jnp.moveaxis(self._on_subsets(features, alone), 0, 1)
        fusion = self.scheduler(
            SchedulerInput(
                features=features,
                present=present,
                mask=mask,
                progress=progress,
                predict=predict,
                unimodal=jax.lax.stop_gradient(unimodal),
                frequency_ratio=(
                    jnp.stack(measured, axis=-1) if len(measured) == len(ratios) else None
                ),
                noise_level=noise_level,
            ),
            train=train,
        )
        prediction = self.head(self.fusion(features, fusion.weights, present), train=train)
        if self.temperature_scaling and not train:
            prediction = prediction / self.temperature.value
        return ModelOutput(prediction, unimodal, fusion, features, present, noise_level)

    def _on_subsets(
        self, features: dict[str, Features], subsets: Bool[Array, "*lead b m"]
    ) -> Float[Array, "*lead b k"]:
        """The head with uniform weights on subsets of modalities, in evaluation mode."""
        *lead, num_rows, num = subsets.shape
        copies = math.prod(lead)
        # The copies of a row are neighbours: row-major over the batch, so that rows split over
        # devices stay where they are. The other way round XLA gathers the features of the batch.
        rows = jnp.swapaxes(subsets.reshape(copies, num_rows, num), 0, 1).reshape(-1, num)
        repeated = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), features)
        logits = self.head(self.fusion(repeated, uniform_weights(rows), rows), train=False)
        return jnp.swapaxes(logits.reshape(num_rows, copies, -1), 0, 1).reshape(*lead, num_rows, -1)

    def __call__(
        self,
        inputs: dict[str, Any],
        present: Bool[Array, "b m"],
        mask: Bool[Array, " b"] | None = None,
        *,
        train: bool,
        progress: Float[Array, ""] | float = 1.0,
        noise_level: Float[Array, "b m"] | None = None,
    ) -> ModelOutput:
        """Predict.

        Args:
            inputs: modality name -> raw input [B, ...].
            present: Bool[B, M], in the order of sorted names.
            mask: Bool[B], False on padding rows; None means no padding.
            train: training mode (dropout, batch statistics, scheduler state updates).
            progress: training fraction in [0, 1].
            noise_level: [B, M] injected noise in units of its reference, in training only.

        Raises:
            FusionError: where an input of a modality is left out.
        """
        mask = jnp.ones(present.shape[0], bool) if mask is None else mask
        prepared = self.prepare(inputs, present, train=train)
        features = self.encode(prepared, present, mask, train=train)
        return self.decide(
            features,
            present,
            mask,
            train=train,
            progress=progress,
            noise_level=noise_level,
        )


def parameter_modality(path: tuple[str, ...], modalities: tuple[str, ...]) -> str | None:
    """The modality whose encoder owns a parameter of a FusionModel, or None for shared ones."""
    return next((name for name in modalities if path[0] == f"encoders_{name}"), None)


def _within(subsets: Bool[Array, "*lead b m"], present: Bool[Array, "b m"]) -> Bool[Array, "..."]:
    """The part of each subset that is present; rows of `subsets` may be 1, for all."""
    shape = (*subsets.shape[:-2], *present.shape)
    return jnp.broadcast_to(subsets, shape) & jnp.broadcast_to(present, shape)


def _zero_absent(x: Any, here: Bool[Array, " b"]) -> Any:
    """Zeros in the rows of a pytree where a modality is absent."""
    return jax.tree.map(
        lambda leaf: jnp.where(here.reshape(here.shape + (1,) * (leaf.ndim - 1)), leaf, 0), x
    )
