"""Case ckpt_layout: names, shapes and dtypes of full-size official files.

The config is read from the stored shapes and settings as the importer reads a
official folder; what the export would write of that model must be the stored
layout, entry by entry. No array of full size is allocated.
"""

from __future__ import annotations

import functools
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from mico_jax.config import Config
from mico_jax.interop.exporting import official_folder
from mico_jax.interop.files.tensors import Tensor, Tensors
from mico_jax.interop.importing import mico_folder
from mico_jax.interop.names import mico_vision
from mico_jax.models import build
from mico_jax.testing.golden.case import Check, Folder, Missing

# What the original reads from hps.json: its loader and its model.
SETTINGS = (
  "vision_encoder_type",
  "vision_resolution",
  "frame_embedding_type",
  "max_vision_sample_num",
  "max_audio_sample_num",
  "max_depth_sample_num",
  "checkpointing",
  "contra_dim",
  "pool_video",
  "beam_size",
  "itm_ratio",
  "max_caption_len",
  "max_omni_caption_len",
  "max_subtitle_len",
)


def ckpt_layout(folder: Folder) -> Iterator[Check | Missing]:
  """Every layout*.json with the settings of hps.example.json."""
  stored = _read(folder.path / "hps.example.json")["model_cfg"]
  for path in sorted(folder.path.glob("layout*.json")):
    layout = _read(path)
    kind = layout["vision_encoder_type"]
    settings = {**stored, "vision_encoder_type": kind}
    tensors = _tensors(layout["entries"], kind)
    config = mico_folder.config_of(tensors, settings, name=path.stem, file=path)
    yield from _content(path.stem, layout, config)
    written = official_folder.hps(config)["model_cfg"]
    keys = [key for key in SETTINGS if key in settings]
    keys += ["tiny_vision", "tiny_bert"]  # only of other sizes
    ours, theirs = (
      [f"{key}={json.dumps(x.get(key))}" for key in keys]
      for x in (written, settings)
    )
    yield from _same(f"{path.stem} settings", ours, theirs)


def _read(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def _zeros(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "..."]:
  """An array of any size that takes no memory."""
  return np.broadcast_to(np.zeros((), dtype), shape)


def _tensors(entries: Mapping[str, Any], kind: str) -> Tensors:
  """The entries as tensors of a file.

  A layout holds no values, but those of the rotary tables determine the
  pretraining grid; they are taken from the encoder's type.
  """
  encoder = official_folder.ENCODER_TYPES.get(kind)
  tables = {} if encoder is None else mico_vision.rotary_buffers(encoder)
  tensors: Tensors = {}
  for name, entry in entries.items():
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    load = functools.partial(_zeros, shape, dtype)
    if name in tables and tables[name].shape == shape:
      load = functools.partial(tables.__getitem__, name)
    tensors[name] = Tensor(name, shape, dtype, load)
  return tensors


def _content(
  label: str, layout: Mapping[str, Any], config: Config
) -> Iterator[Check]:
  """Entries that the export writes, and those that the importer ignores."""
  abstract = build(config.model).abstract_params()
  params = jax.tree.map(lambda leaf: _zeros(leaf.shape, leaf.dtype), abstract)
  items, ties = official_folder.items(params, config.model)
  ours = [_line(x.name, x.shape, x.dtype) for x in items]
  theirs = [
    _line(name, entry["shape"], entry["dtype"])
    for name, entry in layout["entries"].items()
  ]
  yield from _same(f"{label} entries", ours, theirs)
  groups = [sorted(group) for group in layout["shared_tensor_groups"]]
  yield from _same(
    f"{label} shared tensors",
    [" = ".join(sorted(pair)) for pair in ties.items()],
    [" = ".join(group) for group in groups],
  )
  # Copies and rotary tables, which a file repeats, count in neither.
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
  want = layout["parameter_count_unique_tensors"]
  yield Check(f"{label} parameters", count, want, 0.0)
  text_tower = list(layout["optional_text_tower_keys"])
  ignored = [x for x in text_tower if _any(mico_folder.IGNORED, x)]
  yield from _same(f"{label} text tower left out", ignored, text_tower)


def _line(name: str, shape: Any, dtype: Any) -> str:
  return f"{name} {list(shape)} {np.dtype(dtype).name}"


def _any(patterns: Mapping[str, str], name: str) -> bool:
  return any(re.search(pattern, name) for pattern in patterns)


def _same(label: str, ours: list[str], theirs: list[str]) -> Iterator[Check]:
  """One line for all, and one for each that only one side has."""
  got, want = (np.asarray(sorted(x), np.str_) for x in (ours, theirs))
  yield Check(f"{label} ({len(theirs)})", got, want, 0.0)
  for line in sorted({*ours} - {*theirs}):
    yield Check(f"{label}: only ours {line}", line, "", 0.0)
  for line in sorted({*theirs} - {*ours}):
    yield Check(f"{label}: only stored {line}", "", line, 0.0)
