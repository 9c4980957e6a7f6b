"""Case pos_resize: position and frame tables at other sizes, old names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from mico_jax.interop.names import mico as official
from mico_jax.models import resize
from mico_jax.testing.golden.case import Check, Folder, Missing


def pos_resize(folder: Folder) -> Iterator[Check | Missing]:
  """Every stored table; the nearest index table; renamed keys."""
  inputs, outputs = folder.inputs, folder.outputs
  settings = {case["tag"]: case for case in folder.config["cases"]}
  for name, want in outputs.items():
    if name == "nearest_index_table":
      yield Check(name, _nearest_table(want), want, 0.0)
      continue
    tag, _, table = name.partition(".")
    case = settings[tag]
    if table == "pretrained_evaclip_bicubic_pos_embed":
      source = inputs[f"{tag}.vision_encoder.visual.pos_embed"]
      got = resize.resize_positions(
        source[0], case["new_grid"], method="bicubic"
      )[None]
    elif table.endswith("pos_embed"):
      got = resize.resize_positions(inputs[name][0], case["new_grid"])[None]
    elif table.endswith("positional_embedding"):
      got = resize.resize_positions(inputs[name], case["new_grid"])
    elif table.endswith("_frame_embedding"):
      key = f"max_{table.removesuffix('_frame_embedding')}_sample_num"
      got = inputs[name]
      if key in case:  # the original leaves the depth table as it is
        got = resize.resize_frames(got[0], case[key])[None]
    else:
      yield Missing(name, f"a resize of {table}")
      continue
    yield Check(name, got, want)
  renamed = folder.config.get("key_renaming", [])
  if renamed:
    got = np.array([official.rename(r["old"]) for r in renamed])
    yield Check("key_renaming", got, np.array([r["new"] for r in renamed]), 0.0)


def _nearest_table(
  want: Int[np.ndarray, "I O K"],
) -> Int[np.ndarray, "I O K"]:
  """Our indices in the layout [in, out, k], -1 where there is none."""
  got = np.full_like(want, -1)
  for old in range(1, want.shape[0]):
    for new in range(1, want.shape[1]):
      got[old, new, :new] = resize.nearest_indices(old, new)[: want.shape[2]]
  return got
