"""Convolutions, response norm and channel gates.

Feature maps are [B Y X C]. A strided convolution whose stride is its kernel is
not here: it is `to_patches` and a linear layer.

XLA's depthwise convolution is slow on CPUs, more so its gradient. On small maps
it is a product with one dense matrix per channel there: of 7 x 7 kernels on
64 maps of 8 x 8 places and 96 channels, forward and backward take 8 ms instead
of 105 or more. On larger maps the matrices, which grow with the square of the
places, cost more than they save.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mico_jax import axes
from mico_jax.kernels import target
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.layers.mlp import KERNEL_INIT, Dense
from mico_jax.layers.parameter import parameter

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# Places of a map from which on CPUs convolve, too: 12 x 12.
_DENSE_PLACES = 144


def _pad(kernel_size: int) -> list[tuple[int, int]]:
  return [(kernel_size // 2, kernel_size // 2)] * 2


def _bias(
  module: nn.Module, features: int, dtype: Any
) -> Float[Array, "1 1 1 D"]:
  value = parameter(
    module, "bias", nn.initializers.zeros, (features,), (axes.NORM,)
  )
  return value.astype(dtype)[None, None, None]


def depthwise(
  x: Float[Array, "B Y X C"], kernel: Float[Array, "k k 1 C"]
) -> Float[Array, "B Y X C"]:
  """One kernel per channel, stride 1, zeros around.

  Args:
    x: features.
    kernel: of the same dtype; its size is odd.
  """
  machine = target.current()
  rows, cols = x.shape[1:3]
  small = rows * cols <= _DENSE_PLACES
  if machine.platform == "cpu" and not machine.plain and small:
    return _dense_depthwise(x, kernel)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    _pad(kernel.shape[0]),
    dimension_numbers=_LAYOUT,
    feature_group_count=x.shape[-1],
  )


def _dense_depthwise(
  x: Float[Array, "B Y X C"], kernel: Float[Array, "k k 1 C"]
) -> Float[Array, "B Y X C"]:
  """The same as a product of each channel's places with a matrix."""
  batch, rows, cols, channels = x.shape
  reach = kernel.shape[0] // 2
  # [k out in]: which input an entry of the kernel brings to which output
  down, across = (
    jnp.asarray(
      np.stack([np.eye(n, k=i) for i in range(-reach, reach + 1)]), x.dtype
    )
    for n in (rows, cols)
  )
  matrix = jnp.einsum("iyp,jxq,ijc->cyxpq", down, across, kernel[:, :, 0])
  places = rows * cols
  y = jnp.einsum(
    "bpc,cop->boc",
    x.reshape(batch, places, channels),
    matrix.reshape(channels, places, places),
  )
  return y.reshape(x.shape)


class DepthwiseConv(nn.Module):
  """One kernel per channel, stride 1, zeros around, with bias.

  Attributes:
    kernel_size: rows and columns; odd.
    dtype: compute dtype.
  """

  kernel_size: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
    """Returns features of the same size."""
    size, channels = self.kernel_size, x.shape[-1]
    kernel = parameter(
      self,
      "kernel",
      KERNEL_INIT,
      (size, size, 1, channels),
      (axes.UNSHARDED, axes.UNSHARDED, axes.UNSHARDED, axes.EMBED),
    )
    y = depthwise(x.astype(self.dtype), kernel.astype(self.dtype))
    return y + _bias(self, channels, self.dtype)


class Conv(nn.Module):
  """Convolution over all channels, zeros around, with bias.

  Attributes:
    features: channels of the output.
    kernel_size: rows and columns; odd.
    stride: of both.
    dtype: compute dtype.
  """

  features: int
  kernel_size: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y2 X2 D"]:
    """Returns features of 1 / stride the resolution."""
    size = self.kernel_size
    kernel = parameter(
      self,
      "kernel",
      KERNEL_INIT,
      (size, size, x.shape[-1], self.features),
      (axes.UNSHARDED, axes.UNSHARDED, axes.PATCH, axes.EMBED),
    )
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      _pad(size),
      dimension_numbers=_LAYOUT,
    )
    return y + _bias(self, self.features, self.dtype)


class GlobalResponseNorm(nn.Module):
  """Scales each channel by its size relative to the mean of all channels.

  x + scale * x * |x|_2 / mean_C |x|_2 + bias, the norm taken over the frame;
  scale and bias start at 0. Statistics are float32.

  Attributes:
    use_bias: whether a bias is added.

  Source: ConvNeXt V2, arXiv:2301.00808, section 3.
  """

  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
    """Returns features of the same size and dtype."""
    zeros = nn.initializers.zeros
    shape, names = (x.shape[-1],), (axes.MLP,)
    scale = parameter(self, "scale", zeros, shape, names)
    dtype = accumulation_dtype(x.dtype)
    square = jnp.sum(jnp.square(x.astype(dtype)), axis=(1, 2), keepdims=True)
    # No infinite slope of the root at a channel that is 0 everywhere.
    empty = square == 0.0
    norm = jnp.sqrt(jnp.where(empty, 1.0, square))
    norm = jnp.where(empty, 0.0, norm)
    mean = jnp.mean(norm, axis=-1, keepdims=True)
    factor = 1.0 + scale.astype(dtype)[None, None, None] * norm / (mean + 1e-6)
    y = x * factor.astype(x.dtype)
    if self.use_bias:
      bias = parameter(self, "bias", zeros, shape, names)
      y = y + bias.astype(x.dtype)[None, None, None]
    return y


class SqueezeExcite(nn.Module):
  """Gates the channels by a small MLP of their means.

  Attributes:
    reduction: the hidden layer has 1 / reduction of the channels.
    dtype: compute dtype.

  Source: arXiv:1709.01507.
  """

  reduction: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B Y X C"]) -> Float[Array, "B Y X C"]:
    """Returns gated features."""
    channels = x.shape[-1]
    mean = jnp.mean(x, axis=(1, 2), dtype=accumulation_dtype(x.dtype))
    down = Dense(
      channels // self.reduction,
      self.dtype,
      names=(axes.EMBED, axes.MLP),
      bias_name=axes.MLP,
      name="fc1",
    )
    up = Dense(channels, self.dtype, names=(axes.MLP, axes.EMBED), name="fc2")
    gate = jax.nn.sigmoid(up(jax.nn.relu(down(mean))))
    return x * gate[:, None, None].astype(x.dtype)
