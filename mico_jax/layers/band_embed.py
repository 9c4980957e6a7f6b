"""Tokens of spectra: groups of neighbouring bands, with the pixels around."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.layers.mlp import Dense

_UNIT = 0.05  # micrometres of a step of position
_LONGEST = 10_000.0  # of the wavelengths of positions, over 2 pi


class BandEmbed(nn.Module):
  """One token for each group of bands.

  A linear map of all values of the group, which count where their flag is 1
  only; the flags are inputs too. The place of a token is the mean wavelength of
  its bands, as sinusoids, so that a place is the same whatever the bands are.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    group: bands of a token; divides their number.

  Source: groups of neighbouring bands, SpectralFormer, arXiv:2107.02988,
    section II-B; positions, arXiv:1706.03762, section 3.5.
  """

  width: int
  dtype: Any = jnp.float32
  group: int = 4

  @nn.compact
  def __call__(self, x: Float[Array, "B S C"]) -> Float[Array, "B L D"]:
    """Returns [B, bands / group, width].

    Args:
      x: rows of values, deviations, flags, and the wavelength in micrometres.
    """
    batch, slots, columns = x.shape
    pixels, count = columns // 3, slots // self.group
    flags = (x[..., 2 * pixels : 3 * pixels] > 0.5).astype(x.dtype)
    values = x[..., : 2 * pixels] * jnp.tile(flags, (1, 1, 2))
    rows = jnp.concatenate([values, flags], axis=-1)
    tokens = Dense(
      self.width, self.dtype, names=(axes.PATCH, axes.EMBED), name="proj"
    )(rows.reshape(batch, count, self.group * 3 * pixels))
    band = jnp.where(x[..., -1] > 0, flags.max(axis=-1), 0)
    lengths = (band * x[..., -1]).reshape(batch, count, self.group)
    total = jnp.maximum(band.reshape(lengths.shape).sum(axis=-1), 1)
    places = lengths.sum(axis=-1) / total / _UNIT
    half = -(-self.width // 2)
    rates = (_LONGEST ** (-np.arange(half) / half)).astype(np.float32)
    phases = places[..., None] * rates[None, None]
    waves = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)
    waves = jnp.where(places[..., None] > 0, waves[..., : self.width], 0)
    return tokens + waves.astype(self.dtype)
