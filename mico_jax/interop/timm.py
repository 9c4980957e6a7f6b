"""Vision transformers of timm: plain ones, those of CLIP, and EVA-01.

The classification head is kept beside the parameters. What no tensor tells is
in `config.json` of timm's repositories: statistics of pixels, the activation
by the name of the architecture.

Source: https://github.com/huggingface/pytorch-image-models (names of the
weights).
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mico_jax.config import ModelConfig, VisionConfig
from mico_jax.interop import towers
from mico_jax.interop.entries import Entry, layer_norm, linear
from mico_jax.interop.source import Source, find_vocabulary
from mico_jax.interop.tensors import (
  Tensors,
  WeightsError,
  open_tensors,
  renamed,
)
from mico_jax.modalities import spatial

TOP, BLOCKS = ("vision",), ("vision", "blocks")
IGNORED = {
  r"^head\.": "a classification head",
  r"\.k_bias$": "a buffer of zeros",
}
# Mean of the pixels in timm's config -> mode with those statistics.
MODES: Mapping[tuple[float, ...], str] = {
  spatial.HALF[0]: "plain",
  spatial.IMAGENET[0]: "mico_demo",
  spatial.CLIP[0]: "mico_train",
}


def table(config: ModelConfig) -> Iterator[Entry]:
  """Where the encoder's parameters come from.

  Raises:
    ValueError: for options that timm's plain class does not have.
  """
  vision = config.vision
  if vision.encoder != "vit" or vision.sub_norm or vision.mlp == "swiglu":
    raise ValueError(
      f"no names in timm for encoder={vision.encoder!r} with "
      f"sub_norm={vision.sub_norm}, mlp={vision.mlp!r} (config.model.vision)."
    )
  depth, block = vision.depth, "blocks.{i}."
  attn, mlp = (*BLOCKS, "attn"), (*BLOCKS, "mlp")
  yield Entry((*TOP, "cls_token"), ("cls_token",), lead=2)
  yield Entry((*TOP, "pos_embed"), ("pos_embed",), lead=1)
  patch = (*TOP, "patch_embed", "proj")
  yield Entry((*patch, "kernel"), ("patch_embed.proj.weight",), "conv")
  if vision.patch_bias:
    yield Entry((*patch, "bias"), ("patch_embed.proj.bias",))
  qkv = (*attn, "qkv")
  yield from linear(qkv, [block + "attn.qkv"], depth, vision.qkv_bias == "all")
  if vision.qkv_bias == "qv":
    for bias in ("q_bias", "v_bias"):
      yield Entry((*qkv, bias), (f"{block}attn.{bias}",), layers=depth)
  yield from linear((*attn, "proj"), [block + "attn.proj"], depth)
  for fc in ("fc1", "fc2"):
    yield from linear((*mlp, fc), [f"{block}mlp.{fc}"], depth)
  for i in (1, 2):
    yield from layer_norm((*BLOCKS, f"norm{i}"), f"{block}norm{i}", depth)
    if vision.layer_scale:
      name = f"{block}ls{i}.gamma"
      yield Entry((*BLOCKS, f"scale{i}"), (name,), layers=depth)
  if vision.pre_norm:
    yield from layer_norm((*TOP, "pre_norm"), "norm_pre")
  yield from layer_norm((*TOP, "norm"), "norm")


def read(path: pathlib.Path) -> Source:
  """Reads a file, or a folder with one and its config.json.

  Raises:
    WeightsError: if it holds no vision transformer of a kind of `table`.
  """
  file = towers.weights_file(path)
  tensors = renamed(open_tensors(file), towers.without_prefix)
  settings = towers.read_json(file.parent / "config.json")
  vision = _config(tensors, file, str(settings.get("architecture", "")))
  mode, notes = "plain", ()
  mean = (settings.get("pretrained_cfg") or {}).get("mean")
  if mean is not None:
    close = [m for m in MODES if max(map(_gap, m, mean)) < 1e-4]
    if not close:
      raise WeightsError(f"config.json: no preprocessing with mean {mean}.")
    mode = MODES[close[0]]
  else:
    notes = (
      "no config.json beside the weights: pixels are taken to be -1..1 (mode "
      "plain); set --config.data.inputs otherwise",
    )
  return Source(
    file=file,
    tensors=tensors,
    config=towers.run_config(file.stem, vision, mode),
    parts=("vision",),
    ignored=IGNORED,
    vocabulary=find_vocabulary(file.parent),
    hint="Is it a vision transformer with a class token?",
    positions="bicubic",
    notes=notes,
  )


def _gap(one: float, other: float) -> float:
  return abs(one - other)


def _config(
  tensors: Tensors, file: pathlib.Path, architecture: str
) -> VisionConfig:
  """The encoder, from names and shapes."""
  try:
    _, length, width = tensors["pos_embed"].shape
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    mlp_dim = tensors["blocks.0.mlp.fc1.weight"].shape[0]
  except (KeyError, ValueError, IndexError) as error:
    raise WeightsError(
      f"{file}: no vision transformer of timm: {error} is missing or of "
      "another form; see --from for other kinds of weights."
    ) from error
  if math.isqrt(length - 1) ** 2 != length - 1:
    raise WeightsError(
      f"{file}: pos_embed has {length} rows, expected a class row plus a "
      "square grid."
    )
  has = tensors.__contains__
  bias = "all" if has("blocks.0.attn.qkv.bias") else "none"
  options: dict[str, Any] = {}
  if has("norm_pre.weight"):  # as in CLIP
    options = {"pre_norm": True, "norm_eps": 1e-5}
  if "quickgelu" in architecture:
    options["mlp"] = "quick_gelu"
  blocks = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
  return VisionConfig(
    image_size=math.isqrt(length - 1) * patch,
    patch_size=patch,
    width=width,
    depth=1 + max(int(m[1]) for m in blocks if m),
    num_heads=max(width // towers.HEAD_DIMS.get(width, 64), 1),
    mlp_dim=mlp_dim,
    qkv_bias="qv" if has("blocks.0.attn.q_bias") else bias,
    patch_bias=has("patch_embed.proj.bias"),
    layer_scale=1e-5 if has("blocks.0.ls1.gamma") else 0.0,
    **options,
  )
