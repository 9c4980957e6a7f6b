"""UniRepLKNet: very large depthwise kernels, squeeze-and-excite, an MLP.

This is the merged form of the published network: one depthwise kernel
with a bias per block, where training in the original adds parallel dilated
kernels, each with BatchNorm, and further BatchNorms and a layer scale. Encoders
here are pure functions of parameters and pixels, so there are no running
statistics; `mico_jax.interop.names.unireplknet.merge` folds branches,
BatchNorms and layer scale of official weights into this form exactly. Official
weights are read from Python only; no command imports them. Trained from
scratch, the merged form has no normalisation inside a block other than
the response norm, so the last layer of each block starts at 0 (the original
scales it by 1e-6) and each block as the identity.

Tokens are the last stage's features after a LayerNorm, place by place; the
published classifier averages before that LayerNorm.

Source: arXiv:2311.15599, sections 3.1 to 3.3 and table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax.config import VisionConfig
from mico_jax.layers.activations import gelu
from mico_jax.layers.conv import Conv, DepthwiseConv, SqueezeExcite
from mico_jax.layers.norm import LayerNorm
from mico_jax.models.staged import (
  SHARED_FIELDS,
  StagedEncoder,
  StageSize,
  response_mlp,
  staged_config,
)

ZEROS = nn.initializers.zeros


class UniRepStem(nn.Module):
  """Two strided 3 x 3 convolutions with LayerNorms.

  Attributes:
    config: of the encoder.
    dtype: compute dtype.
  """

  config: VisionConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, pixels: Float[Array, "B Y X 3"]
  ) -> Float[Array, "B R S D"]:
    """Returns features of the first stage, a quarter of the resolution."""
    width, eps = self.config.stage_widths[0], self.config.norm_eps
    x = Conv(width // 2, 3, 2, self.dtype, name="conv1")(pixels)
    x = gelu(LayerNorm(eps, name="norm1")(x))
    x = Conv(width, 3, 2, self.dtype, name="conv2")(x)
    return LayerNorm(eps, name="norm2")(x)


class UniRepDownsample(nn.Module):
  """A strided 3 x 3 convolution and a LayerNorm.

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
    x = Conv(self.width, 3, 2, self.dtype, name="conv")(x)
    return LayerNorm(self.norm_eps, name="norm")(x)


class UniRepBlock(nn.Module):
  """Depthwise convolution, gate, and an MLP with response norm.

  Attributes:
    kernel_size: of the depthwise convolution; odd.
    mlp_dim: hidden width.
    dtype: compute dtype.
  """

  kernel_size: int
  mlp_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Y X D"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> Float[Array, "B Y X D"]:
    """Returns the features after this block."""
    y = DepthwiseConv(self.kernel_size, self.dtype, name="conv")(x)
    y = SqueezeExcite(dtype=self.dtype, name="gate")(y)
    return x + response_mlp(
      y, layer, shared, self.mlp_dim, self.dtype, use_bias=False, start=ZEROS
    )


class UniRepCycle(nn.Module):
  """Blocks of the kernel sizes that a stage repeats, in order.

  Attributes:
    kernel_sizes: of each block.
    mlp_dim: hidden width.
    dtype: compute dtype.
    return_hidden: whether the features after each block are returned too.
  """

  kernel_sizes: tuple[int, ...]
  mlp_dim: int
  dtype: Any = jnp.float32
  return_hidden: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Y X D"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> tuple[Float[Array, "B Y X D"], Float[Array, "R B Y X D"] | None]:
    """Returns the features after the last block."""
    hidden = []
    for i, size in enumerate(self.kernel_sizes):
      one = {k: v if v.ndim == 0 else v[i] for k, v in layer.items()}
      block = UniRepBlock(size, self.mlp_dim, self.dtype, name=f"block{i}")
      x = block(x, one, shared)
      hidden.append(x)
    return x, jnp.stack(hidden) if self.return_hidden else None


class UniRepLKNet(StagedEncoder):
  """UniRepLKNet, merged, over frames; see `StagedEncoder`."""

  stem: ClassVar[type[nn.Module]] = UniRepStem
  downsample: ClassVar[type[nn.Module]] = UniRepDownsample
  fields: ClassVar[frozenset[str]] = SHARED_FIELDS | {"stage_kernels"}

  def check(self) -> None:
    """See `Encoder.check`."""
    super().check()
    config, where = self.config, "config.model.vision"
    if config.patch_size != 4:
      raise ValueError(
        f"{where}.patch_size={config.patch_size} must be 4, the stride of the "
        "stem of encoder='unireplknet'."
      )
    if len(config.stage_kernels) != len(config.stage_depths):
      raise ValueError(
        f"{where}.stage_kernels={config.stage_kernels} must name the kernel "
        f"sizes of each of the {len(config.stage_depths)} stages."
      )
    for stage, sizes in zip(self.stages, config.stage_kernels, strict=True):
      if not sizes or stage.depth % len(sizes):
        raise ValueError(
          f"{where}.stage_kernels[{stage.index}]={sizes} must repeat a whole "
          f"number of times in stage_depths[{stage.index}]={stage.depth}."
        )
      if min(sizes) < 1 or not all(size % 2 for size in sizes):
        raise ValueError(
          f"{where}.stage_kernels[{stage.index}]={sizes}: kernel sizes are odd."
        )
      if stage.width % 4:
        raise ValueError(
          f"{where}.stage_widths={config.stage_widths} must be multiples of 4, "
          "the reduction of the gates."
        )

  def block(
    self, stage: StageSize, *, return_hidden: bool
  ) -> tuple[type[nn.Module], dict[str, Any]]:
    """See `StagedEncoder`."""
    return UniRepCycle, {
      "kernel_sizes": self.config.stage_kernels[stage.index],
      "mlp_dim": stage.mlp_dim,
      "dtype": self.dtype,
      "return_hidden": return_hidden,
    }

  def period(self, stage: StageSize) -> int:
    """Blocks until the kernel sizes repeat."""
    return len(self.config.stage_kernels[stage.index])


def _size(
  depths: tuple[int, ...], width: int, third: tuple[int, ...]
) -> VisionConfig:
  kernels = ((3,), (13,), third, (13,))
  return staged_config("unireplknet", depths, width, stage_kernels=kernels)


# Published sizes by name; the third stage of the larger ones has small kernels
# between the large ones.
SIZES: dict[str, VisionConfig] = {
  "a": _size((2, 2, 6, 2), 40, (13,)),
  "f": _size((2, 2, 6, 2), 48, (13,)),
  "p": _size((2, 2, 6, 2), 64, (13,)),
  "n": _size((2, 2, 8, 2), 80, (13,)),
  "t": _size((3, 3, 18, 3), 80, (13, 3)),
  "s": _size((3, 3, 27, 3), 96, (13, 3, 3)),
  "b": _size((3, 3, 27, 3), 128, (13, 3, 3)),
  "l": _size((3, 3, 27, 3), 192, (13, 3, 3)),
  "xl": _size((3, 3, 27, 3), 256, (13, 3, 3)),
}
