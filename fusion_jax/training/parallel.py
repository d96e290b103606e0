"""How a step is laid over devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusion_jax.axes import DATA_AXIS
from fusion_jax.errors import FusionError
from fusion_jax.types import Batch, Step, TrainState


class DataParallel:
    """`jax.jit` over a mesh of one axis: the batch is split over it, the state is on every device.

    Attributes:
        mesh: the mesh, axis "data".
    """

    def __init__(self, devices: Any = None):
        """Use the given devices (all of them by default)."""
        devices = np.asarray(jax.devices() if devices is None else devices)
        self.mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))
        self._rows = NamedSharding(self.mesh, PartitionSpec(DATA_AXIS))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())

    def check(self, **batch_sizes: int) -> None:
        """Refuse batch sizes that do not divide over the devices."""
        for name, size in batch_sizes.items():
            if size % self.mesh.size:
                raise FusionError(
                    f"config.{name} is {size}: make it a multiple of the {self.mesh.size} devices"
                )

    def place_state(self, state: TrainState) -> TrainState:
        """A copy of the state on every device; a copy, because the step donates its state."""
        return jax.tree.map(lambda x: jax.device_put(x, self._everywhere, may_alias=False), state)

    def place_batch(self, batch: Batch) -> Batch:
        """The batch, its rows split over the devices."""
        return jax.device_put(batch, self._rows)

    def compile(self, step: Step) -> Step:
        """The compiled step; it consumes the state it is given."""
        everywhere = (self._everywhere, self._everywhere)
        return self.on_mesh(jax.jit(step, donate_argnums=0, out_shardings=everywhere))

    def on_mesh(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled function called with the mesh in sight, so that it can map over rows."""

        def run(*args: Any) -> Any:
            with jax.set_mesh(self.mesh):
                return compiled(*args)

        return run
