"""Surface normals as RGB: (n + 1) / 2 with R right, G up, B to the camera."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from mico_jax.modalities.augmentation import COLS
from mico_jax.modalities.base import Alias, ArraySpec, Caption, Modality
from mico_jax.modalities.media import decode_normals, example_frames
from mico_jax.modalities.spatial import (
  HALF,
  crop_flip,
  demo_mode,
  frame_mode,
  modes,
  resize_smooth,
  squash,
)


def mirror(
  x: UInt8[np.ndarray, "T Y X 3"], axis: int
) -> UInt8[np.ndarray, "..."]:
  """Negates the x (y) components of maps flipped left to right (over)."""
  x = x.copy()
  x[..., COLS - axis] = 255 - x[..., COLS - axis]
  return x


NORMAL = Modality(
  key="normal",
  letter="n",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X", "C"), "uint8", "(n + 1) / 2", (0, 255)),
  decode=decode_normals,
  modes=modes(
    frame_mode("plain", squash, resize_smooth, HALF, description="squash"),
    frame_mode(
      "crop_flip",
      crop_flip,
      resize_smooth,
      HALF,
      on_flip=mirror,
      description="crop and flip; x changes sign with the flip",
    ),
    demo_mode(),
  ),
  default_mode="plain",
  example=example_frames,
  context_type="normal",
  alias=Alias(option="normals_as", key="depth"),
  caption=Caption("normal", fallback=("omni", "vision")),
)
