"""Swin: attention within windows that shift from block to block.

All blocks of a stage are equal and scanned; whether a block shifts its windows
is data. Windows lie beside the heads, [B tokens-of-a-window windows*N H], so
that relative positions and the border mask of shifted windows are one additive
bias without a batch axis, and one transpose per block sorts tokens by window.
A window as large as the feature map, or larger, is the whole map, unshifted.

Source: arXiv:2103.14030, section 3; details as in the official MiCo code (model
type "swin"): LayerNorm after the patches, bias on queries, keys and values, and
-100 as the mask's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from mico_jax import axes
from mico_jax.config import VisionConfig
from mico_jax.kernels.attention import attention
from mico_jax.layers import dropout
from mico_jax.layers.attention import ATTENTION_OUT, PackedProjection
from mico_jax.layers.embed import TABLE_INIT
from mico_jax.layers.mlp import Dense, Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.models.staged import (
  SHARED_FIELDS,
  StagedEncoder,
  StageSize,
  fold_layer,
  staged_config,
)

MASK_VALUE = -100.0  # added between tokens that are no neighbours


def relative_index(window: int) -> Int[np.ndarray, "L L"]:
  """Row of the bias table for each pair of tokens of a window."""
  place = np.stack(np.divmod(np.arange(window**2), window))
  offset = place[:, :, None] - place[:, None] + window - 1
  return offset[0] * (2 * window - 1) + offset[1]


def shift_mask(
  resolution: int, window: int, shift: int
) -> Float[np.ndarray, "W L L"]:
  """0 between tokens that are neighbours before the shift, else MASK_VALUE.

  Args:
    resolution: rows, and columns, of the feature map.
    window: tokens along a side of a window; divides `resolution`.
    shift: by which the map was rolled.
  """
  # After the roll, the last window of an axis holds two pieces that met.
  place = np.arange(resolution)
  piece = (place >= resolution - window).astype(int) + (
    place >= resolution - shift
  )
  region = 3 * piece[:, None] + piece[None]
  count = resolution // window
  region = region.reshape(count, window, count, window).transpose(0, 2, 1, 3)
  region = region.reshape(count**2, window**2)
  apart = region[:, :, None] != region[:, None]
  return np.where(apart, MASK_VALUE, 0.0).astype(np.float32)


def window_of(config: VisionConfig, resolution: int) -> int:
  """Tokens along a side of the windows of a feature map."""
  return min(config.window_size, resolution)


class WindowAttention(nn.Module):
  """Self-attention within windows, with relative positions.

  Attributes:
    num_heads: N.
    window: tokens along a side of a window; divides the resolution.
    dtype: compute dtype.
    backend: see `mico_jax.kernels.attention`.
  """

  num_heads: int
  window: int
  dtype: Any = jnp.float32
  backend: str = "auto"

  @nn.compact
  def __call__(
    self, x: Float[Array, "B Y X D"], shifted: Bool[Array, ""]
  ) -> Float[Array, "B Y X D"]:
    """Returns the attended features.

    Args:
      x: features.
      shifted: whether windows are shifted by half their size (never if one
        window covers the map).
    """
    batch, side, _, width = x.shape
    window, count = self.window, side // self.window
    shift = window // 2 if count > 1 else 0
    table = parameter(
      self,
      "position_bias",
      TABLE_INIT,
      ((2 * window - 1) ** 2, self.num_heads),
      (axes.POSITION, axes.UNSHARDED),
    )
    bias = jnp.take(table, relative_index(window), axis=0).transpose(2, 0, 1)
    if shift:
      x = jnp.where(shifted, jnp.roll(x, (-shift, -shift), (1, 2)), x)
      mask = jnp.asarray(shift_mask(side, window, shift), table.dtype)
      bias = (
        bias[None] + jnp.where(shifted, mask, jnp.zeros_like(mask))[:, None]
      )
    else:
      bias = jnp.broadcast_to(bias[None], (count**2, *bias.shape))
    length, heads = window**2, count**2 * self.num_heads
    x = x.reshape(batch, count, window, count, window, width)
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, width)
    project = PackedProjection(3, self.num_heads, dtype=self.dtype, name="qkv")
    q, k, v = (
      part.reshape(batch, length, heads, width // self.num_heads)
      for part in project.split_heads(project(x))
    )
    out = attention(
      q,
      k,
      v,
      bias=bias.reshape(1, heads, length, length),
      backend=self.backend,
    )
    out = checkpoint_name(out, ATTENTION_OUT).reshape(batch, -1, width)
    out = Dense(width, self.dtype, names=(axes.QKV, axes.EMBED), name="proj")(
      out
    )
    out = out.reshape(batch, window, window, count, count, width)
    out = out.transpose(0, 3, 1, 4, 2, 5).reshape(batch, side, side, width)
    if not shift:
      return out
    return jnp.where(shifted, jnp.roll(out, (shift, shift), (1, 2)), out)


class PatchMerging(nn.Module):
  """2 x 2 places side by side (columns outermost), LayerNorm, linear.

  Attributes:
    width: of the next stage.
    norm_eps: of the LayerNorm.
    dtype: compute dtype.
  """

  width: int
  norm_eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B R S D"]:
    """Returns features of half the resolution."""
    batch, side, _, channels = x.shape
    x = x.reshape(batch, side // 2, 2, side // 2, 2, channels)
    x = x.transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(batch, side // 2, side // 2, 4 * channels)
    x = LayerNorm(self.norm_eps, name="norm")(x)
    return Dense(
      self.width,
      self.dtype,
      use_bias=False,
      names=(axes.PATCH, axes.EMBED),
      name="reduction",
    )(x)


class SwinBlock(nn.Module):
  """Pre-norm window attention and MLP with stochastic depth.

  Attributes:
    config: of the encoder.
    num_heads: of this stage.
    mlp_dim: of this stage.
    dtype: compute dtype.
    backend: of attention.
    return_hidden: whether the features are returned as output of the layer too.
  """

  config: VisionConfig
  num_heads: int
  mlp_dim: int
  dtype: Any = jnp.float32
  backend: str = "auto"
  return_hidden: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Y X D"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> tuple[Float[Array, "B Y X D"], Float[Array, "B Y X D"] | None]:
    """Returns the features after this block."""
    row_keys, rate = fold_layer(layer, shared)
    attend = WindowAttention(
      self.num_heads,
      window_of(self.config, x.shape[1]),
      self.dtype,
      self.backend,
      name="attn",
    )
    eps = self.config.norm_eps
    y = attend(LayerNorm(eps, name="norm1")(x), layer["shifted"])
    x = x + dropout.drop_path(y, row_keys, rate, dropout.DROP_PATH_ATTN)
    mlp = Mlp(self.mlp_dim, self.dtype, name="mlp")
    y = mlp(LayerNorm(eps, name="norm2")(x))
    x = x + dropout.drop_path(y, row_keys, rate, dropout.DROP_PATH_MLP)
    return x, x if self.return_hidden else None


class Swin(StagedEncoder):
  """Swin over frames; see `StagedEncoder`."""

  downsample: ClassVar[type[nn.Module]] = PatchMerging
  fields: ClassVar[frozenset[str]] = SHARED_FIELDS | {
    "num_heads",
    "stage_heads",
    "window_size",
  }

  def check(self) -> None:
    """See `Encoder.check`."""
    super().check()
    config, where = self.config, "config.model.vision"
    heads = config.stage_heads
    if len(heads) != len(config.stage_widths) or config.num_heads != heads[-1]:
      raise ValueError(
        f"{where}.stage_heads={heads} must name a count for each stage, "
        f"num_heads={config.num_heads} the last one."
      )
    for stage, count in zip(self.stages, heads, strict=True):
      if count < 1 or stage.width % count:
        raise ValueError(
          f"{where}.stage_heads={heads} must divide stage_widths="
          f"{config.stage_widths}."
        )
      if stage.resolution % window_of(config, stage.resolution):
        raise ValueError(
          f"{where}.window_size={config.window_size} must divide the feature "
          f"map of stage {stage.index}, {stage.resolution} x "
          f"{stage.resolution}; change image_size={config.image_size} or the "
          "window."
        )

  def block(
    self, stage: StageSize, *, return_hidden: bool
  ) -> tuple[type[nn.Module], dict[str, Any]]:
    """See `StagedEncoder`."""
    return SwinBlock, {
      "config": self.config,
      "num_heads": self.config.stage_heads[stage.index],
      "mlp_dim": stage.mlp_dim,
      "dtype": self.dtype,
      "backend": self.backend,
      "return_hidden": return_hidden,
    }

  def layer_options(self, stage: StageSize) -> dict[str, np.ndarray]:
    """Every second block shifts its windows."""
    return {"shifted": np.arange(stage.depth) % 2 == 1}


def _size(
  width: int, depths: tuple[int, ...], head_dim: int = 32
) -> VisionConfig:
  heads = tuple(width * 2**i // head_dim for i in range(len(depths)))
  return staged_config(
    "swin",
    depths,
    width,
    num_heads=heads[-1],
    norm_eps=1e-5,
    stage_heads=heads,
  )


# Published sizes by name, at 224 pixels and windows of 7.
SIZES: dict[str, VisionConfig] = {
  "t": _size(96, (2, 2, 6, 2)),
  "s": _size(96, (2, 2, 18, 2)),
  "b": _size(128, (2, 2, 18, 2)),
  "l": _size(192, (2, 2, 18, 2)),
}
