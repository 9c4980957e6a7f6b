"""The encoder shared by every knowledge modality: one vision transformer.

Learned absolute positions (of a class token too, if it has one) and a final
LayerNorm on all tokens, always; the rest is composed of options of
`config.VisionConfig`, whose defaults are EVA-01. `presets.VISION` names the
usual choices:
EVA-01, EVA-02 (rotary positions, SwiGLU, sub-LN), EVA-02-E (post-norm), OpenAI
CLIP and plain ViT; register tokens are those of DINOv2, attention pooling is
SigLIP's. Any subset of the patches may be encoded (patch dropout,
masking), and every block's tokens are returned on request.

Source: ViT, arXiv:2010.11929; EVA-CLIP, arXiv:2303.15389; EVA-02,
arXiv:2303.11331; registers, arXiv:2309.16588; CLIP, arXiv:2103.00020; and the
official MiCo weights (their tower is EVA-01-CLIP ViT-g/14).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import axes
from mico_jax.config import VisionConfig
from mico_jax.layers import dropout
from mico_jax.layers.attention import SelfAttention
from mico_jax.layers.attention_pool import AttentionPool
from mico_jax.layers.embed import POSITION_INIT, TABLE_INIT, PatchEmbed
from mico_jax.layers.mlp import Dense, Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.layers.parameter import parameter
from mico_jax.layers.rotary import token_tables
from mico_jax.layers.stack import stack
from mico_jax.models.checks import check_vit
from mico_jax.models.encoder import Encoder


def grid_size(config: VisionConfig) -> int:
  """Patches along one side of a frame."""
  return config.image_size // config.patch_size


class ViTBlock(nn.Module):
  """Attention and MLP, each with its LayerNorm and stochastic depth.

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
    shared: Mapping[str, Any],
  ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"] | None]:
    """Returns the tokens after this block."""
    row_keys = shared.get("row_keys")
    if row_keys is not None:
      row_keys = dropout.fold_rows(row_keys, layer["index"])
    rate = layer["drop_path_rate"]
    config = self.config
    inner = config.norm_eps if config.sub_norm else None
    attend = SelfAttention(
      config.num_heads,
      bias=config.qkv_bias,
      dtype=self.dtype,
      backend=self.backend,
      norm_eps=inner,
      name="attn",
    )
    mlp = Mlp(config.mlp_dim, self.dtype, config.mlp, inner, name="mlp")
    options = {"rotary": shared.get("rotary"), "mask": shared.get("mask")}
    for i, tag, branch in (
      (1, dropout.DROP_PATH_ATTN, lambda y: attend(y, **options)[0]),
      (2, dropout.DROP_PATH_MLP, mlp),
    ):
      norm = LayerNorm(config.norm_eps, name=f"norm{i}")
      y = norm(branch(x)) if config.norm == "post" else branch(norm(x))
      if config.layer_scale:
        init = nn.initializers.constant(config.layer_scale)
        scale = parameter(
          self, f"scale{i}", init, (config.width,), (axes.NORM,)
        )
        y = y * scale.astype(y.dtype)[None, None]
      x = x + dropout.drop_path(y, row_keys, rate, tag)
    return x, x if self.return_hidden else None


class ViT(Encoder):
  """Vision transformer over frames; for the attributes see `Encoder`."""

  @property
  def num_tokens(self) -> int:
    """Tokens of one frame, that of the whole frame included."""
    return 1 + grid_size(self.config) ** 2

  def check(self) -> None:
    """See `Encoder`."""
    super().check()
    check_vit(self.config)

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X 3"] | None = None,
    *,
    tokens: Float[Array, "B K D"] | None = None,
    token_mask: Bool[Array, "B K"] | None = None,
    token_indices: Int[Array, "B K"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    return_hidden: bool = False,
  ) -> tuple[Float[Array, "B L D"], Float[Array, "P B _ D"] | None]:
    """Encodes frames.

    Args:
      pixels: normalised frames of the configured size.
      tokens: instead of `pixels`: embedded tokens with their own positions;
        rotary ones, which belong to patches of a grid, are left out.
      token_mask: of `tokens`: true at those that may be attended to; None: all.
      token_indices: patches to encode, 0 <= index < grid^2; None: all.
      row_keys: one key per frame; None: no stochastic depth.
      return_hidden: also return the tokens after every block.

    Returns:
      Tokens after the final LayerNorm, first the class token or what attention
      pools; and the stacked tokens after every block (None unless asked for),
      which have no pooled one. Registers are left out of both.
    """
    config = self.config
    positions = self._positions()
    x = self._embed(pixels, tokens, token_indices, positions)
    x, mask = self._prepend(x, token_mask, positions)
    if config.pre_norm:
      x = LayerNorm(config.norm_eps, name="pre_norm")(x)
    shared: dict[str, Any] = {}
    if mask is not None:
      shared["mask"] = mask[:, None, None]
    if config.drop_path_rate > 0.0 and row_keys is not None:
      shared["row_keys"] = row_keys
    if config.rope_grid and tokens is None:
      shared["rotary"] = token_tables(
        grid_size(config),
        config.width // config.num_heads,
        base_grid=config.rope_grid,
        token_indices=token_indices,
      )
    x, hidden = self._blocks(x, shared, return_hidden)
    x = LayerNorm(config.norm_eps, name="norm")(x)
    if config.registers:
      kept = np.r_[0, 1 + config.registers : x.shape[1]]
      x = x[:, kept]
      hidden = None if hidden is None else hidden[:, :, kept]
    if config.pooling == "map":
      x = jnp.concatenate([self._pool(x, mask), x], axis=1)
    if config.clip_embed_dim and self.is_initializing():
      self._clip_parameters(x)
    return x, hidden

  def _positions(self) -> Float[Array, "_ D"]:
    """The position table; its first row is that of a class token, if any."""
    rows = grid_size(self.config) ** 2 + (self.config.pooling == "class")
    shape, names = (rows, self.config.width), (axes.POSITION, axes.EMBED)
    table = parameter(self, "pos_embed", POSITION_INIT, shape, names)
    return table.astype(self.dtype)

  def _embed(
    self,
    pixels: Float[Array, "B Y X 3"] | None,
    tokens: Float[Array, "B K D"] | None,
    token_indices: Int[Array, "B K"] | None,
    positions: Float[Array, "_ D"],
  ) -> Float[Array, "B K D"]:
    """Patches with their positions; `tokens` as they are."""
    if tokens is not None:
      return tokens.astype(self.dtype)
    if pixels is None:
      raise ValueError("ViT takes pixels or tokens; got neither.")
    config = self.config
    x = PatchEmbed(
      config.width,
      config.patch_size,
      self.dtype,
      config.patch_bias,
      name="patch_embed",
    )(pixels, token_indices=token_indices)
    positions = positions[int(config.pooling == "class") :]
    if token_indices is None:
      return x + positions[None]
    return x + jnp.take(positions, token_indices, axis=0)

  def _prepend(
    self,
    x: Float[Array, "B K D"],
    mask: Bool[Array, "B K"] | None,
    positions: Float[Array, "_ D"],
  ) -> tuple[Float[Array, "B L D"], Bool[Array, "B L"] | None]:
    """Puts class token and registers, if any, before those of each frame."""
    width, tokens = self.config.width, []
    if self.config.pooling == "class":
      cls = parameter(self, "cls_token", TABLE_INIT, (width,), (axes.EMBED,))
      tokens.append((cls.astype(self.dtype) + positions[0])[None])
    if self.config.registers:
      shape = (self.config.registers, width)
      names = (axes.UNSHARDED, axes.EMBED)
      registers = parameter(self, "registers", TABLE_INIT, shape, names)
      tokens.append(registers.astype(self.dtype))
    if not tokens:
      return x, mask
    first = jnp.concatenate(tokens)
    if mask is not None:
      mask = jnp.pad(mask, ((0, 0), (len(first), 0)), constant_values=True)
    first = jnp.broadcast_to(first[None], (x.shape[0], *first.shape))
    return jnp.concatenate([first, x], axis=1), mask

  def _blocks(
    self,
    x: Float[Array, "B L D"],
    shared: Mapping[str, Any],
    return_hidden: bool,
  ) -> tuple[Float[Array, "B L D"], Float[Array, "P B L D"] | None]:
    """Runs all blocks; stochastic depth rises from 0 to its rate."""
    config = self.config
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
    rates = jnp.linspace(0.0, config.drop_path_rate, config.depth)
    layer = {"index": jnp.arange(config.depth), "drop_path_rate": rates}
    return blocks(x, layer, shared)

  def _pool(
    self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"] | None
  ) -> Float[Array, "B 1 D"]:
    """Attention pooling; SigLIP, arXiv:2303.15343."""
    config = self.config
    return AttentionPool(
      config.num_heads,
      config.mlp_dim,
      config.mlp,
      config.norm_eps,
      self.dtype,
      name="pool",
    )(x, mask=mask)

  def _clip_parameters(self, x: Float[Array, "B L D"]) -> None:
    """Creates the head of a CLIP, which official files carry unused."""
    Dense(
      self.config.clip_embed_dim,
      self.dtype,
      use_bias=self.config.clip_embed_bias,
      names=(axes.EMBED, axes.JOINT),
      bias_name=axes.JOINT,
      name="clip_head",
    )(x[:, 0])
    parameter(self, "logit_scale", nn.initializers.constant(2.6592), (), ())
