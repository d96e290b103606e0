"""Dropout that draws the same mask under every strategy.

`flax.linen.Dropout` draws one mask for the whole array: under `pmap` every device would repeat it,
and the mask would depend on the batch's shape. Here each row has a key of its own, from its
position in the global batch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fusion_jax.axes import row_ids
from fusion_jax.rng import example_keys


class Dropout(nn.Module):
    """Sets entries to 0 with probability `rate`, in training only; scales the rest to match.

    Attributes:
        rate: in [0, 1).

    References:
        Srivastava et al., Dropout, JMLR 2014, section 10 (inverted form).
    """

    rate: float = 0.1

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
        """Drop entries of x [B, ...]; training needs the "dropout" random stream."""
        if not train or self.rate == 0:
            return x
        keys = example_keys(self.make_rng("dropout"), row_ids(x.shape[0]))
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)
