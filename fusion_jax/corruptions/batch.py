"""What is done to a batch: corrupting its rows and dropping its modalities, keyed by example id."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from fusion_jax.axes import map_rows
from fusion_jax.errors import FusionError
from fusion_jax.rng import example_keys, stream

BLOCK = 8


def corrupt_batch(
    corruption: Callable[..., Array],
    x: Shaped[Array, "b ..."],
    *,
    keys: Key[Array, " b"],
    severity: Float[Array, " b"],
    donor: Shaped[Array, "b ..."] | None = None,
) -> Shaped[Array, "b ..."]:
    """Corrupt each row of a batch: the same bits for any batch size, order and device count.

    The only way from a batch to a corrupted batch. XLA may fuse and vectorise the same arithmetic
    differently in programs of different shapes, which changes last bits; so rows go through one
    small program of fixed shape (blocks of 8), fenced off from its surroundings.

    Args:
        corruption: (key, x, severity, donor) -> x for one example.
        x: [B, ...].
        keys: one key per row.
        severity: [B] in [0, 1]; rows with 0 come back as they are.
        donor: [B, ...] as x, inputs of other examples, for corruptions with `needs_donor`.

    Raises:
        FusionError: where the corruption needs a donor and none is given.
    """
    blocks = jax.tree_util.Partial(_corrupt_blocks, corruption)
    if not getattr(corruption, "needs_donor", False):
        return map_rows(blocks)(keys, x, severity)
    if donor is None:
        raise FusionError(
            f"{type(corruption).__name__} needs inputs of other examples: give the batch its "
            "donors, as fusion_jax.evaluate does"
        )
    return map_rows(blocks)(keys, x, severity, donor)


def _corrupt_blocks(
    corruption: Callable[..., Array], keys: Array, x: Array, severity: Array, *donor: Array
) -> Array:
    """Corrupt rows in blocks of BLOCK; a short last block is filled with repeats of row 0."""
    # Keys travel as their numbers: filling up repeats a key, which typed keys refuse for good
    # reason.
    impl, numbers = jax.random.key_impl(keys), jax.random.key_data(keys)
    num_rows, shape = x.shape[0], x.shape[1:]
    # Two blocks at least: the compiler would take a loop over one apart and round otherwise.
    padding = max(-num_rows % BLOCK, 2 * BLOCK - num_rows)

    # Rows are flat at the fences, so that arithmetic on flat rows is not folded back into an
    # innermost axis of few channels, which the compiler does not vectorise.
    def flat_corruption(key: Array, row: Array, strength: Array, *other: Array) -> Array:
        others = [values.reshape(shape) for values in other]
        return corruption(key, row.reshape(shape), strength, *others).reshape(-1)

    def in_blocks(values: Array) -> Array:
        filled = jnp.concatenate([values, jnp.repeat(values[:1], padding, axis=0)])
        return filled.reshape((-1, BLOCK, *values.shape[1:]))

    def one_block(block: tuple[Array, ...]) -> Array:
        key_data, rows, strength, *other = jax.lax.optimization_barrier(block)
        row_keys = jax.random.wrap_key_data(key_data, impl=impl)
        noisy = jax.vmap(flat_corruption)(row_keys, rows, strength, *other)
        noisy = jnp.where((strength == 0)[:, None], rows, noisy)
        return jax.lax.optimization_barrier(noisy)

    flat = [values.reshape(num_rows, math.prod(shape)) for values in (x, *donor)]
    parts = (in_blocks(numbers), in_blocks(flat[0]), in_blocks(severity))
    blocks = jax.lax.map(one_block, (*parts, *map(in_blocks, flat[1:])))
    return blocks.reshape((-1, *shape))[:num_rows]


def drop_modalities(
    key: Key[Array, ""],
    present: Bool[Array, "b m"],
    *,
    rate: Float[Array, " m"] | Float[Array, ""] | float,
    example_id: Int[Array, " b"],
) -> Bool[Array, "b m"]:
    """Modality dropout: the one definition of its rate.

    Per example, each present modality is dropped with probability `rate`, independently; where that
    would drop all, one of the present modalities, chosen uniformly, is kept. With M present ones
    the probability that a given one is missing is therefore rate - rate^M / M where all have one
    rate; in general it is its rate less 1 / M of the product of all.

    Args:
        key: stream of this step.
        present: Bool[B, M].
        rate: in [0, 1]; [M] where it differs from modality to modality.
        example_id: Int[B], keys the draws.

    Returns:
        Bool[B, M], a subset of `present` with at least one modality wherever `present` has one.
    """

    def one_example(example_key: Array, here: Array) -> Array:
        kept = here & ~jax.random.bernoulli(stream(example_key, "drop"), rate, here.shape)
        scores = jax.random.uniform(stream(example_key, "keep"), here.shape)
        survivor = jnp.arange(here.shape[0]) == jnp.argmax(jnp.where(here, scores, -1))
        return jnp.where(kept.any(), kept, here & survivor)

    return jax.vmap(one_example)(example_keys(key, example_id), present)
