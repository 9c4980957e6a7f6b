"""Scenes of OmniWorld as files, to try commands and configs on.

Every scene gives a picture, a clip, its sound, a depth map and a map of
normals; a manifest lists them with their captions. Files are pure functions of
the split and the number of a scene.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mico_jax.config import ConfigError
from mico_jax.data.build.stages.audio import flac
from mico_jax.data.build.stages.h264 import H264Options, encoded
from mico_jax.world import FIELDS, STATED, World
from mico_jax.world.language import caption
from mico_jax.world.sound import SAMPLE_RATE

MANIFEST = "manifest.jsonl"
_FRAMES = 8  # of a clip, within its second


def write_samples(
  out: str | os.PathLike[str],
  *,
  count: int = 8,
  size: int = 64,
  split: str = "test",
  progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
  """Writes the files of some scenes and their manifest; returns its path.

  Args:
    out: a folder that is new, empty, or holds samples.
    count: how many scenes.
    size: rows and columns of pictures, 32 to 224.
    split: "train", "test" or "hard".
    progress: called with (done, total).

  Raises:
    ConfigError: for a folder with other files, or an unknown split.
  """
  folder = pathlib.Path(out)
  if (
    folder.exists()
    and any(folder.iterdir())
    and not (folder / MANIFEST).exists()
  ):
    raise ConfigError(f"{folder} holds other files; give another --out.")
  try:
    world = World(split=split)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  folder.mkdir(parents=True, exist_ok=True)
  lines = []
  for index in range(count):
    scene = world.scene(index)
    frames = {"video": _FRAMES}  # one of the others
    arrays = world.render(scene, size=size, num_frames=frames)
    record: dict[str, object] = {"id": f"{split}-{index}"}
    for name in FIELDS:
      suffix, data = _file(name, arrays[name])
      record[name] = f"{name}-{index}{suffix}"
      (folder / f"{name}-{index}{suffix}").write_bytes(data)
    record["captions"] = {kind: caption(scene, kind, 0) for kind in STATED}
    lines.append(json.dumps(record))
    if progress is not None:
      progress(index + 1, count)
  (folder / MANIFEST).write_text("\n".join(lines) + "\n")
  return folder / MANIFEST


def _file(name: str, array: np.ndarray) -> tuple[str, bytes]:
  """Suffix and content of the file of a rendered array."""
  if name == "video":
    return ".mp4", _clip(array)
  if name == "audio":
    return ".flac", flac(array, SAMPLE_RATE)
  if name == "depth":
    return ".npy", _npy(array[0])  # beyond the 65 m of 16 bits
  if name == "normal":
    return ".png", _png(np.rint(127.5 + 127.5 * array[0]).astype(np.uint8))
  return ".png", _png(array[0])


def _npy(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def _png(array: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(array).save(file, "PNG")
  return file.getvalue()


def _clip(frames: UInt8[np.ndarray, "T Y X 3"]) -> bytes:
  """A second of frames."""
  times = [float(Fraction(i, len(frames))) for i in range(len(frames))]
  options = H264Options(size=0, crf=12)
  return encoded(zip(times, frames, strict=True), 1.0, options)


__all__ = ["MANIFEST", "write_samples"]
