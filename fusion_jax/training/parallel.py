"""How the one training step is laid over devices and hosts: three strategies with the same numbers.

`DataParallel` splits the batch and keeps the state on every device, `FSDP` splits large arrays of
the state too, `Pmap` maps the step over devices by hand. The state has the same form in all of
them, so a checkpoint of one is a checkpoint of the others, on any number of devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fusion_jax.axes import DATA_AXIS
from fusion_jax.compiler import compiler_options
from fusion_jax.config import Parallel
from fusion_jax.errors import FusionError
from fusion_jax.types import Batch, Step, TrainState


class DataParallel:
    """`jax.jit` over a mesh of one axis: the batch is split over it, the state is on every device.

    Attributes:
        mesh: the mesh, axis "data", over the devices of all hosts; those of a host are neighbours.
    """

    def __init__(self, devices: Any = None):
        """Use the given devices (those of all hosts by default)."""
        found = jax.devices() if devices is None else devices
        # Each host loads a contiguous part of the batch, so its devices must be neighbours.
        ordered = sorted(found, key=lambda device: (device.process_index, device.id))
        self.mesh = Mesh(np.asarray(ordered), (DATA_AXIS,), axis_types=(AxisType.Auto,))
        self._rows = NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())

    def check(self, *, accumulation: int = 1, **batch_sizes: int) -> None:
        """Refuse batch sizes that do not divide over the devices and accumulated parts."""
        for name, size in batch_sizes.items():
            parts = accumulation if name == "batch_size" else 1
            if size % (self.mesh.size * parts):
                times = f" times config.accumulation = {parts}" if parts > 1 else ""
                raise FusionError(
                    f"config.{name} is {size}: make it a multiple of the {self.mesh.size} "
                    f"devices{times}"
                )

    def shardings(self, shapes: TrainState) -> TrainState:
        """The placement of each array of a state: here, all of it on every device."""
        return jax.tree.map(lambda _: self._everywhere, shapes)

    def template(self, shapes: TrainState) -> TrainState:
        """Shapes and types of a state with their placement, to restore a checkpoint into."""
        return jax.tree.map(
            lambda leaf, placed: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed),
            shapes,
            self.shardings(shapes),
        )

    def create(self, init: Callable[[jax.Array], TrainState], key: jax.Array) -> TrainState:
        """The state that `init(key)` makes, made in its place: no device ever holds all of it."""
        return self.creator(init, jax.eval_shape(init, key))(key)

    def creator(
        self, init: Callable[[jax.Array], TrainState], shapes: TrainState
    ) -> Callable[[jax.Array], TrainState]:
        """`create` of one `init` for any number of keys, compiled once; `shapes` of its states."""
        return self.on_mesh(jax.jit(init, out_shardings=self.shardings(shapes)))

    def place_state(self, state: TrainState) -> TrainState:
        """A copy of a state in its place; a copy, because the step donates its state."""
        return jax.tree.map(
            # may_alias=False alone still gives the first device the array itself.
            lambda x, placed: jax.device_put(jnp.copy(x), placed),
            state,
            self.shardings(state),
        )

    def place_rows(self, batch: Batch) -> Batch:
        """The batch of which this host has its part, its rows split over the devices."""
        if jax.process_count() == 1:
            return jax.device_put(batch, self._rows)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self._rows, np.asarray(x)), batch
        )

    def place_batch(self, batch: Batch) -> Batch:
        """A training batch as the compiled step takes it."""
        return self.place_rows(batch)

    def rows_template(self, batch: Batch) -> Batch:
        """Shapes and types of the whole batch with the placement that `place_rows` gives it."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._rows), batch
        )

    def batch_template(self, batch: Batch) -> Batch:
        """Shapes and types of the whole batch with the placement that `place_batch` gives it."""
        return self.rows_template(batch)

    def program(self, step: Step, shapes: TrainState) -> Any:
        """The step under `jax.jit` (or `jax.pmap`), which can be lowered; it donates its state."""
        outputs = (self.shardings(shapes), self._everywhere)
        return jax.jit(
            step, donate_argnums=0, out_shardings=outputs, compiler_options=self._options()
        )

    def compile(self, step: Step, shapes: TrainState) -> Step:
        """The compiled step; it consumes the state it is given."""
        return self.on_mesh(self.program(step, shapes))

    def flops(self, step: Step, shapes: TrainState, batch: Batch) -> float:
        """Floating-point operations of the step over all devices, by XLA's count.

        Args:
            step: the step.
            shapes: of its state.
            batch: shapes of the whole batch.
        """
        lower = self.on_mesh(self.program(step, shapes).lower)
        lowered = lower(self.template(shapes), self.batch_template(batch))
        return float(lowered.cost_analysis()["flops"])

    def evaluation_program(self, function: Callable[..., Any], *, keep_rows: bool = False) -> Any:
        """A function under `jax.jit`, which can be lowered; see `evaluation`."""
        placed = self._rows if keep_rows else self._everywhere
        return jax.jit(function, out_shardings=placed, compiler_options=self._options())

    def evaluation(
        self, function: Callable[..., Any], *, keep_rows: bool = False
    ) -> Callable[..., Any]:
        """A compiled function (variables, ...) of rows.

        Its results are on every device, so that any host can read them; with `keep_rows` they stay
        split over the devices as the batch is, to be worked on there.
        """
        return self.on_mesh(self.evaluation_program(function, keep_rows=keep_rows))

    def _options(self) -> dict[str, str | bool]:
        """For the compiler, by the platform of the devices."""
        return compiler_options(self.mesh.devices.flat[0].platform)

    def on_mesh(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function called with the mesh in sight, so that it can map over rows."""

        def run(*args: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return compiled(*args)

        return run


class FSDP(DataParallel):
    """Fully sharded data-parallel: large arrays of the state are split over the devices too.

    A parameter is gathered for the time of a step and its gradient is scattered where it is summed;
    parameters, gradients and optimiser between them stay split. An array of at least `min_size`
    elements is split along its largest axis that divides over the devices; others stay on every
    device.

    References:
        Rajbhandari et al., ZeRO, SC 2020, stage 3; Xu et al., arXiv 2004.13336 (weight-update
            sharding in XLA).
    """

    def __init__(self, devices: Any = None, *, min_size: int = 2**14):
        """Use the given devices; arrays smaller than `min_size` elements are not split."""
        super().__init__(devices)
        self._min_size = min_size

    def shardings(self, shapes: TrainState) -> TrainState:
        """The placement of each array by the size rule."""
        return jax.tree.map(self._placement, shapes)

    def program(self, step: Step, shapes: TrainState) -> Any:
        """The step under `jax.jit`, which can be lowered; it donates its state."""

        def on_whole(state: TrainState, batch: Batch) -> PyTree:
            return step(dataclasses.replace(state, params=self._whole(state.params)), batch)

        return super().program(on_whole, shapes)

    def evaluation_program(self, function: Callable[..., Any], *, keep_rows: bool = False) -> Any:
        """A function (variables, ...) under `jax.jit`, which can be lowered; see `evaluation`."""

        def on_whole(variables: PyTree, *args: Any) -> PyTree:
            return function(self._whole(variables), *args)

        return super().evaluation_program(on_whole, keep_rows=keep_rows)

    def _whole(self, tree: PyTree) -> PyTree:
        """All of each array on every device while it is in use.

        Unless it is told so, XLA may leave a matrix split and gather the batch instead.
        """
        return jax.lax.with_sharding_constraint(tree, self._everywhere)

    def _placement(self, leaf: Any) -> NamedSharding:
        """Where one array goes."""
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % self.mesh.size == 0]
        if not fitting or leaf.size < self._min_size:
            return self._everywhere
        longest = max(fitting, key=lambda axis: leaf.shape[axis])
        names = [DATA_AXIS if axis == longest else None for axis in range(leaf.ndim)]
        return NamedSharding(self.mesh, PartitionSpec(*names))


class Pmap(DataParallel):
    """`jax.pmap`: each device runs the step on its own rows; sums are written in the step."""

    def place_batch(self, batch: Batch) -> Batch:
        """The rows of this host as [local devices, rows of a device, ...]."""
        local = self._local_mesh()
        placed = NamedSharding(local, PartitionSpec(DATA_AXIS))

        def split(x: Any) -> np.ndarray:
            return np.reshape(x, (local.size, -1, *np.shape(x)[1:]))

        return jax.device_put(jax.tree.map(split, batch), placed)

    def batch_template(self, batch: Batch) -> Batch:
        """Shapes and types of the whole batch as [devices, rows of a device, ...]."""
        count = self.mesh.size

        def split(leaf: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                (count, leaf.shape[0] // count, *leaf.shape[1:]), leaf.dtype
            )

        return self.rows_template(jax.tree.map(split, batch))

    def program(self, step: Step, shapes: TrainState) -> Any:
        """The mapped step; a state goes in and comes out once, not once for each device."""
        return jax.pmap(
            step,
            axis_name=DATA_AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=0,
        )

    def compile(self, step: Step, shapes: TrainState) -> Step:
        """The compiled step; it consumes the state it is given."""
        program = self.program(step, shapes)
        if jax.process_count() == 1:
            return program

        def run(state: TrainState, batch: Batch) -> PyTree:
            # Between processes pmap speaks of each one's own copy, the rest of us of the whole.
            everywhere = PartitionSpec()
            local = multihost_utils.global_array_to_host_local_array(state, self.mesh, everywhere)
            return multihost_utils.host_local_array_to_global_array(
                program(local, batch), self.mesh, everywhere
            )

        return run

    def flops(self, step: Step, shapes: TrainState, batch: Batch) -> float:
        """Floating-point operations of the step over all devices, by XLA's count."""
        # The program is that of one device.
        return self.mesh.size * super().flops(step, shapes, batch)

    def _local_mesh(self) -> Mesh:
        """The devices of this host."""
        here = [d for d in self.mesh.devices.flat if d.process_index == jax.process_index()]
        return Mesh(np.asarray(here), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def make_strategy(parallel: Parallel, devices: Any = None) -> DataParallel:
    """The strategy that a configuration names.

    Raises:
        FusionError: for an unknown name.
    """
    if parallel.strategy == "fsdp":
        return FSDP(devices, min_size=parallel.min_shard_size)
    strategies = {"jit": DataParallel, "pmap": Pmap}
    if parallel.strategy not in strategies:
        raise FusionError(
            f"config.parallel.strategy is {parallel.strategy!r}: choose 'jit', 'fsdp' or 'pmap'"
        )
    return strategies[parallel.strategy](devices)
