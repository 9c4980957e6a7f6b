"""Names, layout and config of official MiCo weights.

One weight map, `entries`, gives for each of our parameters its names in an
official file; both directions follow from it and are exact. Linear weights are
transposed, the patch convolution is flattened, queries, keys and values are
packed, layers are stacked. Gradients have the same layout.

The official model encodes normals through the depth path and has no parameters
for them, nor for the paper's options that are off by default; a config with
such parameters cannot be written in its layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.aliases import Params
from mico_jax.config import ConfigError, ModelConfig, TextConfig, VisionConfig
from mico_jax.interop.files.tensors import count_layers
from mico_jax.interop.names import mico_vision, weight_map
from mico_jax.interop.names.mico_vision import LOGIT_SCALE
from mico_jax.interop.names.weight_map import (
  Entry,
  layer_norm,
  linear,
)
from mico_jax.models import build

BERT = "multimodal_encoder."
LAYER = BERT + "bert.encoder.layer.{i}."
# Context type -> its word in the official names.
WORDS = {"video": "vision", "audio": "audio", "depth": "depth"}
# Tensors of official files that the model does not use: the text towers of
# EVA-CLIP and OpenAI's CLIP, and buffers.
IGNORED = (
  r"^vision_encoder\.(text|transformer|token_embedding|ln_final)\.",
  r"^vision_encoder\.(positional_embedding|text_projection)$",
  r"\.position_ids$",
)
TIED = {
  BERT + "cls.predictions.decoder.weight": BERT
  + "bert.embeddings.word_embeddings.weight",
  BERT + "cls.predictions.decoder.bias": BERT + "cls.predictions.bias",
}


def _text(config: TextConfig) -> Iterator[Entry]:
  depth = config.depth
  blocks = ("text", "blocks")
  embed, name = ("text", "embed"), BERT + "bert.embeddings."
  for ours, theirs in (
    ("words", "word"),
    ("positions", "position"),
    ("types", "token_type"),
  ):
    yield Entry((*embed, ours), (f"{name}{theirs}_embeddings.weight",))
  yield from layer_norm((*embed, "norm"), name + "LayerNorm")
  attention, cross = LAYER + "attention.", LAYER + "crossattention."
  packed = [f"{attention}self.{n}" for n in ("query", "key", "value")]
  yield from linear((*blocks, "attn", "qkv"), packed, depth)
  packed = [f"{cross}self.{n}" for n in ("key", "value")]
  yield from linear((*blocks, "cross_attn", "kv"), packed, depth)
  query = (*blocks, "cross_attn", "query")
  yield from linear(query, [cross + "self.query"], depth)
  for ours, prefix in (("attn", attention), ("cross_attn", cross)):
    proj = (*blocks, ours, "proj")
    yield from linear(proj, [prefix + "output.dense"], depth)
  for ours, prefix in (("attn", attention), ("cross", cross), ("mlp", LAYER)):
    norm = (*blocks, f"{ours}_norm")
    yield from layer_norm(norm, prefix + "output.LayerNorm", depth)
  mlp = (*blocks, "mlp")
  yield from linear((*mlp, "fc1"), [LAYER + "intermediate.dense"], depth)
  yield from linear((*mlp, "fc2"), [LAYER + "output.dense"], depth)
  head, name = ("text", "lm_head"), BERT + "cls.predictions."
  yield from linear((*head, "dense"), [name + "transform.dense"])
  yield from layer_norm((*head, "norm"), name + "transform.LayerNorm")
  yield Entry((*head, "bias"), (name + "bias",))


# Text tower -> its entries; the official layout has no names for others.
TEXT: Mapping[str, Callable[[TextConfig], Iterator[Entry]]] = {"bert": _text}


def _heads(config: ModelConfig) -> Iterator[Entry]:
  types = [t for t in config.frame_table if t in WORDS]
  for name in (*types, "subtitle"):
    word = WORDS.get(name, name)
    path, source = ("project", name), f"hidden_trans_{word}_multimodal"
    yield from linear((*path, "dense"), [f"{source}.0"])
    yield from layer_norm((*path, "norm"), f"{source}.1")
    table = f"{word}_type_embeddings"
    yield Entry(("type_embed", name), (table,), lead=2)
    if config.frame_table.get(name, 0):
      table = f"{word}_frame_embedding"
      yield Entry(("frame_embed", name), (table,), lead=1)
  for head in config.heads:
    single = len(head) == 1
    name = f"contra_head_{head}" + (".linear" if single else "")
    if head != "n":
      path = ("contrastive_head", head)
      yield from linear(path, [name], bias=not single)
  head, name = ("matching_head",), "itm_head."
  yield from linear((*head, "dense1"), [name + "linear1"])
  yield from layer_norm((*head, "norm"), name + "layernorm")
  yield from linear((*head, "dense2"), [name + "linear2"])
  yield Entry(("temperature",), ("contra_temp",))


def entries(
  config: ModelConfig, parts: Sequence[str] | None = None
) -> list[Entry]:
  """The weight map of a model.

  Args:
    config: of the model.
    parts: top keys of our tree to cover; None: all.

  Raises:
    ConfigError: for a text tower that the official layout has no names for.
    ValueError: for an encoder that it has no names for.
  """
  table: list[Entry] = []
  if parts is None or "vision" in parts:
    table += mico_vision.entries(config.vision)
  if parts is None or "text" in parts:
    if config.text.encoder not in TEXT:
      raise ConfigError(
        f"no names for text.encoder={config.text.encoder!r} in the layouts of "
        f"MiCo and BERT, only for {', '.join(TEXT)}; --to torch, safetensors "
        "and stablehlo take any text tower."
      )
    table += TEXT[config.text.encoder](config.text)
  table += _heads(config)
  return [e for e in table if parts is None or e.path[0] in parts]


def _flat(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
  if not isinstance(tree, Mapping):
    return {path: tree}
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, (*path, key))
  return flat


def from_official(
  tensors: Mapping[str, np.ndarray],
  config: ModelConfig,
  *,
  parts: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Parameters from official tensors.

  Args:
    tensors: by official name (see `rename`), of the sizes of `config`.
    config: of the model, as `config_from_official` determines it.
    parts: top keys of our tree to build; None: all.

  Returns:
    Nested dict of float32 arrays.

  Raises:
    ValueError: naming every missing or left-over tensor, or a wrong shape.
  """
  tensors = dict(tensors)
  if parts is None or "vision" in parts:
    mico_vision.check_rotary_buffers(tensors, config.vision)
    rotary = mico_vision.ROTARY
    tensors = {k: v for k, v in tensors.items() if not rotary.search(k)}
  for copy, original in TIED.items():
    if copy in tensors:  # the later key wins when PyTorch loads
      tensors[original] = tensors.pop(copy)
  if config.vision.clip_embed_dim and LOGIT_SCALE not in tensors:
    # Absent from bare encoders; the model does not use it.
    tensors[LOGIT_SCALE] = np.array(math.log(1 / 0.07), np.float32)
  tree, missing = weight_map.parameters(
    tensors,
    entries(config, parts),
    _flat(build(config).abstract_params()),
  )
  extra = [n for n in tensors if not any(re.search(p, n) for p in IGNORED)]
  extra = [] if parts is not None else extra
  if missing or extra:
    raise ValueError(
      f"official tensors do not fit: missing {missing[:8]} ({len(missing)}), "
      f"left over {extra[:8]} ({len(extra)})."
    )
  return tree


def table_of(
  params: Params,
  config: ModelConfig,
  *,
  parts: Sequence[str] | None = None,
) -> list[Entry]:
  """The weight map of a model, checked to cover all of its parameters.

  Args:
    params: nested dict; only its keys are used.
    config: of the model.
    parts: top keys to cover; None: all.

  Raises:
    ValueError: for parameters that the official model does not have.
  """
  table = entries(config, parts)
  known = {e.path for e in table}
  extra = [
    "/".join(p)
    for p in _flat(params)
    if p not in known and (parts is None or p[0] in parts)
  ]
  if extra:
    raise ValueError(
      f"the official model has no {', '.join(extra)}; it serves normals as "
      "depth and has none of the paper's optional tables."
    )
  return table


def buffers(
  config: ModelConfig, parts: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
  """The buffers of an official file: rotary tables and position ids."""
  tensors: dict[str, np.ndarray] = {}
  if parts is None or "vision" in parts:
    tensors |= mico_vision.rotary_buffers(config.vision)
  if parts is None or "text" in parts:
    positions = np.arange(config.text.max_positions, dtype=np.int64)[None]
    tensors[BERT + "bert.embeddings.position_ids"] = positions
  return tensors


def to_official(
  params: Params,
  config: ModelConfig,
  *,
  parts: Sequence[str] | None = None,
  copies: bool = True,
) -> dict[str, np.ndarray]:
  """Official tensors from parameters (or from gradients).

  Args:
    params: nested dict of arrays.
    config: of the model.
    parts: top keys to write; None: all.
    copies: whether to include the tied copies and the buffers, as an official
      file does; false for gradients.

  Raises:
    ValueError: for parameters that the official model does not have.
  """
  table = table_of(params, config, parts=parts)
  patch = config.vision.patch_size
  tensors = {
    one.name: one.read()
    for one in weight_map.items(params, table, patch_size=patch)
  }
  if copies:
    tensors |= buffers(config, parts)
    for copy, original in TIED.items():
      if original in tensors:
        tensors[copy] = tensors[original]
  return tensors


def rename(name: str) -> str:
  """A name of an older official file, as the official loader rewrites it."""
  if "video" in name:
    return name.replace("video", "vision")
  for old in ("evaclip_model", "clip_model"):
    if old in name:
      return name.replace(old, "vision_encoder")
  return name


def _bert_config(
  tensors: Mapping[str, Any], num_heads: int | None
) -> TextConfig:
  """The config of the text tower, from the shapes of its tensors."""
  table = lambda name: tensors[
    f"{BERT}bert.embeddings.{name}_embeddings.weight"
  ]
  vocab_size, width = table("word").shape
  layers = re.escape(BERT) + r"bert\.encoder\.layer\.(\d+)\."
  hidden = tensors[LAYER.format(i=0) + "intermediate.dense.weight"]
  return TextConfig(
    vocab_size=vocab_size,
    width=width,
    depth=count_layers(tensors, layers),
    num_heads=num_heads or max(width // 64, 1),
    mlp_dim=hidden.shape[0],
    max_positions=table("position").shape[0],
    type_vocab_size=table("token_type").shape[0],
  )


def config_from_official(
  tensors: Mapping[str, Any],
  *,
  vision_heads: int | None = None,
  text_heads: int | None = None,
  vision_options: Mapping[str, Any] | None = None,
) -> ModelConfig:
  """The config of official tensors, from their shapes.

  Absent parts get small placeholder sizes. Options follow the official code:
  normals through depth, no clamp of the temperature, padded subtitles visible,
  the additive mask.

  Args:
    tensors: by official name; arrays, or objects with their shape and index.
    vision_heads: heads of the encoder; None: of the official encoders' width.
    text_heads: heads of the text tower; None: 64 wide each, as in BERT.
    vision_options: fields of the encoder that no tensor determines, such as
      {"norm": "post"} of EVA-02-E.

  Raises:
    ValueError: for more layers than tensors, or a position table that is none.
    KeyError: naming a tensor that is missing.
  """
  vision = mico_vision.config_from_tensors(
    tensors, num_heads=vision_heads, **(vision_options or {})
  ) or VisionConfig(
    image_size=4, patch_size=4, width=8, depth=1, num_heads=1, mlp_dim=8
  )
  text = TextConfig(
    vocab_size=8, width=8, depth=1, num_heads=1, mlp_dim=8, max_positions=8
  )
  if BERT + "bert.embeddings.word_embeddings.weight" in tensors:
    text = _bert_config(tensors, text_heads)
  head = re.compile(r"contra_head_(\w+)(\.linear)?\.weight$")
  contrastive = {
    match[1]: value.shape[0]
    for name, value in tensors.items()
    if (match := head.match(name))
  }
  frame_table = {
    key: tensors[f"{word}_frame_embedding"].shape[1]
    for key, word in WORDS.items()
    if f"{word}_frame_embedding" in tensors
  }
  return ModelConfig(
    vision=vision,
    text=text,
    embed_dim=next(iter(contrastive.values()), 8),
    heads=tuple(contrastive),
    frame_table=frame_table,
    normals_as="depth",
    temperature_min=0.0,
    masked_rows="released",
    mask_subtitle_padding=False,
  )
