"""Selecting the frames of a clip, and bringing them to the encoder's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities import bands
from mico_jax.modalities.augmentation import COLS, Augmentation, View
from mico_jax.modalities.base import Geometry
from mico_jax.modalities.resizing import Resize
from mico_jax.modalities.sampling import choose_frames


@runtime_checkable
class Clip(Protocol):
  """Frames of a sample; `take` decodes them if they are still compressed."""

  def __len__(self) -> int:
    """Number of frames, at least one."""
    ...

  def take(self, indices: Sequence[int]) -> Shaped[np.ndarray, "T Y X *C"]:
    """The frames at increasing `indices`: [T, Y, X, C] or [T, Y, X]."""
    ...


class ArrayClip:
  """Decoded frames in memory.

  Attributes:
    frames: the frames.
    duration: in s, which they divide equally; 0: unknown.
  """

  def __init__(
    self, frames: Shaped[np.ndarray, "T Y X *C"], duration: float = 0.0
  ):
    """Wraps frames."""
    self.frames, self.duration = frames, duration

  def __len__(self) -> int:
    """Number of frames."""
    return len(self.frames)

  def take(self, indices: Sequence[int]) -> Shaped[np.ndarray, "T Y X *C"]:
    """The frames at `indices`."""
    return self.frames[np.asarray(indices)]


# (frames, size, resize, NUM_DRAWS numbers in [0, 1) or None) -> (frames of
# `size` x `size` pixels, whether they are flipped). Recipes name them.
Place = Callable[
  [np.ndarray, int, Resize, np.ndarray | None], tuple[np.ndarray, bool]
]


def squash(
  x: Shaped[np.ndarray, "T Y X *C"],
  size: int,
  resize: Resize,
  draws: Float[np.ndarray, " _"] | None,
) -> tuple[Shaped[np.ndarray, "T y x *C"], bool]:
  """Resizes whole frames, ignoring the aspect ratio."""
  del draws
  return resize(x, (size, size)), False


def crop_flip(
  x: Shaped[np.ndarray, "T Y X *C"],
  size: int,
  resize: Resize,
  draws: Float[np.ndarray, " _"] | None,
) -> tuple[Shaped[np.ndarray, "T y x *C"], bool]:
  """Random square crop of 80 to 100% of the area and random flip.

  Without draws: centre crop.
  """
  rows, cols = x.shape[1:3]
  if draws is None:
    if rows <= cols:
      small = (size, max(size, int(size * cols / rows)))
    else:
      small = (max(size, int(size * rows / cols)), size)
    x = resize(x, small)
    top, left = (round((n - size) / 2) for n in small)
    return x[:, top : top + size, left : left + size], False
  area = rows * cols * (0.8 + 0.2 * draws[0])
  side = max(1, min(round(math.sqrt(area)), rows, cols))
  top = int(draws[1] * (rows - side + 1))
  left = int(draws[2] * (cols - side + 1))
  x = resize(x[:, top : top + side, left : left + side], (size, size))
  flip = bool(draws[3] < 0.5)
  return (bands.mirror(x) if flip else x), flip


def shift(
  x: Shaped[np.ndarray, "T Y X *C"],
  size: int,
  resize: Resize,
  draws: Float[np.ndarray, " _"] | None,
) -> tuple[Shaped[np.ndarray, "T y x *C"], bool]:
  """Random shift by up to an eighth of the side and zoom by up to 10%.

  Without flips, for digits and text. Pixels at the edge are repeated.
  """
  x = resize(x, (size, size))
  if draws is None:
    return x, False
  reach = size / 8
  grid = np.arange(size, dtype=np.float32) - (size - 1) / 2
  zoom = 0.9 + 0.2 * draws[2]
  middle = (size - 1) / 2
  rows = grid * zoom + middle + (2 * draws[0] - 1) * reach
  cols = grid * zoom + middle + (2 * draws[1] - 1) * reach
  rows = np.clip(np.rint(rows), 0, size - 1).astype(np.int64)
  cols = np.clip(np.rint(cols), 0, size - 1).astype(np.int64)
  return x[:, rows[:, None], cols[None, :]], False


DRAWING = (crop_flip, shift)  # draw by themselves where they get numbers
NUM_DRAWS = 8  # numbers drawn per sample before any frame is chosen


def place_clip(
  clip: Clip,
  geometry: Geometry,
  rng: np.random.Generator | None,
  place: Place,
  resize: Resize,
) -> tuple[Shaped[np.ndarray, "T y x *C"], bool]:
  """Selects frames of a clip and brings them to the encoder's size.

  The crop is drawn before the frames, so that aligned modalities share it even
  if their numbers of frames differ.

  Args:
    clip: of the sample.
    geometry: number of frames and their size.
    rng: draws crop and frames; None: deterministic.
    place: crops and resizes.
    resize: used by `place`.

  Returns:
    The frames, and whether they are flipped.
  """
  draws = None if rng is None else rng.random(NUM_DRAWS)
  indices = choose_frames(clip, geometry, rng)
  frames, flipped = place(
    clip.take(indices.tolist()), geometry.size, resize, draws
  )
  return np.ascontiguousarray(frames), flipped


def augmented_clip(
  clip: Clip,
  geometry: Geometry,
  rng: np.random.Generator | None,
  place: Place,
  resize: Resize,
  augment: Augmentation | None,
  resizes: Mapping[str, Resize] = MappingProxyType({}),
) -> tuple[Shaped[np.ndarray, "T y x *C"], View]:
  """`place_clip`, where a transform may cut and flip instead of the mode.

  Args:
    clip: of the sample.
    geometry: number of frames and their size.
    rng: draws crop and frames; None: deterministic.
    place: crops and resizes.
    resize: used by `place`.
    augment: of the sample; None: none.
    resizes: other ways to resize that a view may name.

  Returns:
    The frames, and how they are seen; they are flipped already.
  """
  view = View(1, 1)

  def put(
    x: np.ndarray, size: int, resize: Resize, draws: np.ndarray | None
  ) -> tuple[np.ndarray, bool]:
    nonlocal view
    if augment is None:
      x, flipped = place(x, size, resize, draws)
      view = View(1, 1, flips=(COLS,) if flipped else ())
      return x, flipped
    view = augment.view(x)
    resize = resizes.get(view.interpolation, resize)
    if view.box:
      x = resize(view.cut(x), (size, size))
    else:
      x, _ = place(x, size, resize, None)
    for axis in view.flips:
      x = bands.mirror(x) if axis == COLS else x[:, ::-1]
    return x, bool(view.flips)

  frames, _ = place_clip(clip, geometry, rng, put, resize)
  return frames, view
