"""Encoders in stages: a stem, then blocks at falling resolution.

Shared by Swin and the ConvNets. Feature maps are [B Y X D] until the end; each
stage but the first halves them. There is no class token, so a frame is pooled
by the mean of its tokens. A family brings three modules (stem, downsampling,
block); equal blocks of a stage are stacked and scanned:
`vision/stage<i>/blocks/...` with the block as axis 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mico_jax import axes
from mico_jax.config import VisionConfig
from mico_jax.layers import dropout
from mico_jax.layers.activations import gelu
from mico_jax.layers.conv import GlobalResponseNorm
from mico_jax.layers.embed import PatchEmbed
from mico_jax.layers.mlp import KERNEL_INIT, Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.stack import stack
from mico_jax.models.encoder import Encoder

SHARED_FIELDS = frozenset(
  {
    "encoder",
    "image_size",
    "patch_size",
    "width",
    "depth",
    "mlp_dim",
    "norm_eps",
    "drop_path_rate",
    "stage_depths",
    "stage_widths",
  }
)


@dataclass(frozen=True)
class StageSize:
  """One stage.

  Attributes:
    index: of the stage.
    depth: blocks.
    width: channels.
    mlp_dim: hidden width of its MLPs.
    resolution: rows, and columns, of its feature maps.
    first: number of its first block, counted over all stages.
  """

  index: int
  depth: int
  width: int
  mlp_dim: int
  resolution: int
  first: int


class Stage(nn.Module):
  """Downsampling and a stack of equal blocks.

  Attributes:
    downsample: module that halves the resolution; None: the first stage.
    block: class of the block, see `mico_jax.layers.stack.stack`.
    options: attributes of every block.
    repeats: number of blocks.
    scan: whether they run as a loop.
    remat: key of `mico_jax.layers.stack.REMAT`.
  """

  downsample: nn.Module | None
  block: type[nn.Module]
  options: Mapping[str, Any]
  repeats: int
  scan: bool
  remat: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B Y X C"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> tuple[Float[Array, "B Y2 X2 D"], Float[Array, "P *R B Y2 X2 D"] | None]:
    """Returns the features and, if the blocks give it, those of each block."""
    if self.downsample is not None:
      x = self.downsample(x)
    blocks = stack(
      self.block,
      self.options,
      depth=self.repeats,
      scan=self.scan,
      remat=self.remat,
      name="blocks",
    )
    x, hidden = blocks(x, layer, shared)
    return x, hidden


def to_grid(tokens: Float[Array, "B L D"]) -> Float[Array, "B Y X D"]:
  """Tokens of a square grid as a feature map."""
  side = round(tokens.shape[1] ** 0.5)
  return tokens.reshape(tokens.shape[0], side, side, tokens.shape[-1])


class PatchStem(nn.Module):
  """Non-overlapping patches and a LayerNorm.

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
    """Returns features of the first stage."""
    width, patch = self.config.stage_widths[0], self.config.patch_size
    x = PatchEmbed(width, patch, self.dtype, name="patch_embed")(pixels)
    return to_grid(LayerNorm(self.config.norm_eps, name="norm")(x))


def fold_layer(
  layer: Mapping[str, Array], shared: Mapping[str, Array]
) -> tuple[Key[Array, " B"] | None, Float[Array, ""]]:
  """Row keys of a block, None without stochastic depth, and its rate."""
  row_keys = shared.get("row_keys")
  if row_keys is not None:
    row_keys = dropout.fold_rows(row_keys, layer["index"])
  return row_keys, layer["drop_path_rate"]


def response_mlp(
  y: Float[Array, "B Y X D"],
  layer: Mapping[str, Array],
  shared: Mapping[str, Array],
  mlp_dim: int,
  dtype: Any,
  *,
  use_bias: bool = True,
  start: Callable[..., Any] = KERNEL_INIT,
) -> Float[Array, "B Y X D"]:
  """MLP with response norm and stochastic depth; call it in a compact method.

  `use_bias` is of the response norm, `start` initialises the last kernel.
  Source: ConvNeXt V2, arXiv:2301.00808, section 3.
  """
  names = (axes.EMBED, axes.MLP)
  expand = Dense(mlp_dim, dtype, names=names, bias_name=axes.MLP, name="fc1")
  reduce = Dense(
    y.shape[-1], dtype, names=names[::-1], kernel_init=start, name="fc2"
  )
  norm = GlobalResponseNorm(use_bias=use_bias, name="grn")
  row_keys, rate = fold_layer(layer, shared)
  y = reduce(norm(gelu(expand(y))))
  return dropout.drop_path(y, row_keys, rate, dropout.DROP_PATH_MLP)


class StagedEncoder(Encoder):
  """Base of the encoders in stages; a family gives their modules.

  Attributes:
    stem: class of the stem: pixels to features of the first stage.
    downsample: class of the modules between stages.
  """

  has_class_token: ClassVar[bool] = False
  supports_token_indices: ClassVar[bool] = False
  fields: ClassVar[frozenset[str]] = SHARED_FIELDS
  stem: ClassVar[type[nn.Module]] = PatchStem
  downsample: ClassVar[type[nn.Module]]

  # -------------------------------------------------------- of the family

  def block(
    self, stage: StageSize, *, return_hidden: bool
  ) -> tuple[type[nn.Module], dict[str, Any]]:
    """Class and attributes of the blocks of a stage."""
    raise NotImplementedError

  def period(self, stage: StageSize) -> int:
    """Layers that one call of the block of a stage runs."""
    del stage
    return 1

  def layer_options(self, stage: StageSize) -> dict[str, np.ndarray]:
    """Arrays that differ from block to block of a stage, besides its number."""
    del stage
    return {}

  # --------------------------------------------------------------- shared
  @property
  def stages(self) -> tuple[StageSize, ...]:
    """The sizes of all stages."""
    config = self.config
    ratio = config.mlp_dim // config.width
    sizes, first = [], 0
    resolution = config.image_size // config.patch_size
    for i, (depth, width) in enumerate(
      zip(config.stage_depths, config.stage_widths, strict=True)
    ):
      sizes.append(StageSize(i, depth, width, ratio * width, resolution, first))
      first += depth
      resolution //= 2
    return tuple(sizes)

  @property
  def num_tokens(self) -> int:
    """Tokens of one frame, L."""
    return self.stages[-1].resolution ** 2

  def check(self) -> None:
    """Checks the config as far as the family knows it.

    Raises:
      ValueError: naming the field that does not fit.
    """
    config, where = self.config, "config.model.vision"
    depths, widths = config.stage_depths, config.stage_widths
    if not depths or len(depths) != len(widths) or min(depths + widths) < 1:
      raise ValueError(
        f"{where}.stage_depths={depths} and stage_widths={widths} must name a "
        f"depth and a width for each stage of encoder={config.encoder!r}."
      )
    if config.depth != sum(depths) or config.width != widths[-1]:
      raise ValueError(
        f"{where}: depth={config.depth} must be the sum of stage_depths="
        f"{depths}, {sum(depths)}, and width={config.width} the last of "
        f"stage_widths={widths}."
      )
    if config.mlp_dim % config.width:
      raise ValueError(
        f"{where}.mlp_dim={config.mlp_dim} must be a multiple of width="
        f"{config.width}: the ratio holds in every stage."
      )
    stride = config.patch_size * 2 ** (len(depths) - 1)
    if config.image_size % stride:
      raise ValueError(
        f"{where}.image_size={config.image_size} must be a multiple of "
        f"{stride}, the stride of the last stage (patch_size="
        f"{config.patch_size}, halved by each further stage)."
      )
    super().check()

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X 3"],
    *,
    row_keys: Key[Array, " B"] | None = None,
    return_hidden: bool = False,
  ) -> tuple[Float[Array, "B L D"], tuple[Float[Array, "B _ _"], ...] | None]:
    """Encodes frames.

    Args:
      pixels: normalised frames of the configured size.
      row_keys: one key per frame; None: no stochastic depth.
      return_hidden: also return the tokens after every block, each of the
        length and width of its stage.

    Returns:
      Tokens after the final LayerNorm, row by row, and those after every block
      (None unless asked for).
    """
    config = self.config
    rates = np.linspace(0.0, config.drop_path_rate, config.depth)
    drop_path = config.drop_path_rate > 0.0 and row_keys is not None
    shared = {"row_keys": row_keys} if drop_path else {}
    stem: Any = self.stem
    downsample: Any = self.downsample
    x = stem(config, self.dtype, name="stem")(pixels.astype(self.dtype))
    hidden: list[Array] = []
    for stage in self.stages:
      block, options = self.block(stage, return_hidden=return_hidden)
      period = self.period(stage)
      layers = slice(stage.first, stage.first + stage.depth)
      layer = {
        "index": np.arange(config.depth, dtype=np.int32)[layers],
        "drop_path_rate": rates.astype(np.float32)[layers],
        **self.layer_options(stage),
      }
      if period > 1:
        layer = {k: v.reshape(-1, period) for k, v in layer.items()}
      x, outs = Stage(
        downsample(stage.width, config.norm_eps, self.dtype, parent=None)
        if stage.index
        else None,
        block,
        options,
        stage.depth // period,
        self.scan,
        self.remat,
        name=f"stage{stage.index}",
      )(x, {k: jnp.asarray(v) for k, v in layer.items()}, shared)
      if outs is not None:
        outs = outs.reshape(stage.depth, x.shape[0], -1, x.shape[-1])
        hidden.extend(outs)
    x = LayerNorm(config.norm_eps, name="norm")(x)
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    return tokens, tuple(hidden) if return_hidden else None


def staged_config(
  encoder: str, depths: tuple[int, ...], width: int, **options: Any
) -> VisionConfig:
  """A config of stages that double their width, with patches of 4 pixels."""
  widths = tuple(width * 2**i for i in range(len(depths)))
  return VisionConfig(
    encoder=encoder,
    patch_size=4,
    width=widths[-1],
    depth=sum(depths),
    mlp_dim=4 * widths[-1],
    stage_depths=depths,
    stage_widths=widths,
    **options,
  )
