"""Frame selection, resizing and cropping, shared by the picture modalities.

In NumPy and Pillow, as data workers load it. `resize_bilinear` has no
antialiasing, like the official preprocessing (torchvision 0.15 on tensors);
`resize_smooth` averages when it shrinks and is the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from mico_jax.modalities import bands
from mico_jax.modalities.base import Geometry, Mode

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = (
  (0.48145466, 0.4578275, 0.40821073),
  (0.26862954, 0.26130258, 0.27577711),
)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # maps 0..1 to -1..1

Frames = Shaped[np.ndarray, "_ _ _ ..."]  # [T, Y, X] or [T, Y, X, C]
Stats = tuple[tuple[float, ...], tuple[float, ...]]


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
  """Decoded frames in memory."""

  def __init__(self, frames: Shaped[np.ndarray, "T Y X *C"]):
    """Wraps frames."""
    self.frames = frames

  def __len__(self) -> int:
    """Number of frames."""
    return len(self.frames)

  def take(self, indices: Sequence[int]) -> Shaped[np.ndarray, "T Y X *C"]:
    """The frames at `indices`."""
    return self.frames[np.asarray(indices)]


def sample_frames(
  available: int, wanted: int, rng: np.random.Generator | None = None
) -> Int[np.ndarray, " T"]:
  """One frame index from each of `wanted` equal chunks of a clip.

  Args:
    available: frames of the clip; if fewer than wanted, the last is repeated.
    wanted: T.
    rng: draws a frame of each chunk; None: the middle one.

  Source: data/loader of the official MiCo code, checked by the golden cases:
    chunks as `numpy.array_split`, element (length + 1) // 2 - 1.
  """
  if available <= wanted:
    return np.minimum(np.arange(wanted), available - 1)
  sizes = np.full(wanted, available // wanted)
  sizes[: available % wanted] += 1
  starts = np.cumsum(sizes) - sizes
  if rng is None:
    return starts + (sizes + 1) // 2 - 1
  return starts + rng.integers(0, sizes)


def resize_axis(
  x: Float[np.ndarray, "*B"], size: int, axis: int
) -> Float[np.ndarray, "*C"]:
  """Linear resize of one axis, without antialiasing (align_corners False)."""
  if x.shape[axis] == size:
    return x
  low, high, weight = bands.axis_weights(x.shape[axis], size)
  shape = [1] * x.ndim
  shape[axis] = size
  weight = weight.reshape(shape)
  below, above = np.take(x, low, axis=axis), np.take(x, high, axis=axis)
  return below * (np.float32(1) - weight) + above * weight


def resize_bilinear(
  x: Float[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> Float[np.ndarray, "T y x C"]:
  """Bilinear resize to (rows, columns) without antialiasing."""
  return resize_axis(resize_axis(x, size[0], 1), size[1], 2)


def resize_smooth(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """Bilinear resize to (rows, columns), antialiased when it shrinks."""
  if x.shape[1:3] == tuple(size):
    return x
  bilinear = Image.Resampling.BILINEAR
  out = np.empty((len(x), *size, *x.shape[3:]), x.dtype)
  for frame, small in zip(x, out, strict=True):
    small[:] = Image.fromarray(frame).resize((size[1], size[0]), bilinear)
  return out


def resize_nearest(
  x: Shaped[np.ndarray, "T Y X *C"], size: tuple[int, int]
) -> Shaped[np.ndarray, "T y x *C"]:
  """Nearest resize to (rows, columns): never mixes depths across an edge."""
  if x.shape[1:3] == tuple(size):
    return x
  rows = ((np.arange(size[0]) + 0.5) * x.shape[1] / size[0]).astype(np.int64)
  cols = ((np.arange(size[1]) + 0.5) * x.shape[2] / size[1]).astype(np.int64)
  return x[:, rows[:, None], cols[None, :]]


def resize_official(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> UInt8[np.ndarray, "T y x C"]:
  """`resize_bilinear` rounded to uint8."""
  return x if x.shape[1:3] == tuple(size) else bands.resize_rounded(x, size)


def resize_exact(
  x: UInt8[np.ndarray, "T Y X C"], size: tuple[int, int]
) -> Float[np.ndarray, "T y x C"]:
  """`resize_bilinear` of values in [0, 1], as the official code."""
  return resize_bilinear(x.astype(np.float32) / np.float32(255), size)


Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
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
  indices = sample_frames(len(clip), geometry.frames, rng)
  frames, flipped = place(
    clip.take(indices.tolist()), geometry.size, resize, draws
  )
  return np.ascontiguousarray(frames), flipped


def normalise(x: Any, stats: Stats, xp: Any) -> Any:
  """(x - mean) / std over the last axis of float32 values in [0, 1]."""
  ones = (1,) * (x.ndim - 1)
  mean = np.asarray(stats[0], np.float32).reshape((*ones, 3))
  std = np.asarray(stats[1], np.float32).reshape((*ones, 3))
  return (x - xp.asarray(mean)) / xp.asarray(std)


def frame_mode(
  name: str,
  place: Place,
  resize: Resize,
  stats: Stats,
  *,
  eval_mode: str = "",
  description: str = "",
  on_flip: Callable[[np.ndarray], np.ndarray] | None = None,
  dtype: str = "",
) -> Mode:
  """Makes a preprocessing mode of uint8 frames [T, Y, X, 3].

  Args:
    name: of the mode.
    place: crops and resizes frames to the encoder's size.
    resize: used by `place`.
    stats: mean and standard deviation of the channels, of values in [0, 1].
    eval_mode: deterministic mode for evaluation; "": itself.
    description: one line for tables.
    on_flip: corrects the values of flipped frames, such as the x of normals.
    dtype: of the host's array; "": uint8, "float32": values in [0, 1].
  """

  def host(
    clip: Clip, geometry: Geometry, rng: np.random.Generator | None = None
  ) -> Shaped[np.ndarray, "T Y X 3"]:
    frames, flipped = place_clip(clip, geometry, rng, place, resize)
    return on_flip(frames) if flipped and on_flip is not None else frames

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
  return Mode(name, host, to_pixels, eval_mode, description, dtype, recipe)


def demo_mode(name: str = "mico_demo", stats: Stats = IMAGENET) -> Mode:
  """The preprocessing of the official demo, exact, with float32 frames."""
  kind = "ImageNet" if stats == IMAGENET else "CLIP"
  return frame_mode(
    name,
    squash,
    resize_exact,
    stats,
    description=f"the official demo, exact: squash, no antialias; {kind}",
    dtype="float32",
  )


def modes(*items: Mode) -> dict[str, Mode]:
  """A table of modes by name."""
  return {mode.name: mode for mode in items}


VISUAL_MODES = modes(
  frame_mode(
    "plain",
    squash,
    resize_smooth,
    HALF,
    description="squash, antialiased; -1..1",
  ),
  frame_mode(
    "shift",
    shift,
    resize_smooth,
    HALF,
    eval_mode="plain",
    description="plain after a small shift and zoom; no flip",
  ),
  demo_mode(),
  demo_mode("mico_demo_clip", CLIP),
  frame_mode(
    "mico_train",
    squash,
    resize_official,
    CLIP,
    description="the official training: squash, no antialias; CLIP",
  ),
  frame_mode(
    "crop_flip",
    crop_flip,
    resize_official,
    CLIP,
    description="crop of 80-100% and flip; eval: centre crop; CLIP",
  ),
  frame_mode(
    "crop_flip_smooth",
    crop_flip,
    resize_smooth,
    HALF,
    description="crop_flip, antialiased; -1..1",
  ),
  *(
    frame_mode(
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
