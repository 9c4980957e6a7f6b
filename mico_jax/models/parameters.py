"""The parameters of a MiCo: its modules and free tables, by path.

The names are the checkpoint format. `parts` is the one list of them; creation,
shapes and logical axes all follow from it.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mico_jax import axes
from mico_jax.config import ModelConfig
from mico_jax.layers.activations import gelu
from mico_jax.layers.attention_pool import AttentionPool
from mico_jax.layers.embed import POSITION_INIT, TABLE_INIT
from mico_jax.layers.mlp import Dense
from mico_jax.layers.norm import LayerNorm
from mico_jax.modalities import (
  MODALITIES,
  Modality,
  as_configured,
  by_letter,
)
from mico_jax.models import custom_embedding
from mico_jax.models.encoder import Encoder
from mico_jax.models.encoders import ENCODERS, TEXT_ENCODERS
from mico_jax.models.text_tower import TextTower


@dataclasses.dataclass(frozen=True)
class Free:
  """A parameter outside of any module."""

  shape: tuple[int, ...]
  names: tuple[str, ...]
  init: Callable[..., Array] = TABLE_INIT


def frame_gain_init(
  key: Key[Array, ""], shape: tuple[int, int], dtype: Any = jnp.float32
) -> Float[Array, "T D"]:
  """Initial frame gains: a mean over time, and the direction of change.

  Three quarters of the channels are the mean over frames. The rest follow half
  a cosine wave over time, so that pooled features tell the direction of a
  change from the first step; learned from zeros, it is not found in a short
  training.
  """
  frames, width = shape
  time = (jnp.arange(frames, dtype=dtype) + 0.5) / frames
  wave = math.sqrt(2.0) * jnp.cos(math.pi * time)
  changing = jnp.arange(width) >= width - width // 4
  return jnp.where(changing[None], wave[:, None] - 1, 0).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Part:
  """A module and example inputs to create its parameters with."""

  module: nn.Module
  args: tuple[Any, ...]
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Projection(nn.Module):
  """Linear and LayerNorm: encoder width to text width.

  Attributes:
    features: output width.
    eps: of the LayerNorm.
    dtype: compute dtype.
  """

  features: int
  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
    """Returns the projected tokens."""
    x = Dense(self.features, self.dtype, name="dense")(x)
    return LayerNorm(self.eps, name="norm")(x)


class MatchingHead(nn.Module):
  """Linear, GELU, LayerNorm, Linear to (no match, match).

  Attributes:
    eps: of the LayerNorm.
    dtype: compute dtype.
  """

  eps: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B W"]) -> Float[Array, "B 2"]:
    """Returns logits."""
    x = Dense(x.shape[-1], self.dtype, name="dense1")(x)
    x = gelu(x)
    x = LayerNorm(self.eps, name="norm")(x)
    names = (axes.EMBED, axes.UNSHARDED)
    return Dense(
      2, self.dtype, names=names, bias_name=axes.UNSHARDED, name="dense2"
    )(x)


def head_module(config: ModelConfig, letters: str) -> Dense:
  """Contrastive head: bias-free for one letter, with bias for several."""
  return Dense(
    config.embed_dim,
    jnp.dtype(config.dtype),
    use_bias=len(letters) > 1,
    names=(axes.EMBED, axes.JOINT),
    bias_name=axes.JOINT,
  )


def context_types(config: ModelConfig) -> tuple[str, ...]:
  """Context types with parameters: of the frame tables, and of words."""
  served = {m.context_type for m in _served(config)}
  types = [t for t in config.frame_table if t not in served]
  return (*types, *word_types())


def word_types() -> tuple[str, ...]:
  """Context types whose tokens come from the text tower: subtitles."""
  return tuple(
    m.context_type
    for m in MODALITIES.values()
    if m.kind == "interface" and m.context_type
  )


def _served(config: ModelConfig) -> list[Modality]:
  """Modalities whose head and context are another one's, by config."""
  return [m for m in MODALITIES.values() if as_configured(m, config) is not m]


def weighted_types(config: ModelConfig) -> tuple[str, ...]:
  """Context types whose frames are weighted when pooled."""
  if not config.frame_weights:
    return ()
  sizes = {
    name: config.frame_table.get(name, 0) for name in context_types(config)
  }
  return tuple(name for name, size in sizes.items() if size > 1)


def changing_types(config: ModelConfig) -> tuple[str, ...]:
  """Context types whose changes from frame to frame are pooled.

  Raises:
    ValueError: for a type that does not exist or has a single frame.
  """
  for name in config.frame_changes:
    if name not in context_types(config) or config.frame_table.get(name, 0) < 2:
      raise ValueError(
        f"config.model.frame_changes names {name!r}, which has no two frames; "
        f"config.model.frame_table has {dict(config.frame_table)}."
      )
  return tuple(dict.fromkeys(config.frame_changes))


def change_module(config: ModelConfig) -> AttentionPool:
  """Attention over the changes of tokens, of the encoder's sizes."""
  vision = config.vision
  return AttentionPool(
    vision.num_heads,
    vision.mlp_dim,
    vision.mlp,
    vision.norm_eps,
    jnp.dtype(config.dtype),
  )


def head_names(config: ModelConfig) -> tuple[str, ...]:
  """Contrastive heads with parameters."""
  served = {m.letter for m in _served(config)}
  return tuple(h for h in config.heads if h not in served)


def temperature_paths(config: ModelConfig) -> dict[str, tuple[str, str]]:
  """Head -> path of the logarithm of its factor on the temperature, if any."""
  if config.temperature == "shared":
    return {}
  heads = (head for head in head_names(config) if head != "t")
  return {head: ("temperature_log", f"{head}_temperature") for head in heads}


def feature_width(config: ModelConfig, letter: str) -> int:
  """Width of the pooled features of a letter."""
  interface = by_letter(letter).kind == "interface"
  return config.text.width if interface else config.vision.width


def towers(config: ModelConfig) -> tuple[Encoder, TextTower]:
  """The modules of the shared encoder and the text tower."""
  shared = {
    "dtype": jnp.dtype(config.dtype),
    "backend": config.attention,
    "remat": config.remat,
    "scan": config.scan,
  }
  for name, table, field in (
    (config.vision.encoder, ENCODERS, "vision"),
    (config.text.encoder, TEXT_ENCODERS, "text"),
  ):
    if name not in table:
      raise ValueError(
        f"config.model.{field}.encoder={name!r} is unknown; known: "
        f"{', '.join(table)}."
      )
  return (
    ENCODERS[config.vision.encoder](config.vision, **shared),
    TEXT_ENCODERS[config.text.encoder](
      config.text,
      freeze_pad=config.freeze_pad_embedding,
      masked_rows=config.masked_rows,
      **shared,
    ),
  )


def parts(config: ModelConfig) -> dict[tuple[str, ...], Part | Free]:
  """Path -> module with example inputs, or free parameter.

  Raises:
    ValueError: if options of the config do not fit together.
  """
  vision, text = config.vision, config.text
  dtype = jnp.dtype(config.dtype)
  encoder, tower = towers(config)
  encoder.check()
  tower.check()
  if config.joined_positions and not tower.learned_positions:
    raise ValueError(
      f"config.model.joined_positions={config.joined_positions} is a table of "
      f"positions, and text.encoder={text.encoder!r} has none; set it to 0."
    )
  size, one = vision.image_size, jnp.zeros((1, text.width))
  ids = jnp.zeros((1, 2), jnp.int32)
  heads = {
    name: sum(feature_width(config, letter) for letter in name)
    for name in head_names(config)
  }
  tables = {
    "context_pos": config.context_positions,
    "sample_embed": config.sample_embeddings,
    "joined_pos": config.joined_positions,
  }
  temperature = nn.initializers.constant(config.temperature_init)
  return {
    ("vision",): Part(encoder, (jnp.zeros((1, size, size, 3)),)),
    ("text",): Part(tower, (ids,), {"context": tower.example_context()}),
    **{
      ("text", name): Part(module, (one,))
      for name, module in tower.modules().items()
    },
    ("matching_head",): Part(MatchingHead(text.norm_eps, dtype), (one,)),
    ("temperature",): Free((), (), temperature),
    **{
      path: Free((), (), nn.initializers.zeros)
      for path in temperature_paths(config).values()
    },
    **_context_parts(config),
    **{
      ("contrastive_head", name): Part(
        head_module(config, name), (jnp.zeros((1, width)),)
      )
      for name, width in heads.items()
    },
    **{
      (name,): Free((rows, text.width), (axes.POSITION, axes.EMBED))
      for name, rows in tables.items()
      if rows
    },
    **{
      ("frame_change", name): Part(
        change_module(config), (jnp.zeros((1, 2, vision.width)),)
      )
      for name in changing_types(config)
    },
    **_embedding_parts(config, encoder),
  }


def _context_parts(
  config: ModelConfig,
) -> dict[tuple[str, ...], Part | Free]:
  """Projections and tables of the context types."""
  vision, text = config.vision, config.text
  names = (axes.POSITION, axes.EMBED)
  members: dict[tuple[str, ...], Part | Free] = {}
  for name in context_types(config):
    frames = config.frame_table.get(name, 0)
    width = text.width if name in word_types() else vision.width
    project = Projection(text.width, text.norm_eps, jnp.dtype(config.dtype))
    members["project", name] = Part(project, (jnp.zeros((1, width)),))
    members["type_embed", name] = Free((text.width,), (axes.EMBED,))
    if frames:
      shape = (frames, text.width)
      members["frame_embed", name] = Free(shape, names, POSITION_INIT)
    if name in weighted_types(config):
      shape = (frames, vision.width)
      members["frame_gain", name] = Free(shape, names, frame_gain_init)
  return members


def _embedding_parts(
  config: ModelConfig, encoder: Encoder
) -> dict[tuple[str, ...], Part | Free]:
  """Embeddings that modalities bring, for an encoder that takes tokens."""
  members: dict[tuple[str, ...], Part | Free] = {}
  for modality, embedding in custom_embedding.custom_embeddings(config).items():
    if not encoder.supports_token_indices:
      raise ValueError(
        f"{modality} brings its own embedding, and encoder="
        f"{config.vision.encoder!r} takes pixels only; remove "
        f"{MODALITIES[modality].context_type!r} from "
        "config.model.frame_table or choose encoder='vit'."
      )
    module = custom_embedding.module(config, modality, embedding)
    example = jnp.zeros((1, *embedding.frame))
    members["embedding", modality] = Part(module, (example,))
  return members


def create(config: ModelConfig, rng_key: Key[Array, ""]) -> dict[str, Any]:
  """New parameters, still boxed with their logical axes.

  A parameter's draw depends on its path and `rng_key` only, so adding a head or
  a modality leaves the others as they were.
  """
  tree: dict[str, Any] = {}
  for path, part in parts(config).items():
    seed = zlib.crc32("/".join(path).encode()) & 0x7FFFFFFF
    part_key = jax.random.fold_in(rng_key, seed)
    if isinstance(part, Free):
      init = nn.with_logical_partitioning(part.init, part.names)
      value = init(part_key, part.shape, jnp.float32)
    else:
      value = part.module.init(part_key, *part.args, **part.kwargs)["params"]
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = value
  return tree
