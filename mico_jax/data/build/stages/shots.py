"""Shots: a video cut where its picture changes at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from mico_jax import extras
from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice, Range
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of

_AROUND = 5  # frames on each side that a cut must stand out from


@dataclasses.dataclass(frozen=True)
class ShotsOptions:
  """How cuts are told."""

  # "luma": mean difference of brightness; "scenedetect": PySceneDetect
  detector: Annotated[str, Choice("luma", "scenedetect")] = "luma"
  # of the difference of two frames that is a cut, 0..255
  threshold: Annotated[float, Range(0.1, 255.0)] = 27.0
  # luma: a cut differs so many times more than the frames around it
  contrast: Annotated[float, Range(1.0, 1000.0)] = 3.0
  # shorter shots are part of the one before
  min_seconds: Annotated[float, Range(0.0, 3600.0, "seconds")] = 0.5


class Shots(Stage):
  """Cuts files, or the spans named in them, into shots, one row each."""

  name: ClassVar[str] = "shots"
  Options: ClassVar[type] = ShotsOptions
  cuts: ClassVar[bool] = True

  def check(self) -> None:
    """See `Stage`."""
    if self.options.detector == "scenedetect":
      try:
        import scenedetect.detectors  # noqa: F401
      except ImportError as error:
        raise ConfigError(
          f"shots.detector=scenedetect: {error}; {extras.install('shots')}."
        ) from error

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`; a sound alone stays one part."""
    start, end = span_of(row)
    if row.raw is None or not row.raw.has_pictures or np.isinf(end):
      return [row]
    times, frames = [], []
    for time, luma in row.raw.video.lumas(start, end):
      times.append(time)
      frames.append(luma)
    if self.options.detector == "luma":
      cuts = _by_luma(np.stack(frames), self.options) if frames else []
    else:
      cuts = _by_scenedetect(frames, self.options)
    edges = [start]
    for index in cuts:
      if times[index] - edges[-1] >= self.options.min_seconds:
        edges.append(times[index])
    if len(edges) > 1 and end - edges[-1] < self.options.min_seconds:
      edges.pop()
    if len(edges) == 1:
      return [row]
    return [
      row.part(f"{row.id}-{i:03d}", span)
      for i, span in enumerate(zip(edges, [*edges[1:], end], strict=True))
    ]


def changes(lumas: UInt8[np.ndarray, "T Y X"]) -> Float[np.ndarray, " T"]:
  """Mean difference (0..255) of each frame to the one before; 0 first."""
  steps = np.diff(lumas.astype(np.float32), axis=0, prepend=lumas[:1])
  return np.abs(steps).mean(axis=(1, 2))


def _by_luma(lumas: np.ndarray, options: Any) -> list[int]:
  """Indices of the frames that begin a shot."""
  differences = changes(lumas)
  cuts = []
  for i in np.flatnonzero(differences >= options.threshold).tolist():
    low, high = max(1, i - _AROUND), i + _AROUND + 1
    others = np.delete(differences[low:high], i - low)
    around = float(others.mean()) if len(others) else 0.0
    if differences[i] >= options.contrast * around:
      cuts.append(i)
  return cuts


def _by_scenedetect(frames: Any, options: Any) -> list[int]:
  """The same by PySceneDetect's content detector, on the reduced frames."""
  from scenedetect import FrameTimecode
  from scenedetect.detectors import ContentDetector

  detector = ContentDetector(threshold=options.threshold, min_scene_len=1)
  cuts = []
  for i, frame in enumerate(frames):
    picture = np.repeat(frame[..., None], 3, axis=2)
    cuts += detector.process_frame(FrameTimecode(i, fps=25.0), picture)
  cuts += detector.post_process(FrameTimecode(len(frames), fps=25.0))
  return sorted({cut.frame_num for cut in cuts})
