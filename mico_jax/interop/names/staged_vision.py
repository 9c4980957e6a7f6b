"""Swin, ConvNeXt V2 and UniRepLKNet in the names of PyTorch checkpoints.

Layouts:

  "official"  Swin as a MiCo checkpoint names it (`vision_encoder.`), with its
              buffers; UniRepLKNet's own files in merged form
              (`mico_jax.interop.names.unireplknet.merge` makes it).
  "timm"      Swin and ConvNeXt V2 as timm names them.

Classification heads, which the model lacks, match `HEADS`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.aliases import Params
from mico_jax.checkpoint.manifest import flatten
from mico_jax.config import VisionConfig
from mico_jax.interop.names import weight_map
from mico_jax.interop.names.weight_map import Entry, layer_norm, linear
from mico_jax.models import convnext, swin, unireplknet
from mico_jax.models.encoders import ENCODERS

SIZES: Mapping[str, Mapping[str, VisionConfig]] = {
  "swin": swin.SIZES,
  "convnext": convnext.SIZES,
  "unireplknet": unireplknet.SIZES,
}
TOP = ("vision",)
SWIN_PREFIX = "vision_encoder."
HEADS = re.compile(r"^head\.(fc\.)?(weight|bias)$")
BUFFERS = re.compile(r"(^|\.)(relative_position_index|attn_mask)$")


def _swin(config: VisionConfig, layout: str) -> Iterator[Entry]:
  top = SWIN_PREFIX if layout == "official" else ""
  # Downsampling belongs to the stage before it in the official layout, to the
  # stage after it in timm.
  later = 1 if layout == "official" else 0
  stem = f"{top}patch_embed."
  yield from _conv((*TOP, "stem", "patch_embed", "proj"), f"{stem}proj")
  yield from layer_norm((*TOP, "stem", "norm"), f"{stem}norm")
  for s, depth in enumerate(config.stage_depths):
    stage = (*TOP, f"stage{s}")
    if s:
      name = f"{top}layers.{s - later}.downsample."
      path = (*stage, "downsample")
      yield from layer_norm((*path, "norm"), f"{name}norm")
      yield from linear((*path, "reduction"), [f"{name}reduction"], bias=False)
    block = f"{top}layers.{s}.blocks.{{i}}."
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
      path = (*stage, "blocks", *part.split("."))
      yield from linear(path, [block + part], depth)
    for part in ("norm1", "norm2"):
      yield from layer_norm((*stage, "blocks", part), block + part, depth)
    bias = (f"{block}attn.relative_position_bias_table",)
    path = (*stage, "blocks", "attn", "position_bias")
    yield Entry(path, bias, layers=depth)
  yield from layer_norm((*TOP, "norm"), f"{top}norm")


def _convnext(config: VisionConfig, layout: str) -> Iterator[Entry]:
  del layout
  yield from _conv((*TOP, "stem", "patch_embed", "proj"), "stem.0")
  yield from layer_norm((*TOP, "stem", "norm"), "stem.1")
  for s, depth in enumerate(config.stage_depths):
    stage = (*TOP, f"stage{s}")
    if s:
      name, path = f"stages.{s}.downsample.", (*stage, "downsample")
      yield from layer_norm((*path, "norm"), f"{name}0")
      yield from _conv((*path, "reduction"), f"{name}1", side=2)
    blocks, block = (*stage, "blocks"), f"stages.{s}.blocks.{{i}}."
    yield from _filter((*blocks, "conv"), f"{block}conv_dw", layers=depth)
    yield from layer_norm((*blocks, "norm"), f"{block}norm", depth)
    yield from linear((*blocks, "fc1"), [f"{block}mlp.fc1"], depth)
    yield from layer_norm((*blocks, "grn"), f"{block}mlp.grn", depth)
    yield from linear((*blocks, "fc2"), [f"{block}mlp.fc2"], depth)
  yield from layer_norm((*TOP, "norm"), "head.norm")


def _unireplknet(config: VisionConfig, layout: str) -> Iterator[Entry]:
  del layout
  stem = "downsample_layers.0."
  for i, at in ((1, 0), (2, 3)):
    yield from _filter((*TOP, "stem", f"conv{i}"), f"{stem}{at}")
    yield from layer_norm((*TOP, "stem", f"norm{i}"), f"{stem}{at + 1}")
  for s, depth in enumerate(config.stage_depths):
    stage = (*TOP, f"stage{s}")
    if s:
      name, path = f"downsample_layers.{s}.", (*stage, "downsample")
      yield from _filter((*path, "conv"), f"{name}0")
      yield from layer_norm((*path, "norm"), f"{name}1")
    for entry in _unireplknet_blocks(config, s):
      yield dataclasses.replace(
        entry,
        layers=len(range(entry.first, depth, entry.step)),
      )
  yield from layer_norm((*TOP, "norm"), "norm")


def _unireplknet_blocks(config: VisionConfig, stage: int) -> Iterator[Entry]:
  """The blocks of a stage, one stack for each kernel size."""
  sizes, block = config.stage_kernels[stage], f"stages.{stage}.{{i}}."
  for i, size in enumerate(sizes):
    path = (*TOP, f"stage{stage}", "blocks", f"block{i}")
    conv = "dwconv.lk_origin" if size >= 7 else "dwconv"
    for entry in (
      *_filter((*path, "conv"), block + conv, layers=1),
      *_conv((*path, "gate", "fc1"), f"{block}se.down", side=1, layers=1),
      *_conv((*path, "gate", "fc2"), f"{block}se.up", side=1, layers=1),
      *linear((*path, "fc1"), [f"{block}pwconv1.1"], 1),
      *linear((*path, "fc2"), [f"{block}pwconv2.0"], 1),
      Entry((*path, "grn", "scale"), (f"{block}act.1.gamma",), lead=3),
    ):
      yield dataclasses.replace(entry, first=i, step=len(sizes))


def _conv(
  path: tuple[str, ...], name: str, *, side: int = 0, layers: int = 0
) -> Iterator[Entry]:
  """A convolution whose kernel is flattened here."""
  weight, bias = (f"{name}.weight",), (f"{name}.bias",)
  yield Entry((*path, "kernel"), weight, "conv", layers=layers, side=side)
  yield Entry((*path, "bias"), bias, layers=layers)


def _filter(
  path: tuple[str, ...], name: str, *, layers: int = 0
) -> Iterator[Entry]:
  """A convolution whose kernel keeps its axes."""
  yield Entry((*path, "kernel"), (f"{name}.weight",), "filter", layers=layers)
  yield Entry((*path, "bias"), (f"{name}.bias",), layers=layers)


TABLES: Mapping[str, Callable[[VisionConfig, str], Iterator[Entry]]] = {
  "swin": _swin,
  "convnext": _convnext,
  "unireplknet": _unireplknet,
}
LAYOUTS: Mapping[str, tuple[str, ...]] = {
  "swin": ("official", "timm"),
  "convnext": ("timm",),
  "unireplknet": ("official",),
}


def entries(config: VisionConfig, *, layout: str) -> list[Entry]:
  """The weight map of an encoder.

  Args:
    config: of the encoder.
    layout: one of `LAYOUTS` of the encoder.

  Raises:
    ValueError: for an encoder without such a layout.
  """
  if layout not in LAYOUTS.get(config.encoder, ()):
    known = "; ".join(f"{k}: {', '.join(v)}" for k, v in LAYOUTS.items())
    raise ValueError(
      f"no names for encoder={config.encoder!r} in {layout=}; known: {known}."
    )
  return list(TABLES[config.encoder](config, layout))


# --------------------------------------------------------------------- arrays
def _shapes(config: VisionConfig) -> dict[tuple[str, ...], Any]:
  """Shapes of the encoder's parameters by path."""
  encoder = ENCODERS[config.encoder](config)
  encoder.check()
  size = config.image_size
  boxed = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )["params"]
  flat = flatten({TOP[0]: nn.meta.unbox(boxed)})
  return {tuple(path.split("/")): leaf for path, leaf in flat.items()}


def from_tensors(
  tensors: Mapping[str, np.ndarray], config: VisionConfig, *, layout: str
) -> dict[str, Any]:
  """The encoder's parameters from the tensors of a checkpoint.

  Args:
    tensors: by name; classification heads are ignored, buffers of Swin are
      compared with those of the config.
    config: of the encoder.
    layout: of the names.

  Raises:
    ValueError: naming missing and left-over tensors, a wrong shape, or a buffer
      of another geometry.
  """
  left = {n: v for n, v in tensors.items() if not HEADS.search(n)}
  check_buffers(left, config)
  left = {n: v for n, v in left.items() if not BUFFERS.search(n)}
  table = entries(config, layout=layout)
  tree, missing = weight_map.parameters(left, table, _shapes(config))
  if missing or left:
    extra = list(left)
    raise ValueError(
      f"the tensors do not fit encoder={config.encoder!r}: missing "
      f"{missing[:8]} ({len(missing)}), left over {extra[:8]} ({len(extra)})."
    )
  return tree[TOP[0]]


def to_tensors(
  params: Params, config: VisionConfig, *, layout: str, buffers: bool = True
) -> dict[str, np.ndarray]:
  """The tensors of a checkpoint from the encoder's parameters.

  Args:
    params: nested dict of arrays (or gradients).
    config: of the encoder.
    layout: of the names.
    buffers: whether to include the index and mask buffers of an official Swin.
  """
  table = entries(config, layout=layout)
  tensors = {
    one.name: one.read()
    for one in weight_map.items(
      {TOP[0]: params}, table, patch_size=config.patch_size
    )
  }
  if buffers and config.encoder == "swin" and layout == "official":
    tensors |= swin_buffers(config)
  return tensors


# -------------------------------------------------------------------- buffers
def swin_buffers(config: VisionConfig) -> dict[str, np.ndarray]:
  """The buffers of an official Swin: index tables and shifted blocks' masks."""
  buffers: dict[str, np.ndarray] = {}
  encoder = swin.Swin(config)
  for stage in encoder.stages:
    window = swin.window_of(config, stage.resolution)
    index = swin.relative_index(window).astype(np.int64)
    for j in range(stage.depth):
      block = f"{SWIN_PREFIX}layers.{stage.index}.blocks.{j}."
      buffers[f"{block}attn.relative_position_index"] = index
      if j % 2 and stage.resolution > window:
        buffers[f"{block}attn_mask"] = swin.shift_mask(
          stage.resolution, window, window // 2
        )
  return buffers


def check_buffers(tensors: Mapping[str, Any], config: VisionConfig) -> None:
  """Compares the buffers of a file with those of the config.

  Raises:
    ValueError: naming the first that differs.
  """
  stored = {n: v for n, v in tensors.items() if BUFFERS.search(n)}
  if not stored:
    return
  ours = swin_buffers(config) if config.encoder == "swin" else {}
  for name, value in stored.items():
    full = name if name.startswith(SWIN_PREFIX) else SWIN_PREFIX + name
    if full not in ours or not np.array_equal(ours[full], value):
      raise ValueError(
        f"{name}: not the buffer of image_size={config.image_size}, patch_size="
        f"{config.patch_size} and window_size={config.window_size}; set "
        "config.model.vision as the file was trained."
      )


def stage_depths(names: Iterable[str], pattern: str) -> tuple[int, ...]:
  """Number of blocks of each stage, from names of tensors.

  Args:
    names: of the tensors.
    pattern: regex with the numbers of stage and block as its groups.

  Raises:
    KeyError: for a stage that has no blocks.
  """
  depths: dict[int, int] = {}
  for name in names:
    if match := re.match(pattern, name):
      stage, block = int(match[1]), int(match[2])
      depths[stage] = max(depths.get(stage, 0), block + 1)
  return tuple(depths[s] for s in range(len(depths)))


def swin_config(
  tensors: Mapping[str, Any], *, top: str = SWIN_PREFIX
) -> VisionConfig:
  """The config of a Swin, from its tensors' shapes.

  Args:
    tensors: by name; arrays, or objects with their shape.
    top: prefix of every name.

  Raises:
    ValueError: if they are no Swin.
    KeyError: naming a tensor that is missing.
  """
  patch = tensors.get(f"{top}patch_embed.proj.weight")
  depths = stage_depths(
    tensors, re.escape(top) + r"layers\.(\d+)\.blocks\.(\d+)\."
  )
  if patch is None or not depths:
    raise ValueError(f"no Swin: no tensors {top}patch_embed and {top}layers.")
  first = [f"{top}layers.{s}.blocks.0." for s in range(len(depths))]
  tables = [
    tensors[f"{b}attn.relative_position_bias_table"].shape for b in first
  ]
  widths = tuple(tensors[f"{b}norm1.weight"].shape[0] for b in first)
  windows = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
  mask = tensors.get(f"{top}layers.0.blocks.1.attn_mask")
  # Without a mask, one window covers the first stage's map.
  resolution = windows[0] * (1 if mask is None else math.isqrt(mask.shape[0]))
  hidden = tensors[f"{first[-1]}mlp.fc1.weight"].shape[0]
  return VisionConfig(
    encoder="swin",
    image_size=resolution * patch.shape[-1],
    patch_size=patch.shape[-1],
    width=widths[-1],
    depth=sum(depths),
    num_heads=tables[-1][1],
    mlp_dim=hidden,
    norm_eps=1e-5,
    stage_depths=depths,
    stage_widths=widths,
    stage_heads=tuple(heads for _, heads in tables),
    window_size=windows[0],
  )
