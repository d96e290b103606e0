"""MWAM: the modality that is rich in low frequencies is learned first, so it is slowed down.

The frequency ratio of each modality's inputs is averaged into a bank, its share of the mean becomes
a weight, and the weight scales the losses or the updates of that modality's branch. At inference it
plays no part.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fusion_jax.axes import any_row, masked_mean
from fusion_jax.errors import FusionError
from fusion_jax.frequency import FLIPS, MODES, PADDINGS, TRANSFORMS, frequency_ratio
from fusion_jax.types import Batch, Features, ModelOutput

EPSILON = 1e-6


class Preset(NamedTuple):
    """The constants of equation 5 and the choices around it.

    Attributes:
        alpha: the largest weight, before normalisation.
        beta: alpha - beta is the smallest.
        slope: steepness in the share.
        centre: the share that gets the weight in the middle.
        share: what equation 6 divides by what, one of `SHARES`.
        start: of the bank, see `update_bank`.
        metric: `mode` of `fusion_jax.frequency.frequency_ratio`.
        normalised: clip shares to [0, M] and divide weights by their mean.
    """

    alpha: float = 1.5
    beta: float = 1.0
    slope: float = 6.0
    centre: float = 1.0
    share: str = "bank_over_bank"
    start: str = "first"
    metric: str = "robust"
    normalised: bool = True


PRESETS = {
    "robust": Preset(),
    "paper": Preset(centre=0.7, share="ratio_over_ratio", metric="official", normalised=False),
    "official": Preset(
        slope=10.0, share="ratio_over_bank", start="soft", metric="official", normalised=False
    ),
}
SHARES = ("ratio_over_bank", "ratio_over_ratio", "bank_over_bank")
STARTS = ("first", "soft")
# What is scaled, and whether the objective's unimodal losses are.
INTERVENTIONS = {
    "update": ("update", False),
    "gradient": ("gradient", False),
    "loss": (None, True),
    "hybrid": ("gradient", True),
    "update_hybrid": ("update", True),
}
SOURCES = ("input", "features")


def update_bank(
    bank: Float[Array, " m"],
    ratio: Float[Array, " m"],
    *,
    seen: Bool[Array, " m"],
    decay: float = 0.5,
    start: str = "first",
) -> Float[Array, " m"]:
    """The running average of each modality's frequency ratio; what is not finite stays out.

    Args:
        bank: [M], the average so far; any finite value where nothing was seen.
        ratio: [M], of this batch; NaN or infinite where it is not known.
        seen: Bool[M], which modalities have an average. A bank of 0 does not say so.
        decay: share of the old average, in [0, 1).
        start: "first" begins with the first ratio (the paper), "soft" with (1 - decay) times it
            (the released code).

    Raises:
        FusionError: for another start.

    References:
        Lu et al., MWAM, arXiv 2602.22644, equation 2.
    """
    _choice("start", start, STARTS)
    known = jnp.isfinite(ratio)
    value = jnp.where(known, ratio, 0)
    old = jnp.where(seen, bank, 0)
    first = value if start == "first" else (1 - decay) * value
    return jnp.where(known, jnp.where(seen, decay * old + (1 - decay) * value, first), old)


def balance_weights(
    ratio: Float[Array, " m"],
    bank: Float[Array, " m"],
    *,
    preset: str | Preset = "robust",
    available: Bool[Array, " m"] | None = None,
) -> Float[Array, " m"]:
    """Weights K = alpha - beta sigmoid(slope (T - centre)), T each modality's share of the mean.

    | preset | alpha, beta, slope, centre | T |
    |---|---|---|
    | "official" | 1.5, 1, 10, 1 | ratio over the mean of the bank |
    | "paper" | 1.5, 1, 6, 0.7 | ratio over the mean of the ratios |
    | "robust" | 1.5, 1, 6, 1 | bank over its mean, at most M; weights divided by their mean |

    Args:
        ratio: [M], of this batch, >= 0.
        bank: [M], after this batch, >= 0.
        preset: one of the above, or a `Preset`.
        available: Bool[M]; the others do not enter the means and get weight 1. None: all.

    Returns:
        [M] in (alpha - beta, alpha), before "robust" divides.

    Raises:
        FusionError: for an unknown preset or share.

    References:
        Lu et al., MWAM, arXiv 2602.22644, equations 5 and 6; "official": its released code.
    """
    chosen = _choice("preset", preset, PRESETS) if isinstance(preset, str) else preset
    here = jnp.ones(bank.shape, bool) if available is None else available
    share = frequency_shares(ratio, bank, share=chosen.share, available=here)
    if chosen.normalised:
        share = jnp.clip(share, 0, bank.shape[0])
    weights = chosen.alpha - chosen.beta * jax.nn.sigmoid(chosen.slope * (share - chosen.centre))
    if chosen.normalised:
        weights = weights / _mean(weights, here)
    return jnp.where(here, weights, 1)


def frequency_shares(
    ratio: Float[Array, " m"],
    bank: Float[Array, " m"],
    *,
    share: str,
    available: Bool[Array, " m"],
) -> Float[Array, " m"]:
    """T [M]: each modality's ratio or bank over a mean of the available ones, 0 on the others.

    Args:
        ratio: [M], of this batch.
        bank: [M], after this batch.
        share: "ratio_over_bank" (the released code), "ratio_over_ratio" (equation 6) or
            "bank_over_bank" (the paper's text).
        available: Bool[M].

    Raises:
        FusionError: for another share.
    """
    if share not in SHARES:
        raise FusionError(f"share is {share!r}: choose one of {list(SHARES)}")
    over, under = (
        jnp.where(available, ratio if name == "ratio" else bank, 0)
        for name in share.split("_over_")
    )
    return over / (_mean(under, available) + EPSILON)


@dataclasses.dataclass
class MWAM:
    """MWAM as a balancer.

    It reads the clean, preprocessed view: the metric does not depend on the model, and corrupted or
    absent rows are not what a modality is like. A modality that is absent from a whole batch keeps
    its bank and gets weight 1. It goes with any scheduler and with modality dropout.

    Attributes:
        preset: "robust", "paper" or "official", see `balance_weights`; the last two use the
            official frequency ratio, which flat blocks dominate.
        intervention: what the weights scale in the encoders: "update", the finished step of the
            optimiser; "gradient", what the optimiser is given (with Adam a constant factor
            cancels); "loss", the unimodal losses, where the objective has them
            (`Supervised.unimodal_weight`, without which "loss" changes nothing); "hybrid", gradient
            and loss, as published; "update_hybrid", update and loss.
        source: what the ratio is of: "input", or "features", the maps that the encoders return on
            the objective's first view.
        metric: `mode` of `fusion_jax.frequency.frequency_ratio`; empty for the preset's.
        share: one of "ratio_over_bank", "ratio_over_ratio", "bank_over_bank"; empty for the
            preset's.
        constants: (alpha, beta, slope, centre) of equation 5; empty for the preset's.
        decay: of the bank, in [0, 1).
        transform: "dct" or, with the metric "robust", "fft".
        block: side of a DCT block. A modality smaller than that cannot be balanced by frequency.
            For features it is halved until it divides the map.
        corner: coefficients along each axis of a band, at most half of a block.
        flip: of the official metric, "block" or "global".
        padding: for sizes that are no multiple of a block: "error", "edge" or "crop".
        permuted: give each modality the weight of the one before it: the control that tells whether
            it matters which one is slowed down.

    References:
        Lu et al., MWAM, arXiv 2602.22644, algorithm 1 and section 4. "robust" is ours.
    """

    preset: str = "robust"
    intervention: str = "update"
    source: str = "input"
    metric: str = ""
    share: str = ""
    constants: tuple[float, ...] = ()
    decay: float = 0.5
    transform: str = "dct"
    block: int = 8
    corner: int = 2
    flip: str = "block"
    padding: str = "error"
    permuted: bool = False

    @property
    def site(self) -> str:
        """Where the optimiser scales; see `fusion_jax.balancing.none.NoBalancer`."""
        chosen = _choice("config.balancer.intervention", self.intervention, INTERVENTIONS)
        return chosen[0] or "update"

    def init(self, num_modalities: int) -> Any:
        """An empty bank, and the shares T of the last step for the log.

        Raises:
            FusionError: for unknown words and numbers out of range.
        """
        self._check()
        return {
            "bank": jnp.zeros(num_modalities),
            "seen": jnp.zeros(num_modalities, bool),
            "share": jnp.zeros(num_modalities),
        }

    def weigh(
        self,
        state: Any,
        inputs: Mapping[str, Array],
        *,
        present: Bool[Array, "b m"] | None = None,
        mask: Bool[Array, " b"] | None = None,
    ) -> tuple[Float[Array, " m"], Any]:
        """The weights of a training step, for any loop.

        Under `pmap` or `shard_map` name the axis of the batch "data": means are over that axis.

        Args:
            state: as returned by `init` or the last call.
            inputs: modality name -> clean, preprocessed inputs or feature maps, [B, H, W, C],
                [B, T, H, W, C], [B, T] or [B, T, C]. The order of the M axis is `sorted(inputs)`.
            present: Bool[B, M], rows that have the modality; None for all.
            mask: Bool[B], False on padding rows; None for none.

        Returns:
            weights [M] and the next state.

        Raises:
            FusionError: for unknown words, and modalities that the metric cannot be taken of.

        Example:
            >>> import jax
            >>> smooth = jnp.broadcast_to(jnp.linspace(-1, 1, 16), (4, 16, 16))[..., None]
            >>> noise = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))
            >>> balancer = MWAM()
            >>> weights, state = balancer.weigh(balancer.init(2), {"a": smooth, "b": noise})
            >>> bool(weights[0] < 1 < weights[1])
            True
        """
        chosen = self._check()
        ratio, here = self._ratios(inputs, present, mask, chosen.metric)
        known = here & jnp.isfinite(ratio)
        bank = update_bank(
            state["bank"],
            jnp.where(known, ratio, jnp.nan),
            seen=state["seen"],
            decay=self.decay,
            start=chosen.start,
        )
        weights = balance_weights(ratio, bank, preset=chosen, available=known)
        share = frequency_shares(ratio, bank, share=chosen.share, available=known)
        if self.permuted:
            weights = jnp.roll(weights, 1)
        after = {"bank": bank, "seen": state["seen"] | known, "share": share}
        # The state keeps its types, whatever the inputs have: a scan over parts carries it.
        return weights, {name: value.astype(state[name].dtype) for name, value in after.items()}

    def observe(
        self, state: Any, batch: Batch, output: ModelOutput
    ) -> tuple[Float[Array, " m"], Float[Array, " m"], Any]:
        """Look at a training step; see `fusion_jax.balancing.none.NoBalancer.observe`.

        Raises:
            FusionError: as `weigh`, and with `source="features"` for encoders without maps.
        """
        inputs, present = batch.inputs, batch.present
        if self.source == "features":
            present = output.present
            inputs = {name: feature_map(name, output.features[name]) for name in inputs}
        weights, state = self.weigh(state, inputs, present=present, mask=batch.mask)
        ones = jnp.ones_like(weights)
        site, losses = INTERVENTIONS[self.intervention]
        return weights if losses else ones, weights if site else ones, state

    def _check(self) -> Preset:
        """The preset with the fields that stand in its place, all of them in range."""
        chosen: Preset = _choice("config.balancer.preset", self.preset, PRESETS)
        _choice("config.balancer.intervention", self.intervention, INTERVENTIONS)
        _choice("config.balancer.source", self.source, SOURCES)
        _choice("config.balancer.transform", self.transform, TRANSFORMS)
        _choice("config.balancer.flip", self.flip, FLIPS)
        _choice("config.balancer.padding", self.padding, PADDINGS)
        metric = _choice("config.balancer.metric", self.metric or chosen.metric, MODES)
        share = _choice("config.balancer.share", self.share or chosen.share, SHARES)
        if self.transform == "fft" and metric != "robust":
            raise FusionError(
                f"config.balancer.metric {metric!r} is defined on DCT blocks: use transform='dct'"
            )
        if not 0 <= self.decay < 1:
            raise FusionError(f"config.balancer.decay is {self.decay}: it must be in [0, 1)")
        if not 1 <= self.corner <= self.block // 2:
            raise FusionError(
                f"config.balancer.corner is {self.corner}: a block of {self.block} has corners of"
                f" 1..{self.block // 2}"
            )
        if self.constants:
            alpha, beta, slope, centre = _constants(self.constants)
            chosen = chosen._replace(alpha=alpha, beta=beta, slope=slope, centre=centre)
        return chosen._replace(metric=metric, share=share)

    def _ratios(
        self,
        inputs: Mapping[str, Array],
        present: Bool[Array, "b m"] | None,
        mask: Bool[Array, " b"] | None,
        metric: str,
    ) -> tuple[Float[Array, " m"], Bool[Array, " m"]]:
        """Mean frequency ratio [M] of the present rows of the global batch, and where there is one.

        The mean, where the paper sums over the batch: shares are the same, and a batch with fewer
        rows of a modality does not look like one with less low frequency.
        """
        means, available = [], []
        for m, name in enumerate(sorted(inputs)):
            x = inputs[name]
            valid = jnp.ones(x.shape[0], bool) if mask is None else mask
            rows = valid if present is None else valid & present[:, m]
            block = self.block if self.source == "input" else _fitting_block(x, self.block)
            try:
                values = frequency_ratio(
                    x,
                    mode=metric,
                    transform=self.transform,
                    block=block,
                    corner=self.corner if self.source == "input" else min(self.corner, block // 2),
                    flip=self.flip,
                    padding=self.padding,
                )
            except FusionError as error:
                raise FusionError(f"the frequency ratio of {name!r}: {error}") from error
            means.append(masked_mean(values, rows))
            available.append(any_row(rows))
        return jnp.stack(means), jnp.stack(available)

    @classmethod
    def example(cls) -> "MWAM":
        """A small instance for the conformance tests."""
        return cls()


def feature_map(name: str, features: Features) -> Float[Array, "b ... d"]:
    """The tokens of an encoder as the map [B, *grid, D] that they are.

    Raises:
        FusionError: for features that are no map.
    """
    if features.tokens is None or features.grid is None:
        raise FusionError(
            f"the features of {name!r} are no map: use source='input', or an encoder that returns "
            "tokens with their grid (cnn, resnet, vit)"
        )
    return features.tokens.reshape(features.tokens.shape[0], *features.grid, -1)


def _fitting_block(x: Float[Array, "b ..."], block: int) -> int:
    """`block`, halved until it divides the map; at least 2."""
    sides = x.shape[-3:-1] if x.ndim > 3 else x.shape[1:2]
    while block > 2 and any(side % block for side in sides):
        block = max(2, block // 2)
    return block


def _mean(values: Float[Array, " m"], here: Bool[Array, " m"]) -> Float[Array, ""]:
    """Mean over the available modalities, 0 where there is none."""
    return jnp.sum(jnp.where(here, values, 0)) / jnp.maximum(here.sum(), 1)


def _constants(given: tuple[float, ...]) -> tuple[float, ...]:
    """The four constants of equation 5, in range; a weight below 0 would turn a step round."""
    if len(given) != 4 or not all(map(math.isfinite, given)) or not 0 <= given[1] <= given[0]:
        raise FusionError(
            f"config.balancer.constants is {given}: give four, (alpha, beta, slope, centre), "
            "with 0 <= beta <= alpha"
        )
    return given


def _choice(field: str, name: str, choices: Any) -> Any:
    """What a word stands for."""
    if name not in choices:
        raise FusionError(f"{field} is {name!r}: choose one of {list(choices)}")
    return choices[name] if isinstance(choices, dict) else name
