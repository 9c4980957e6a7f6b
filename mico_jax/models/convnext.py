"""ConvNeXt V2: large depthwise kernels, an MLP and global response norm.

Tokens are the last stage's features after a LayerNorm, place by place. The
published classifier averages first and normalises the mean; the LayerNorm is
the same, its place is not, because MiCo's contexts take tokens.

Source: arXiv:2301.00808 (blocks and sizes: sections 3 and 4, appendix A.1) and
arXiv:2201.03545 for stem and downsampling.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.config import VisionConfig
from mico_jax.layers.conv import DepthwiseConv
from mico_jax.layers.embed import to_patches
from mico_jax.layers.mlp import Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.models.staged import (
  StagedEncoder,
  StageSize,
  response_mlp,
  staged_config,
  to_grid,
)

KERNEL_SIZE = 7


class ConvNeXtDownsample(nn.Module):
  """LayerNorm, then a linear layer on 2 x 2 places.

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
    x = LayerNorm(self.norm_eps, name="norm")(x)
    names = (axes.PATCH, axes.EMBED)
    reduce = Dense(self.width, self.dtype, names=names, name="reduction")
    return to_grid(reduce(to_patches(x, 2)))


class ConvNeXtBlock(nn.Module):
  """Depthwise convolution, LayerNorm, and an MLP with response norm.

  Attributes:
    config: of the encoder.
    mlp_dim: hidden width.
    dtype: compute dtype.
    return_hidden: whether the features are returned as output of the layer too.
  """

  config: VisionConfig
  mlp_dim: int
  dtype: Any = jnp.float32
  return_hidden: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Y X D"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> tuple[Float[Array, "B Y X D"], Float[Array, "B Y X D"] | None]:
    """Returns the features after this block."""
    y = DepthwiseConv(KERNEL_SIZE, self.dtype, name="conv")(x)
    y = LayerNorm(self.config.norm_eps, name="norm")(y)
    x = x + response_mlp(y, layer, shared, self.mlp_dim, self.dtype)
    return x, x if self.return_hidden else None


class ConvNeXt(StagedEncoder):
  """ConvNeXt V2 over frames; see `StagedEncoder`."""

  downsample: ClassVar[type[nn.Module]] = ConvNeXtDownsample

  def block(
    self, stage: StageSize, *, return_hidden: bool
  ) -> tuple[type[nn.Module], dict[str, Any]]:
    """See `StagedEncoder`."""
    return ConvNeXtBlock, {
      "config": self.config,
      "mlp_dim": stage.mlp_dim,
      "dtype": self.dtype,
      "return_hidden": return_hidden,
    }


_size = functools.partial(staged_config, "convnext")

# Published sizes by name.
SIZES: dict[str, VisionConfig] = {
  "atto": _size((2, 2, 6, 2), 40),
  "femto": _size((2, 2, 6, 2), 48),
  "pico": _size((2, 2, 6, 2), 64),
  "nano": _size((2, 2, 8, 2), 80),
  "tiny": _size((3, 3, 9, 3), 96),
  "base": _size((3, 3, 27, 3), 128),
  "large": _size((3, 3, 27, 3), 192),
  "huge": _size((3, 3, 27, 3), 352),
}
