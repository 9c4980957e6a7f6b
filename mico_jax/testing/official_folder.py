"""Tiny official folders and single towers of random weights, for tests."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from mico_jax.checkpoint import manifest
from mico_jax.config import ModelConfig, TextConfig, VisionConfig
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.interop.names import mico, staged_vision
from mico_jax.interop.names.weight_map import to_theirs
from mico_jax.models import build
from mico_jax.testing.tiny_model import tiny_model, tiny_vision

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrst")
MODEL = tiny_model(
  vision={
    "image_size": 16,
    "patch_size": 8,
    "width": 8,
    "mlp_dim": 12,
    "clip_embed_dim": 6,
  },
  text={
    "vocab_size": len(PIECES),
    "width": 6,
    "mlp_dim": 10,
    "max_positions": 48,
    "dropout": TextConfig.dropout,
  },
  embed_dim=5,
  heads=("t", "s", "v", "a", "d", "va", "id", "vs", "vas"),
  frame_table={"video": 4, "audio": 2, "depth": 1},
  normals_as="depth",
)
# Encoders of single towers: of EVA-CLIP, of CLIP, of timm.
EVA = tiny_vision(
  image_size=16,
  patch_size=8,
  width=64,
  num_heads=1,
  mlp_dim=12,
  clip_embed_dim=6,
)
CLIP = dataclasses.replace(
  EVA,
  norm_eps=1e-5,
  mlp="quick_gelu",
  qkv_bias="all",
  patch_bias=False,
  pre_norm=True,
  clip_embed_bias=False,
)
PLAIN = dataclasses.replace(EVA, qkv_bias="all", clip_embed_dim=0)
HPS: Mapping[str, Any] = {
  "vision_encoder_type": "evaclip01_giant",
  "frame_embedding_type": "adaptive",
  "vision_resolution": 16,
  "contra_dim": 5,
  "max_vision_sample_num": 4,
  "max_audio_sample_num": 2,
  "max_depth_sample_num": 1,
  "max_caption_len": 12,
  "max_omni_caption_len": 12,
  "max_subtitle_len": 12,
  "beam_size": 2,
  "tiny_vision": {"width": 8, "head_width": 4, "layers": 2, "patch_size": 8},
  "tiny_bert": {"num_attention_heads": 2},
}
OLD = (("vision_encoder.", "evaclip_model."), ("vision_", "video_"))


def tensors(
  seed: int = 0, *, mixed: bool = True, model: ModelConfig = MODEL
) -> dict[str, np.ndarray]:
  """Random tensors under the names of an older official file.

  Args:
    seed: of the values.
    mixed: store a third of them as float16 and a third as bfloat16.
    model: whose tensors.
  """
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda like: rng.normal(size=like.shape).astype(np.float32),
    build(model).abstract_params(),
  )
  tensors = {}
  dtypes = (np.float32, np.float16, ml_dtypes.bfloat16)
  official = mico.to_official(params, model)
  for i, (name, value) in enumerate(official.items()):
    if name in mico.TIED.values():
      value = value.astype(np.float16)
    elif value.dtype == np.float32 and mixed and name not in mico.TIED:
      value = value.astype(dtypes[i % 3])
    tensors[name] = value
  for copy, name in mico.TIED.items():
    tensors[copy] = tensors[name]
  for new, old in OLD:
    tensors = {
      name.replace(new, old) if name.startswith(new) else name: value
      for name, value in tensors.items()
    }
  return tensors


def tower_tensors(
  form: str, model: ModelConfig, prefix: str = "", seed: int = 1
) -> dict[str, np.ndarray]:
  """Random tensors of a single tower, by the names in a file, float16.

  Args:
    form: key of `FORMATS`.
    model: whose tower.
    prefix: of the table's names that a file has not.
    seed: of the values.
  """
  rng = np.random.default_rng(seed)
  shapes = manifest.flatten(build(model).abstract_params())
  tensors = {}
  for entry in FORMATS[form].table(model):
    value = rng.normal(size=shapes["/".join(entry.path)].shape)
    value = value.astype(np.float16)
    for i in range(max(entry.layers, 1)):
      layer = value[i] if entry.layers else value
      parts = np.split(layer, len(entry.names), -1) if layer.ndim else [layer]
      for name, part in zip(entry.names, parts, strict=True):
        name = name.format(i=i).removeprefix(prefix)
        size = model.vision.patch_size
        tensors[name] = to_theirs(part, entry, patch_size=size)
  return tensors


def write(
  folder: pathlib.Path,
  values: Mapping[str, np.ndarray],
  *,
  hps: Mapping[str, Any] | None = HPS,
  step: int = 12,
) -> pathlib.Path:
  """Writes a folder with `ckpt/`, `log/` and vocab.txt; returns it.

  Args:
    folder: to write.
    values: tensors by name.
    hps: `model_cfg` of log/hps.json; None: no such file.
    step: of the file's name.
  """
  (folder / "ckpt").mkdir(parents=True, exist_ok=True)
  name = f"model_step_{step}.safetensors"
  safetensors_writer.write_arrays(folder / "ckpt" / name, values)
  (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
  if hps is not None:
    (folder / "log").mkdir(exist_ok=True)
    text = json.dumps({"model_cfg": hps})
    (folder / "log" / "hps.json").write_text(text)
  return folder


def staged_zeros(vision: VisionConfig, layout: str) -> dict[str, np.ndarray]:
  """Zeros for every tensor of an encoder in stages, in a layout's names."""
  encoder = build(ModelConfig(vision=vision)).abstract_params()["vision"]
  zeros = jax.tree.map(
    lambda x: np.broadcast_to(np.zeros((), np.float32), x.shape), encoder
  )
  return staged_vision.to_tensors(zeros, vision, layout=layout, buffers=False)
