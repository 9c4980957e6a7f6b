"""Tokens of series with gaps: windows of time, all channels together."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.layers.mlp import Dense

_LONGEST = 10_000.0  # of the wavelengths of positions, over 2 pi


def sinusoids(count: int, width: int) -> Float[np.ndarray, "L D"]:
  """Positions 0..count-1: sines, then cosines, of geometric wavelengths.

  Source: Attention Is All You Need, arXiv:1706.03762, section 3.5.
  """
  half = -(-width // 2)
  rates = _LONGEST ** (-np.arange(half) / half)
  phases = np.arange(count)[:, None] * rates
  table = np.concatenate([np.sin(phases), np.cos(phases)], axis=1)
  return table[:, :width].astype(np.float32)


class SeriesEmbed(nn.Module):
  """One token for each window of a series of values and flags.

  A 1-D convolution over all channels: its kernel covers a window and a sample
  on either side, its stride is the window. Values count where their flag is 1
  only; the flags are channels too, so that a missing value is no zero.
  Positions are sinusoids. Beyond its ends a series is missing: the circular
  padding of the tokenisers that this follows (kernel 3, arXiv:2307.10802 and
  2012.07436) would join its end to its beginning.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    columns: values of a sample, calendar included.
    channels: the first of them, which make a token valid; not used here.
    window: samples of a token; must divide the length.
  """

  width: int
  dtype: Any = jnp.float32
  columns: int = 1
  channels: int = 1
  window: int = 16

  @nn.compact
  def __call__(self, x: Float[Array, "B time C"]) -> Float[Array, "B L D"]:
    """Returns [B, time / window, width]; x is [B, time, 2 columns].

    Raises:
      ValueError: for another number of columns or samples.
    """
    batch, length, columns = x.shape
    if columns != 2 * self.columns or length % self.window:
      raise ValueError(
        f"a series of shape {x.shape[1:]}; expected a multiple of "
        f"{self.window} samples and {2 * self.columns} columns."
      )
    flags = x[..., self.columns :]
    x = jnp.concatenate([x[..., : self.columns] * flags, flags], axis=-1)
    count = length // self.window
    inner = x.reshape(batch, count, self.window, columns)
    wide = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    before = wide[:, 0 : length : self.window, None]
    after = wide[:, self.window + 1 :: self.window, None]
    windows = jnp.concatenate([before, inner, after], axis=2)
    tokens = Dense(
      self.width, self.dtype, names=(axes.PATCH, axes.EMBED), name="proj"
    )(windows.reshape(batch, count, (self.window + 2) * columns))
    positions = jnp.asarray(sinusoids(count, self.width))
    return tokens + positions.astype(self.dtype)[None]
