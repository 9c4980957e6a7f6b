"""The encoder shared by every knowledge modality: EVA-01's vision transformer.

Pre-norm blocks, learned absolute positions (class token included), bias on
queries and values only, exact GELU, a final LayerNorm on all tokens. Any subset
of the patches may be encoded (patch dropout, masking), and every block's tokens
are returned on request.

Source: EVA-CLIP, arXiv:2303.15389, and the released MiCo weights (their tower
is EVA-01-CLIP ViT-g/14).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mico_jax import axes
from mico_jax.config import VisionConfig
from mico_jax.layers import dropout
from mico_jax.layers.attention import SelfAttention
from mico_jax.layers.embed import POSITION_INIT, TABLE_INIT, PatchEmbed
from mico_jax.layers.mlp import Dense, Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.stack import stack


def grid_size(config: VisionConfig) -> int:
  """Patches along one side of a frame.

  Raises:
    ValueError: if patches do not fill the image or heads the width.
  """
  if config.image_size % config.patch_size:
    raise ValueError(
      f"image_size={config.image_size} is no multiple of "
      f"patch_size={config.patch_size}; set config.model.vision."
    )
  if config.width % config.num_heads:
    raise ValueError(
      f"num_heads={config.num_heads} must divide width={config.width}; set "
      "config.model.vision.num_heads."
    )
  return config.image_size // config.patch_size


class ViTBlock(nn.Module):
  """Pre-norm attention and MLP with stochastic depth.

  Attributes:
    config: of the encoder.
    dtype: compute dtype.
    backend: of attention.
    return_hidden: whether the tokens are returned as output of the layer too.
  """

  config: VisionConfig
  dtype: Any = jnp.float32
  backend: str = "auto"
  return_hidden: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B L D"],
    layer: Mapping[str, Array],
    shared: Mapping[str, Array],
  ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"] | None]:
    """Returns the tokens after this block."""
    row_keys = shared.get("row_keys")
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, layer["index"])
    rate = layer["drop_path_rate"]
    attend = SelfAttention(
      self.config.num_heads,
      bias="qv",
      dtype=self.dtype,
      backend=self.backend,
      name="attn",
    )
    y, _ = attend(LayerNorm(self.config.norm_eps, name="norm1")(x))
    x = x + dropout.drop_path(y, row_keys, rate, dropout.DROP_PATH_ATTN)
    mlp = Mlp(self.config.mlp_dim, self.dtype, name="mlp")
    y = mlp(LayerNorm(self.config.norm_eps, name="norm2")(x))
    x = x + dropout.drop_path(y, row_keys, rate, dropout.DROP_PATH_MLP)
    return x, x if self.return_hidden else None


class ViT(nn.Module):
  """Vision transformer over frames.

  Attributes:
    config: sizes.
    dtype: compute dtype.
    backend: of attention.
    remat: key of `mico_jax.layers.stack.REMAT`.
    scan: whether blocks run as a loop.
  """

  config: VisionConfig
  dtype: Any = jnp.float32
  backend: str = "auto"
  remat: str = "none"
  scan: bool = True

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X 3"] | None = None,
    *,
    tokens: Float[Array, "B K D"] | None = None,
    token_indices: Int[Array, "B K"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    return_hidden: bool = False,
  ) -> tuple[Float[Array, "B L D"], Float[Array, "P B L D"] | None]:
    """Encodes frames.

    Args:
      pixels: normalised frames of the configured size.
      tokens: instead of `pixels`: embedded tokens with their own positions.
      token_indices: patches to encode, 0 <= index < grid^2; None: all.
      row_keys: one key per frame; None: no stochastic depth.
      return_hidden: also return the tokens after every block.

    Returns:
      Tokens after the final LayerNorm, class token first, and the stacked
      tokens after every block (None unless asked for).
    """
    config = self.config
    num_patches = grid_size(config) ** 2
    names = (axes.POSITION, axes.EMBED)
    positions = parameter(
      self, "pos_embed", POSITION_INIT, (1 + num_patches, config.width), names
    ).astype(self.dtype)
    cls = parameter(
      self, "cls_token", TABLE_INIT, (config.width,), (axes.EMBED,)
    ).astype(self.dtype)
    if tokens is None:
      if pixels is None:
        raise ValueError("ViT takes pixels or tokens; got neither.")
      embed = PatchEmbed(
        config.width, config.patch_size, self.dtype, name="patch_embed"
      )
      x = embed(pixels, token_indices=token_indices)
      if token_indices is None:
        x = x + positions[None, 1:]
      else:
        x = x + jnp.take(positions[1:], token_indices, axis=0)
    else:
      x = tokens.astype(self.dtype)
    first = jnp.broadcast_to(
      (cls + positions[0])[None, None], (x.shape[0], 1, config.width)
    )
    x = jnp.concatenate([first, x], axis=1)
    rates = jnp.linspace(0.0, config.drop_path_rate, config.depth)
    drop_path = config.drop_path_rate > 0.0 and row_keys is not None
    blocks = stack(
      ViTBlock,
      {
        "config": config,
        "dtype": self.dtype,
        "backend": self.backend,
        "return_hidden": return_hidden,
      },
      depth=config.depth,
      scan=self.scan,
      remat=self.remat,
      name="blocks",
    )
    x, hidden = blocks(
      x,
      {"index": jnp.arange(config.depth), "drop_path_rate": rates},
      {"row_keys": row_keys} if drop_path else {},
    )
    x = LayerNorm(config.norm_eps, name="norm")(x)
    if config.clip_embed_dim and self.is_initializing():
      self._clip_parameters(x)
    return x, hidden

  def _clip_parameters(self, x: Float[Array, "B L D"]) -> None:
    """Creates EVA-CLIP's own head, which released files carry unused."""
    Dense(
      self.config.clip_embed_dim,
      self.dtype,
      names=(axes.EMBED, axes.JOINT),
      bias_name=axes.JOINT,
      name="clip_head",
    )(x[:, 0])
    parameter(self, "logit_scale", nn.initializers.constant(2.6592), (), ())
