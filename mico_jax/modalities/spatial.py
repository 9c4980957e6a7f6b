"""Modes of the picture modalities: frames, placed, resized and normalised.

In NumPy and Pillow, as data workers load it. Their parts (`sampling`,
`placing`, `resizing`) are used from here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mico_jax.modalities.augmentation import COLOR, COLS, VIEW, Augmentation
from mico_jax.modalities.base import Geometry, Mode
from mico_jax.modalities.placing import (
  DRAWING,
  ArrayClip,
  Clip,
  Place,
  augmented_clip,
  crop_flip,
  place_clip,
  shift,
  squash,
)
from mico_jax.modalities.resizing import (
  RESIZES,
  Resize,
  resize_axis,
  resize_bilinear,
  resize_exact,
  resize_nearest,
  resize_official,
  resize_smooth,
)
from mico_jax.modalities.sampling import sample_frames

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # maps 0..1 to -1..1

Stats = tuple[tuple[float, ...], tuple[float, ...]]
# (flipped frames, axis) -> frames with corrected values
OnFlip = Callable[[np.ndarray, int], np.ndarray]


def normalise(x: Any, stats: Stats, xp: Any) -> Any:
  """(x - mean) / std over the last axis of float32 values in [0, 1]."""
  ones = (1,) * (x.ndim - 1)
  mean = np.asarray(stats[0], np.float32).reshape((*ones, 3))
  std = np.asarray(stats[1], np.float32).reshape((*ones, 3))
  return (x - xp.asarray(mean)) / xp.asarray(std)


def turn_vectors(
  x: Shaped[np.ndarray, "T Y X 3"], axis: int
) -> Shaped[np.ndarray, "T Y X 3"]:
  """`on_flip` of vectors (x, y, z) as colours, 0..255 or 0..1.

  Negates x of maps flipped along columns, y of those flipped along rows.
  """
  x, most = x.copy(), 255 if x.dtype == np.uint8 else 1
  x[..., COLS - axis] = most - x[..., COLS - axis]
  return x


def frame_mode(
  name: str,
  place: Place,
  resize: Resize,
  stats: Stats,
  *,
  eval_mode: str = "",
  description: str = "",
  on_flip: OnFlip | None = None,
  dtype: str = "",
  color: bool = False,
) -> Mode:
  """Makes a preprocessing mode of uint8 frames [T, Y, X, 3].

  Args:
    name: of the mode.
    place: crops and resizes frames to the encoder's size.
    resize: used by `place`.
    stats: mean and standard deviation of the channels, of values in [0, 1].
    eval_mode: deterministic mode for evaluation; "": itself.
    description: one line for tables.
    on_flip: corrects the values of frames that are flipped along an axis
      (`augmentation.ROWS` or `COLS`), such as the x and y of normals.
    dtype: of the host's array; "": uint8, "float32": values in [0, 1].
    color: whether the channels are colours, which transforms may change.
  """
  color = color and not dtype
  resizes = RESIZES if color else {}
  mean = np.asarray(stats[0])
  blank = mean if dtype else np.rint(255 * mean)
  seen = place not in DRAWING

  def host(
    clip: Clip,
    geometry: Geometry,
    rng: np.random.Generator | None = None,
    *,
    augment: Augmentation | None = None,
  ) -> Shaped[np.ndarray, "T Y X 3"]:
    frames, view = augmented_clip(
      *(clip, geometry, rng, place, resize, augment if seen else None, resizes)
    )
    if on_flip is not None:
      for axis in view.flips:
        frames = on_flip(frames, axis)
    if augment is not None and color:
      frames = augment.color(frames)
    return view.hide(frames, blank)

  def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
    del geometry
    x = array.astype(xp.float32)
    return normalise(x if dtype else x / 255.0, stats, xp)

  recipe = {
    "kind": "frames",
    "place": place.__name__,
    "resize": resize.__name__,
    "mean": stats[0],
    "std": stats[1],
  }
  return Mode(
    *(name, host, to_pixels, eval_mode, description, dtype, recipe),
    stages=(VIEW,) * seen + (COLOR,) * color,
  )


def demo_mode(
  name: str = "mico_demo",
  stats: Stats = IMAGENET,
  *,
  on_flip: OnFlip | None = None,
) -> Mode:
  """The preprocessing of the official demo, exact, with float32 frames."""
  kind = "ImageNet" if stats == IMAGENET else "CLIP"
  return frame_mode(
    name,
    squash,
    resize_exact,
    stats,
    description=f"the official demo, exact: squash, no antialias; {kind}",
    on_flip=on_flip,
    dtype="float32",
  )


def modes(*items: Mode) -> dict[str, Mode]:
  """A table of modes by name."""
  return {mode.name: mode for mode in items}


_colors = functools.partial(frame_mode, color=True)
VISUAL_MODES = modes(
  _colors(
    "plain",
    squash,
    resize_smooth,
    HALF,
    description="squash, antialiased; -1..1",
  ),
  _colors(
    "shift",
    shift,
    resize_smooth,
    HALF,
    eval_mode="plain",
    description="plain after a small shift and zoom; no flip",
  ),
  demo_mode(),
  demo_mode("mico_demo_clip", CLIP),
  _colors(
    "mico_train",
    squash,
    resize_official,
    CLIP,
    description="the official training: squash, no antialias; CLIP",
  ),
  _colors(
    "crop_flip",
    crop_flip,
    resize_official,
    CLIP,
    description="crop of 80-100% and flip; eval: centre crop; CLIP",
  ),
  _colors(
    "crop_flip_smooth",
    crop_flip,
    resize_smooth,
    HALF,
    description="crop_flip, antialiased; -1..1",
  ),
  *(
    _colors(
      f"{name}_{kind}",
      place,
      resize_smooth,
      stats,
      description=f"{name}, with the pixels of {word}",
    )
    for kind, word, stats in (
      ("imagenet", "ImageNet", IMAGENET),
      ("clip", "CLIP", CLIP),
    )
    for name, place in (("plain", squash), ("crop_flip_smooth", crop_flip))
  ),
)

__all__ = [
  "CLIP",
  "HALF",
  "IMAGENET",
  "VISUAL_MODES",
  "ArrayClip",
  "Clip",
  "Place",
  "Resize",
  "Stats",
  "augmented_clip",
  "crop_flip",
  "demo_mode",
  "frame_mode",
  "modes",
  "normalise",
  "place_clip",
  "resize_axis",
  "resize_bilinear",
  "resize_exact",
  "resize_nearest",
  "resize_official",
  "resize_smooth",
  "sample_frames",
  "shift",
  "squash",
  "turn_vectors",
]
