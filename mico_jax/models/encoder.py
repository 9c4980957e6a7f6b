"""The contract of encoders of all families.

An encoder is a Linen module with these attributes, called as
`encoder(pixels, row_keys=..., return_hidden=...)`; it returns the tokens of
each frame after the final LayerNorm [B L D], D = config.width, and, if asked
for, the tokens after every block. A family declares here what it cannot do, so
that options which need it are refused before anything runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from mico_jax.config import VisionConfig
from mico_jax.models.checks import check_unread

# Fields of encoders in stages only.
STAGE_FIELDS = frozenset(
  f.name
  for f in dataclasses.fields(VisionConfig)
  if f.name.startswith("stage_") or f.name == "window_size"
)


class Encoder(nn.Module):
  """Base of the encoders.

  Attributes:
    config: sizes.
    dtype: compute dtype.
    backend: of attention.
    remat: key of `mico_jax.layers.stack.REMAT`.
    scan: whether equal blocks run as a loop.
    has_class_token: whether token 0 stands for the whole frame; without one,
      frames are pooled by the mean of their tokens.
    supports_token_indices: whether any subset of the patches can be encoded
      (patch dropout, masked modelling) and tokens of another embedding taken.
    fields: of the config, that the family reads; the others must keep their
      defaults.
  """

  config: VisionConfig
  dtype: Any = jnp.float32
  backend: str = "auto"
  remat: str = "none"
  scan: bool = True

  has_class_token: ClassVar[bool] = True
  supports_token_indices: ClassVar[bool] = True
  fields: ClassVar[frozenset[str]] = (
    frozenset(f.name for f in dataclasses.fields(VisionConfig)) - STAGE_FIELDS
  )

  @property
  def num_tokens(self) -> int:
    """Tokens of one frame, L."""
    raise NotImplementedError

  def check(self) -> None:
    """Checks the config as far as the family knows it.

    Raises:
      ValueError: naming the field that does not fit.
    """
    check_unread(self.config, self.fields, "config.model.vision")
    if self.num_tokens < 1:
      raise ValueError(
        f"config.model.vision.image_size={self.config.image_size} leaves no "
        "token; raise it."
      )

  def check_subsets(self) -> None:
    """Raises a ValueError if it cannot encode a subset of the patches."""
    if not self.supports_token_indices:
      raise ValueError(
        f"config.model.vision.encoder={self.config.encoder!r} encodes whole "
        "frames; token_indices (patch dropout, masked modelling) need "
        "encoder='vit'."
      )
