"""Which frames of a clip, or slices of a sound, are taken: `SAMPLINGS`.

Indices of a clip divide its time equally (see `video_file`), so that they stand
for seconds in videos of variable rate too. Training draws, evaluation takes the
middle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from mico_jax.modalities.base import DecodeError, Geometry

CHUNK = "chunk"  # the default
Indices = Int[np.ndarray, " T"]
# (frames there are, duration in s or 0, geometry, generator or None) -> T
# increasing indices; the last is repeated where there are too few.
Sampling = Callable[[int, float, Geometry, np.random.Generator | None], Any]


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


def _chunk(
  available: int,
  duration: float,
  geometry: Geometry,
  rng: np.random.Generator | None,
) -> Int[np.ndarray, " T"]:
  """One frame of each of T equal parts: a random one, or the middle."""
  del duration
  return sample_frames(available, geometry.frames, rng)


def _fps(
  available: int,
  duration: float,
  geometry: Geometry,
  rng: np.random.Generator | None,
) -> Int[np.ndarray, " T"]:
  """One frame every 1 / `fps` seconds, from a random moment, or amidst."""
  if available == 1:
    return np.zeros(geometry.frames, np.int64)
  if duration <= 0:
    raise DecodeError(
      f"sampling 'fps' needs seconds, but these {available} frames have no "
      "times; set data.sources.*.frame_rate, or sampling='chunk'."
    )
  fps = geometry.fps
  fitting = min(geometry.frames, max(1, int(duration * fps + 1e-6)))
  start = max(0.0, duration - fitting / fps)
  start *= 0.5 if rng is None else rng.random()
  # The frame that is shown in the middle of each interval.
  moments = start + (np.arange(geometry.frames) + 0.5) / fps
  moments = moments[np.minimum(np.arange(geometry.frames), fitting - 1)]
  indices = np.floor(moments * available / duration).astype(np.int64)
  return np.minimum(indices, available - 1)


def _dense(
  available: int,
  duration: float,
  geometry: Geometry,
  rng: np.random.Generator | None,
) -> Int[np.ndarray, " T"]:
  """Consecutive frames, `stride` apart, at a random place, or amidst."""
  del duration
  steps = np.arange(geometry.frames) * geometry.stride
  room = max(0, available - 1 - int(steps[-1]))
  start = room // 2 if rng is None else int(rng.integers(0, room + 1))
  return np.minimum(start + steps, available - 1)


SAMPLINGS: Mapping[str, Sampling] = {
  CHUNK: _chunk,
  "fps": _fps,
  "dense": _dense,
}


def choose_frames(
  clip: Any, geometry: Geometry, rng: np.random.Generator | None
) -> Int[np.ndarray, " T"]:
  """Indices of the frames of a clip that are taken.

  Args:
    clip: a `spatial.Clip`.
    geometry: their number T, and how they are chosen.
    rng: draws them; None: amidst.

  Raises:
    DecodeError: for `fps` of frames without times.
  """
  duration = getattr(clip, "duration", 0.0)
  if not duration and geometry.frame_rate:
    duration = len(clip) / geometry.frame_rate
  sampling = SAMPLINGS[geometry.sampling]
  return sampling(len(clip), duration, geometry, rng)


def choose_slices(
  available: int, geometry: Geometry, rng: np.random.Generator | None
) -> Int[np.ndarray, " T"]:
  """Indices of the slices of a sound that are taken."""
  return SAMPLINGS[geometry.sampling](available, 0.0, geometry, rng)
