"""Swin, ConvNeXt V2 and UniRepLKNet in the names of PyTorch checkpoints.

One table per family says for each of our parameters which tensors hold it, one
per stacked block; both directions follow from it and are exact. Layouts:

  "released"  Swin as a MiCo checkpoint names it (`vision_encoder.`), with its
              buffers; UniRepLKNet's own files in merged form
              (`mico_jax.interop.names.unireplknet.merge` makes it).
  "timm"      Swin and ConvNeXt V2 as timm names them.

Classification heads of such files are not ours: `HEADS` names them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.aliases import Params
from mico_jax.config import VisionConfig
from mico_jax.interop.names import weight_map as tables
from mico_jax.models import convnext, swin, unireplknet
from mico_jax.models.encoders import ENCODERS

SIZES: Mapping[str, Mapping[str, VisionConfig]] = {
  "swin": swin.SIZES,
  "convnext": convnext.SIZES,
  "unireplknet": unireplknet.SIZES,
}
SWIN_PREFIX = "vision_encoder."
HEADS = re.compile(r"^head\.(fc\.)?(weight|bias)$")
BUFFERS = re.compile(r"(^|\.)(relative_position_index|attn_mask)$")


@dataclasses.dataclass(frozen=True)
class Entry:
  """One of our parameters and the tensors that hold it.

  Attributes:
    path: of our parameter, below the encoder.
    names: one tensor, or one per stacked block.
    kind: "same"; "linear": transposed; "conv": (out, in, rows, columns);
      "patch": that too, ours is flattened to [rows * columns * in, out];
      "grn": (1, 1, 1, channels).
    stacked: whether ours has the blocks as axis 0.
  """

  path: tuple[str, ...]
  names: tuple[str, ...]
  kind: str = "same"
  stacked: bool = False


def _pair(
  path: tuple[str, ...],
  names: list[str],
  kind: str,
  *,
  bias: bool = True,
  stacked: bool = False,
) -> Iterator[Entry]:
  """A kernel, or a scale, with its bias."""
  first = "scale" if kind == "same" else "kernel"
  weights = tuple(f"{n}.weight" for n in names)
  yield Entry((*path, first), weights, kind, stacked)
  if bias:
    biases = tuple(f"{n}.bias" for n in names)
    yield Entry((*path, "bias"), biases, "same", stacked)


def _swin(config: VisionConfig, layout: str) -> Iterator[Entry]:
  top = SWIN_PREFIX if layout == "released" else ""
  # The original counts downsampling to the stage before, timm to the one after.
  later = 1 if layout == "released" else 0
  stem = f"{top}patch_embed."
  yield from _pair(("stem", "patch_embed", "proj"), [stem + "proj"], "patch")
  yield from _pair(("stem", "norm"), [stem + "norm"], "same")
  for s, depth in enumerate(config.stage_depths):
    stage = (f"stage{s}",)
    if s:
      name = f"{top}layers.{s - later}.downsample."
      path = (*stage, "downsample")
      yield from _pair((*path, "norm"), [name + "norm"], "same")
      reduce = [name + "reduction"]
      yield from _pair((*path, "reduction"), reduce, "linear", bias=False)
    blocks = [f"{top}layers.{s}.blocks.{j}." for j in range(depth)]
    for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
      path = (*stage, "blocks", *part.split("."))
      yield from _pair(path, [b + part for b in blocks], "linear", stacked=True)
    for part in ("norm1", "norm2"):
      path = (*stage, "blocks", part)
      yield from _pair(path, [b + part for b in blocks], "same", stacked=True)
    tables = tuple(f"{b}attn.relative_position_bias_table" for b in blocks)
    path = (*stage, "blocks", "attn", "position_bias")
    yield Entry(path, tables, stacked=True)
  yield from _pair(("norm",), [top + "norm"], "same")


def _convnext(config: VisionConfig, layout: str) -> Iterator[Entry]:
  del layout
  yield from _pair(("stem", "patch_embed", "proj"), ["stem.0"], "patch")
  yield from _pair(("stem", "norm"), ["stem.1"], "same")
  for s, depth in enumerate(config.stage_depths):
    stage = (f"stage{s}",)
    if s:
      name, path = f"stages.{s}.downsample.", (*stage, "downsample")
      yield from _pair((*path, "norm"), [name + "0"], "same")
      yield from _pair((*path, "reduction"), [name + "1"], "patch")
    blocks = [f"stages.{s}.blocks.{j}." for j in range(depth)]
    for ours, theirs, kind in (
      ("conv", "conv_dw", "conv"),
      ("norm", "norm", "same"),
      ("fc1", "mlp.fc1", "linear"),
      ("grn", "mlp.grn", "same"),
      ("fc2", "mlp.fc2", "linear"),
    ):
      names = [b + theirs for b in blocks]
      yield from _pair((*stage, "blocks", ours), names, kind, stacked=True)
  yield from _pair(("norm",), ["head.norm"], "same")


def _unireplknet(config: VisionConfig, layout: str) -> Iterator[Entry]:
  del layout
  stem = "downsample_layers.0."
  for i, at in ((1, 0), (2, 3)):
    yield from _pair(("stem", f"conv{i}"), [f"{stem}{at}"], "conv")
    yield from _pair(("stem", f"norm{i}"), [f"{stem}{at + 1}"], "same")
  for s, depth in enumerate(config.stage_depths):
    stage = (f"stage{s}",)
    if s:
      name, path = f"downsample_layers.{s}.", (*stage, "downsample")
      yield from _pair((*path, "conv"), [name + "0"], "conv")
      yield from _pair((*path, "norm"), [name + "1"], "same")
    sizes = config.stage_kernels[s]
    for i, size in enumerate(sizes):
      path = (*stage, "blocks", f"block{i}")
      blocks = [f"stages.{s}.{j}." for j in range(i, depth, len(sizes))]
      conv = "dwconv.lk_origin" if size >= 7 else "dwconv"
      for ours, theirs, kind in (
        (("conv",), conv, "conv"),
        (("gate", "fc1"), "se.down", "linear"),
        (("gate", "fc2"), "se.up", "linear"),
        (("fc1",), "pwconv1.1", "linear"),
        (("fc2",), "pwconv2.0", "linear"),
      ):
        names = [b + theirs for b in blocks]
        yield from _pair((*path, *ours), names, kind, stacked=True)
      names = [b + "act.1.gamma" for b in blocks]
      yield Entry((*path, "grn", "scale"), tuple(names), "grn", stacked=True)
  yield from _pair(("norm",), ["norm"], "same")


TABLES: Mapping[str, Callable[[VisionConfig, str], Iterator[Entry]]] = {
  "swin": _swin,
  "convnext": _convnext,
  "unireplknet": _unireplknet,
}
LAYOUTS: Mapping[str, tuple[str, ...]] = {
  "swin": ("released", "timm"),
  "convnext": ("timm",),
  "unireplknet": ("released",),
}


def entries(config: VisionConfig, *, layout: str) -> list[Entry]:
  """The table of an encoder.

  Raises:
    ValueError: for an encoder or a layout that is not here.
  """
  if layout not in LAYOUTS.get(config.encoder, ()):
    known = "; ".join(f"{k}: {', '.join(v)}" for k, v in LAYOUTS.items())
    raise ValueError(
      f"no names for encoder={config.encoder!r} in {layout=}; known: {known}."
    )
  return list(TABLES[config.encoder](config, layout))


# Our kinds -> those of the tables that imports read by.
_KINDS = {"same": "same", "linear": "linear", "patch": "conv", "conv": "filter"}


def import_entries(config: VisionConfig, *, layout: str) -> list[tables.Entry]:
  """The table of a Swin or a ConvNeXt V2 as imports of weights take it.

  Raises:
    ValueError: for an encoder or a layout that is not here, or whose blocks
      are not numbered one by one.
  """
  found = []
  for entry in entries(config, layout=layout):
    names, layers = entry.names, 0
    if entry.stacked:
      name, layers = names[0].replace(".blocks.0.", ".blocks.{i}."), len(names)
      if names != tuple(name.format(i=i) for i in range(layers)):
        raise ValueError(f"no import of encoder={config.encoder!r}.")
      names = (name,)
    found.append(
      tables.Entry(
        ("vision", *entry.path),
        names,
        _KINDS[entry.kind],
        layers=layers,
        side=0 if "patch_embed" in entry.path else 2,  # else downsampling
      )
    )
  return found


# --------------------------------------------------------------------- arrays
def _shapes(config: VisionConfig) -> Mapping[str, Any]:
  """The encoder's parameters by shape."""
  encoder = ENCODERS[config.encoder](config)
  encoder.check()
  size = config.image_size
  boxed = jax.eval_shape(
    encoder.init, jax.random.key(0), jnp.zeros((1, size, size, 3))
  )["params"]
  return nn.meta.unbox(boxed)


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  for key in path:
    tree = tree[key]
  return tree


def _import(value: np.ndarray, entry: Entry) -> np.ndarray:
  if entry.kind == "linear":  # some write it as a 1 x 1 convolution
    return (value[:, :, 0, 0] if value.shape[2:] == (1, 1) else value).T
  if entry.kind in ("same", "grn"):
    return value.reshape(-1) if entry.kind == "grn" else value
  value = value.transpose(2, 3, 1, 0)
  return value if entry.kind == "conv" else value.reshape(-1, value.shape[-1])


def _export(value: np.ndarray, entry: Entry) -> np.ndarray:
  if entry.kind == "linear":
    return value.T[:, :, None, None] if "gate" in entry.path else value.T
  if entry.kind in ("same", "grn"):
    return value[None, None, None] if entry.kind == "grn" else value
  if entry.kind == "patch":
    channels = 3 if "patch_embed" in entry.path else value.shape[0] // 4
    side = math.isqrt(value.shape[0] // channels)
    value = value.reshape(side, side, channels, -1)
  return value.transpose(3, 2, 0, 1)


def from_tensors(
  tensors: Mapping[str, np.ndarray], config: VisionConfig, *, layout: str
) -> dict[str, Any]:
  """The encoder's parameters out of a checkpoint's tensors.

  Args:
    tensors: by name; classification heads are left out, buffers of Swin
      compared with what the config says.
    config: of the encoder.
    layout: whose names they are.

  Raises:
    ValueError: naming missing and left-over tensors, a wrong shape, or a buffer
      that says another geometry.
  """
  wanted = _shapes(config)
  left = {n: v for n, v in tensors.items() if not HEADS.search(n)}
  check_buffers(left, config)
  left = {n: v for n, v in left.items() if not BUFFERS.search(n)}
  table = entries(config, layout=layout)
  missing = [n for e in table for n in e.names if n not in left]
  known = {n for e in table for n in e.names}
  extra = [n for n in left if n not in known]
  if missing or extra:
    raise ValueError(
      f"the tensors do not fit encoder={config.encoder!r}: missing "
      f"{missing[:8]} ({len(missing)}), left over {extra[:8]} ({len(extra)})."
    )
  tree: dict[str, Any] = {}
  for entry in table:
    want = tuple(_at(wanted, entry.path).shape)
    values = [_import(np.asarray(left[n]), entry) for n in entry.names]
    for name, value in zip(entry.names, values, strict=True):
      if value.shape != (want[1:] if entry.stacked else want):
        raise ValueError(
          f"{name}: shape {left[name].shape} is {value.shape} in our layout; "
          f"the config wants {want[1:] if entry.stacked else want}."
        )
    value = np.stack(values) if entry.stacked else values[0]
    node = tree
    for key in entry.path[:-1]:
      node = node.setdefault(key, {})
    node[entry.path[-1]] = np.asarray(value, np.float32, order="C")
  return tree


def to_tensors(
  params: Params, config: VisionConfig, *, layout: str, buffers: bool = True
) -> dict[str, np.ndarray]:
  """A checkpoint's tensors out of the encoder's parameters.

  Args:
    params: nested dict of arrays (or gradients).
    config: of the encoder.
    layout: whose names to use.
    buffers: also write the index and mask buffers of a released Swin.
  """
  found: dict[str, np.ndarray] = {}
  for entry in entries(config, layout=layout):
    value = np.asarray(_at(params, entry.path))
    values = list(value) if entry.stacked else [value]
    for name, one in zip(entry.names, values, strict=True):
      found[name] = np.asarray(_export(one, entry), order="C")
  if buffers and config.encoder == "swin" and layout == "released":
    found |= swin_buffers(config)
  return found


def tensor_shapes(
  config: VisionConfig, *, layout: str
) -> dict[str, tuple[int, ...]]:
  """Name -> shape of every parameter's tensor, without allocating any."""
  wanted = _shapes(config)
  found = {}
  for entry in entries(config, layout=layout):
    shape = _at(wanted, entry.path).shape
    shape = shape[1:] if entry.stacked else shape
    one = np.broadcast_to(np.zeros((), np.float32), shape)  # no memory
    for name in entry.names:
      found[name] = _export(one, entry).shape
  return found


# -------------------------------------------------------------------- buffers
def swin_buffers(config: VisionConfig) -> dict[str, np.ndarray]:
  """The buffers of a released Swin: index tables and shifted blocks' masks."""
  found: dict[str, np.ndarray] = {}
  encoder = swin.Swin(config)
  for stage in encoder.stages:
    window = swin.window_of(config, stage.resolution)
    index = swin.relative_index(window).astype(np.int64)
    for j in range(stage.depth):
      block = f"{SWIN_PREFIX}layers.{stage.index}.blocks.{j}."
      found[f"{block}attn.relative_position_index"] = index
      if j % 2 and stage.resolution > window:
        found[f"{block}attn_mask"] = swin.shift_mask(
          stage.resolution, window, window // 2
        )
  return found


def check_buffers(tensors: Mapping[str, Any], config: VisionConfig) -> None:
  """Compares the buffers in a file with those that the config says.

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
        f"{name}: not what image_size={config.image_size}, patch_size="
        f"{config.patch_size} and window_size={config.window_size} give; set "
        "config.model.vision as the file was trained."
      )


def swin_config(
  tensors: Mapping[str, Any], *, top: str = SWIN_PREFIX
) -> VisionConfig:
  """The config of a Swin, from its tensors' shapes.

  Args:
    tensors: by name; arrays, or what has their shape.
    top: what stands before every name.

  Raises:
    ValueError: if the tensors are none.
    KeyError: naming a tensor that is missing.
  """
  patch = tensors.get(f"{top}patch_embed.proj.weight")
  found: dict[int, int] = {}
  for name in tensors:
    match = re.match(re.escape(top) + r"layers\.(\d+)\.blocks\.(\d+)\.", name)
    if match:
      stage, block = int(match[1]), int(match[2])
      found[stage] = max(found.get(stage, 0), block + 1)
  if patch is None or not found:
    raise ValueError(f"no Swin: no tensors {top}patch_embed and {top}layers.")
  stages = range(len(found))
  first = [f"{top}layers.{s}.blocks.0." for s in stages]
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
    depth=sum(found.values()),
    num_heads=tables[-1][1],
    mlp_dim=hidden,
    norm_eps=1e-5,
    stage_depths=tuple(found[s] for s in stages),
    stage_widths=widths,
    stage_heads=tuple(heads for _, heads in tables),
    window_size=windows[0],
  )
