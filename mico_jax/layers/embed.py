"""How inputs become tokens: patches, words, and modalities with their own.

A modality that is a grid of patches uses `PatchEmbed`, shared by all of them. A
new kind of input names a class like `SignalEmbed` in its record
(`mico_jax.modalities.CustomEmbedding`); the class gets the arrays of single
frames and gives tokens with positions of its own.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax import axes
from mico_jax.layers.mlp import Dense
from mico_jax.layers.parameter import parameter

TABLE_INIT = nn.initializers.truncated_normal(0.02)
# 1 / sqrt(width), for tables that are added to normalised tokens: 0.027 at
# width 1408, and not drowned by the tokens of narrow towers.
POSITION_INIT = nn.initializers.variance_scaling(
  1.0, "fan_out", "truncated_normal"
)


def to_patches(
  pixels: Float[Array, "B Y X C"], patch_size: int
) -> Float[Array, "B L D"]:
  """Cuts frames into flattened patches, row by row; inside: row, column, C."""
  batch, height, width, channels = pixels.shape
  rows, columns = height // patch_size, width // patch_size
  grid = pixels.reshape(
    batch, rows, patch_size, columns, patch_size, channels
  ).transpose(0, 1, 3, 2, 4, 5)
  return grid.reshape(batch, rows * columns, patch_size**2 * channels)


class PatchEmbed(nn.Module):
  """Linear embedding of non-overlapping patches (a strided convolution).

  Attributes:
    width: of the tokens.
    patch_size: in pixels.
    dtype: compute dtype.
    use_bias: whether a bias is added.
  """

  width: int
  patch_size: int
  dtype: Any = jnp.float32
  use_bias: bool = True

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X C"],
    *,
    token_indices: Int[Array, "B K"] | None = None,
  ) -> Float[Array, "B L D"]:
    """Embeds all patches, or the named ones only (the rest costs nothing)."""
    patches = to_patches(pixels, self.patch_size)
    if token_indices is not None:
      patches = jnp.take_along_axis(patches, token_indices[:, :, None], axis=1)
    # Xavier as if the convolution were linear, like the MAE and EVA codes.
    return Dense(
      self.width,
      self.dtype,
      use_bias=self.use_bias,
      names=(axes.PATCH, axes.EMBED),
      kernel_init=nn.initializers.xavier_uniform(),
      name="proj",
    )(patches)


class SignalEmbed(nn.Module):
  """Tokens of a sampled signal: windows of time, all channels together.

  For inertial sensors and other short series; each frame is [time, channels].
  Positions are learned, one per window.

  Attributes:
    width: of the tokens.
    dtype: compute dtype.
    window: samples per token; must divide the length.
  """

  width: int
  dtype: Any = jnp.float32
  window: int = 8

  @nn.compact
  def __call__(self, x: Float[Array, "B time C"]) -> Float[Array, "B L D"]:
    """Returns one token per window."""
    batch, length, channels = x.shape
    if length % self.window:
      raise ValueError(
        f"signal of {length} samples is no multiple of {self.window}."
      )
    windows = x.reshape(batch, length // self.window, self.window * channels)
    tokens = Dense(
      self.width, self.dtype, names=(axes.PATCH, axes.EMBED), name="proj"
    )(windows)
    positions = parameter(
      self,
      "positions",
      TABLE_INIT,
      (tokens.shape[1], self.width),
      (axes.POSITION, axes.EMBED),
    )
    return tokens + positions.astype(self.dtype)[None]


def look_up(
  table: Float[Array, "V W"],
  ids: Int[Array, "B L"],
  *,
  frozen_id: int | None = None,
) -> Float[Array, "B L W"]:
  """Rows of a table.

  Args:
    table: vectors by id.
    ids: rows to look up.
    frozen_id: this id's vectors pass no gradient (`padding_idx` of PyTorch).
  """
  vectors = jnp.take(table, ids, axis=0)
  if frozen_id is None:
    return vectors
  frozen = (ids == frozen_id)[:, :, None]
  return jnp.where(frozen, jax.lax.stop_gradient(vectors), vectors)
