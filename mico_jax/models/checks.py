"""Checks of a model's options and inputs, beyond declared ranges and types."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from mico_jax.config import ModelConfig, TextConfig, VisionConfig
from mico_jax.kernels.attention.api import BACKENDS, MASKED_ROWS
from mico_jax.layers.attention import BIASES
from mico_jax.layers.mlp import MLPS
from mico_jax.layers.rotary import rotary_tables
from mico_jax.layers.stack import REMAT
from mico_jax.modalities import MODALITIES

NORMS = ("pre", "post")  # where the LayerNorm of a branch stands
POOLINGS = ("class", "map")  # token 0 of a frame

# Field of the config -> its values.
NAMES: Mapping[str, tuple[str, ...]] = {
  "matmul_precision": ("default", "high", "highest"),
  "dtype": ("float32", "bfloat16", "float16", "float64"),
  "masked_rows": MASKED_ROWS,
  "attention": ("auto", *BACKENDS),
  "remat": tuple(REMAT),
  **{
    m.alias.option: (key, m.alias.key)
    for key, m in MODALITIES.items()
    if m.alias
  },
}
VISION_NAMES: Mapping[str, Collection[str]] = {
  "norm": NORMS,
  "mlp": MLPS,
  "qkv_bias": BIASES,
  "pooling": POOLINGS,
}


def check_names(
  config: Any, names: Mapping[str, Collection[str]], where: str
) -> None:
  """Raises a ValueError for a field that has none of the known values."""
  for field, known in names.items():
    value = getattr(config, field)
    if value not in known:
      raise ValueError(
        f"{where}.{field}={value!r} is not one of {', '.join(known)}."
      )


def check_unread(
  config: VisionConfig | TextConfig, fields: Collection[str], where: str
) -> None:
  """Raises a ValueError for a set field that the encoder does not read."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name not in fields and value != field.default:
      raise ValueError(
        f"{where}.{field.name}={value!r} says nothing to "
        f"encoder={config.encoder!r}; leave it at {field.default!r}."
      )


def check_frames(
  config: ModelConfig, modality: str, shape: tuple[int, ...], *, subset: bool
) -> None:
  """Raises a ValueError for an unknown modality or a wrong shape of frames.

  `subset`: whether a subset of the patches is to be encoded.
  """
  record = MODALITIES.get(modality)
  if record is None or record.kind != "knowledge":
    known = [k for k, m in MODALITIES.items() if m.kind == "knowledge"]
    raise ValueError(
      f"cannot encode {modality!r}; knowledge modalities: {', '.join(known)}."
    )
  size = config.vision.image_size
  if record.embedding == "patch":
    if shape != (size, size, 3):
      raise ValueError(
        f"{modality}: frames of shape {shape}; the encoder takes "
        f"({size}, {size}, 3) (config.model.vision.image_size)."
      )
  elif subset:
    raise ValueError(
      f"{modality}: token_indices name patches; it has tokens of its own."
    )


def check_vit(config: VisionConfig) -> None:
  """Raises a ValueError for options of a ViT that do not go together."""
  check_names(config, VISION_NAMES, "config.model.vision")
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
  if config.registers < 0 or (
    (config.registers or config.pooling == "map") and config.rope_grid
  ):
    raise ValueError(
      f"registers={config.registers}, pooling={config.pooling!r} with "
      f"rope_grid={config.rope_grid}: rotary positions go with a class token "
      "and no registers; set config.model.vision."
    )
  if config.registers and config.pooling == "map":
    raise ValueError(
      "registers go with pooling='class'; set config.model.vision.registers=0."
    )
  if config.rope_grid:  # raises for heads of an odd width
    head_dim = config.width // config.num_heads
    grid = config.image_size // config.patch_size
    rotary_tables(grid, head_dim, base_grid=config.rope_grid)
