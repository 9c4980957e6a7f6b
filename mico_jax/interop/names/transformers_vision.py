"""Names of transformers' vision models: one map per family.

A map is a list of (regular expression, replacement), applied in this order to
every name of a file. The results are the names of two weight maps: of vision
transformers, and of staged encoders (timm's names, with queries, keys and
values apart).

Source: https://github.com/huggingface/transformers (names of the weights).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

from mico_jax.config import VisionConfig
from mico_jax.interop.names import staged_vision
from mico_jax.interop.names.weight_map import Entry, layer_norm, linear

Names = Sequence[tuple[str, str]]
TOP, BLOCKS = ("vision",), ("vision", "blocks")

_CLIP: Names = (
  (r"^vision_model\.", ""),
  (r"^embeddings\.class_embedding$", "cls_token"),
  (r"^embeddings\.patch_embedding\.", "patch."),
  (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
  (r"^pre_layrnorm\.", "norm_pre."),
  (r"^post_layernorm\.", "norm."),
  (r"^encoder\.layers\.", "blocks."),
  (r"^(blocks\.\d+)\.self_attn\.([qkv])_proj\.", r"\1.\2."),
  (r"^(blocks\.\d+)\.self_attn\.out_proj\.", r"\1.proj."),
  (r"^(blocks\.\d+)\.layer_norm([12])\.", r"\1.norm\2."),
  (r"^(blocks\.\d+)\.mlp\.(fc[12])\.", r"\1.\2."),
  (r"^visual_projection\.", "clip_head."),
)
_SIGLIP: Names = (
  *_CLIP,
  (r"^head\.probe$", "pool.probe"),
  (r"^head\.attention\.in_proj_", "pool.qkv."),
  (r"^head\.attention\.out_proj\.", "pool.proj."),
  (r"^head\.layernorm\.", "pool.norm."),
  (r"^head\.mlp\.", "pool."),
)
_QKV = {"query": "q", "key": "k", "value": "v"}
_VIT: Names = (
  (r"^(vit|dinov2|dinov2_with_registers)\.", ""),
  (r"^embeddings\.cls_token$", "cls_token"),
  (r"^embeddings\.position_embeddings$", "pos_embed"),
  (r"^embeddings\.register_tokens$", "registers"),
  (r"^embeddings\.patch_embeddings\.projection\.", "patch."),
  (r"^layernorm\.", "norm."),
  (r"^encoder\.layer\.", "blocks."),
  *(
    (rf"^(blocks\.\d+)\.attention\.attention\.{long}\.", rf"\1.{short}.")
    for long, short in _QKV.items()
  ),
  (r"^(blocks\.\d+)\.attention\.output\.dense\.", r"\1.proj."),
  (r"^(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
  (r"^(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
  (r"^(blocks\.\d+)\.intermediate\.dense\.", r"\1.fc1."),
  (r"^(blocks\.\d+)\.output\.dense\.", r"\1.fc2."),
  (r"^(blocks\.\d+)\.mlp\.(fc[12])\.", r"\1.\2."),
  (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.scale\2"),
)
_CONVNEXT: Names = (
  (r"^convnextv2\.", ""),
  (r"^embeddings\.patch_embeddings\.", "stem.0."),
  (r"^embeddings\.layernorm\.", "stem.1."),
  (r"^layernorm\.", "head.norm."),
  (r"^encoder\.", ""),
  (r"^(stages\.\d+)\.downsampling_layer\.", r"\1.downsample."),
  (r"^(stages\.\d+)\.layers\.", r"\1.blocks."),
  (r"(blocks\.\d+)\.dwconv\.", r"\1.conv_dw."),
  (r"(blocks\.\d+)\.layernorm\.", r"\1.norm."),
  (r"(blocks\.\d+)\.pwconv([12])\.", r"\1.mlp.fc\2."),
  (r"(blocks\.\d+)\.grn\.", r"\1.mlp.grn."),
)
_SWIN: Names = (
  (r"^swin\.", ""),
  (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
  (r"^embeddings\.norm\.", "patch_embed.norm."),
  (r"^layernorm\.", "norm."),
  (r"^encoder\.layers\.", "layers."),
  *(
    (rf"(blocks\.\d+)\.attention\.self\.{long}\.", rf"\1.attn.{short}.")
    for long, short in _QKV.items()
  ),
  (r"(blocks\.\d+)\.attention\.self\.", r"\1.attn."),
  (r"(blocks\.\d+)\.attention\.output\.dense\.", r"\1.attn.proj."),
  (r"(blocks\.\d+)\.layernorm_before\.", r"\1.norm1."),
  (r"(blocks\.\d+)\.layernorm_after\.", r"\1.norm2."),
  (r"(blocks\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
  (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
FAMILIES: Mapping[str, Names] = {
  "clip": _CLIP,
  "siglip": _SIGLIP,
  "dinov2": _VIT,
  "vit": _VIT,
  "convnextv2": _CONVNEXT,
  "swin": _SWIN,
}
_DOWNSAMPLE = re.compile(r"^layers\.(\d+)\.downsample\.")


def rename(name: str, family: str) -> str:
  """A tensor's name in the weight maps of this module; others unchanged."""
  for pattern, other in FAMILIES[family]:
    name = re.sub(pattern, other, name)
  if family == "swin":  # counted to the stage behind it, as in timm
    later = lambda match: f"layers.{int(match[1]) + 1}.downsample."
    name = _DOWNSAMPLE.sub(later, name)
  return name


def entries(config: VisionConfig) -> list[Entry]:
  """The weight map of an encoder, by the names of `rename`."""
  if config.encoder == "vit":
    return list(_vit(config))
  return list(_staged(config))


def _vit(config: VisionConfig) -> Iterator[Entry]:
  depth, block, bias = config.depth, "blocks.{i}.", config.qkv_bias == "all"
  # CLIP and SigLIP store flat tables, the others with leading axes.
  mapped = config.pooling == "map"
  flat = mapped or config.pre_norm
  if not mapped:
    yield Entry((*TOP, "cls_token"), ("cls_token",), lead=0 if flat else 2)
  yield Entry((*TOP, "pos_embed"), ("pos_embed",), lead=0 if flat else 1)
  if config.registers:
    yield Entry((*TOP, "registers"), ("registers",), lead=1)
  patch = (*TOP, "patch_embed", "proj")
  yield Entry((*patch, "kernel"), ("patch.weight",), "conv")
  if config.patch_bias:
    yield Entry((*patch, "bias"), ("patch.bias",))
  if config.pre_norm:
    yield from layer_norm((*TOP, "pre_norm"), "norm_pre")
  packed = [block + x for x in "qkv"]
  yield from linear((*BLOCKS, "attn", "qkv"), packed, depth, bias)
  yield from linear((*BLOCKS, "attn", "proj"), [block + "proj"], depth)
  for i in (1, 2):
    yield from linear((*BLOCKS, "mlp", f"fc{i}"), [f"{block}fc{i}"], depth)
    yield from layer_norm((*BLOCKS, f"norm{i}"), f"{block}norm{i}", depth)
    if config.layer_scale:
      name = f"{block}scale{i}"
      yield Entry((*BLOCKS, f"scale{i}"), (name,), layers=depth)
  yield from layer_norm((*TOP, "norm"), "norm")
  if config.clip_embed_dim:
    yield from linear((*TOP, "clip_head"), ["clip_head"], bias=False)
    yield Entry((*TOP, "logit_scale"), ("logit_scale",))
  if mapped:
    pool = (*TOP, "pool")
    yield Entry((*pool, "probe"), ("pool.probe",), lead=2)
    yield from linear((*pool, "qkv"), ["pool.qkv"])
    yield from linear((*pool, "proj"), ["pool.proj"])
    yield from layer_norm((*pool, "norm"), "pool.norm")
    for i in (1, 2):
      yield from linear((*pool, "mlp", f"fc{i}"), [f"pool.fc{i}"])


def _staged(config: VisionConfig) -> Iterator[Entry]:
  for entry in staged_vision.entries(config, layout="timm"):
    if config.encoder == "swin" and "qkv" in entry.path:
      (name,) = entry.names
      parts = tuple(name.replace(".qkv.", f".{x}.") for x in "qkv")
      entry = dataclasses.replace(entry, names=parts)
    elif "grn" in entry.path:
      entry = dataclasses.replace(entry, lead=3)
    yield entry
