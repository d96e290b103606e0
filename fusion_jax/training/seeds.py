"""Which program steps the seeds of a run: one for each in turn, or one for several at once.

Both have one form for the loop: states are packed, stepped with a batch for each seed, and unpacked
where one of them is validated or saved.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from fusion_jax.training.parallel import DataParallel
from fusion_jax.types import Batch, Metrics, Step, TrainState


class OneSeed:
    """The step of a seed by itself; packed is the state as it is."""

    def __init__(self, parallel: DataParallel, step: Step, shapes: TrainState):
        """Build the program; nothing is compiled before its first use."""
        self._step: Any = parallel.compile(step, shapes)

    def pack(self, states: Sequence[TrainState]) -> PyTree:
        """What `step` takes, from the state of each seed."""
        [state] = states
        return state

    def unpack(self, packed: PyTree) -> list[TrainState]:
        """The state of each seed."""
        return [packed]

    def step(self, packed: PyTree, batches: list[Batch]) -> tuple[PyTree, PyTree]:
        """One training step of all seeds, with the batch of each; it consumes what is packed."""
        [batch] = batches
        return self._step(packed, batch)

    def metrics(self, found: PyTree) -> list[Metrics]:
        """The metrics of each seed, from those of a step."""
        return [found]


class SeedsAtOnce(OneSeed):
    """The step of several seeds in one program, vectorised over them; packed are stacked states.

    Each seed computes what it computes alone, up to rounding. It pays where a step of one seed is
    too small to fill the device: one set of kernels does the work of all. Convolutions of several
    seeds become grouped ones, which are slow on CPU.
    """

    def __init__(self, parallel: DataParallel, step: Step, shapes: TrainState, count: int):
        """Build the programs for so many seeds; nothing is compiled before its first use."""
        stacked = jax.eval_shape(_stack, [shapes] * count)
        alone, together = parallel.shardings(shapes), parallel.shardings(stacked)

        def at_once(states: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
            return jax.vmap(step)(states, _stack(batches))

        def split(states: TrainState) -> list[TrainState]:
            return [
                jax.tree.map(lambda leaf, i=i: _on_numbers(lambda x: x[i], leaf), states)
                for i in range(count)
            ]

        self._pack = parallel.on_mesh(jax.jit(_stack, out_shardings=together))
        self._unpack = parallel.on_mesh(jax.jit(split, out_shardings=[alone] * count))
        self._step: Any = parallel.compile(at_once, stacked)

    def pack(self, states: Sequence[TrainState]) -> PyTree:
        """What `step` takes, from the state of each seed."""
        return self._pack([*states])

    def unpack(self, packed: PyTree) -> list[TrainState]:
        """The state of each seed."""
        return list(self._unpack(packed))

    def step(self, packed: PyTree, batches: list[Batch]) -> tuple[PyTree, PyTree]:
        """One training step of all seeds, with the batch of each; it consumes what is packed."""
        return self._step(packed, batches)

    def metrics(self, found: PyTree) -> list[Metrics]:
        """The metrics of each seed, from those of a step."""
        count = len(found["loss"])
        return [{name: values[i] for name, values in found.items()} for i in range(count)]


def _stack(trees: Sequence[PyTree]) -> PyTree:
    """Trees of one form as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: _on_numbers(lambda *x: jnp.stack(x), *leaves), *trees)


def _on_numbers(function: Callable[..., Array], *leaves: Array) -> Array:
    """A function of arrays; of random keys it takes the numbers that they are.

    To JAX's check of key reuse, stacking keys and slicing them would be uses.
    """
    if not jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return function(*leaves)
    numbers = function(*map(jax.random.key_data, leaves))
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaves[0]))
