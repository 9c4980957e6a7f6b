"""What the stand-ins of benchmarks share: texts, tiny media, a folder."""

from __future__ import annotations

import csv
import functools
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.testing import media

COUNT = 4
LOST = COUNT - 1  # sample without media
SILENT = 1  # sample of msrvtt_1ka whose video has no sound
SEEN = ("red", "green", "blue", "small")


def says(i: int, j: int = 0) -> str:
  """Caption number j of sample i."""
  return f"a {SEEN[i]} cube moves {['left', 'right'][j % 2]} {j}"


def asks(j: int) -> str:
  """Question number j of every sample."""
  return f"what is small {j}?"


@functools.cache
def video(*, sound: bool = True) -> bytes:
  """Four frames of 0.4 s, with a tone or without."""
  frames = media.greys((40, 90, 160, 210), (32, 32))
  return media.file_of("mp4", frames, media.tone(0.4) if sound else None)


@functools.cache
def jpg() -> bytes:
  """A grey picture."""
  out = io.BytesIO()
  Image.fromarray(np.full((24, 24, 3), 90, np.uint8)).save(out, "jpeg")
  return out.getvalue()


@functools.cache
def gif() -> bytes:
  """Two frames."""
  frames = [Image.fromarray(f) for f in media.greys((40, 200), (24, 24))]
  out = io.BytesIO()
  frames[0].save(out, "gif", save_all=True, append_images=frames[1:])
  return out.getvalue()


@functools.cache
def rotated_png(millimetres: int) -> bytes:
  """A depth map as SUN RGB-D stores it: its bits rotated left by three."""
  value = ((millimetres << 3) | (millimetres >> 13)) & 0xFFFF
  out = io.BytesIO()
  Image.fromarray(np.full((24, 24), value, np.uint16)).save(out, "png")
  return out.getvalue()


class Folder:
  """Writes files of a copy."""

  def __init__(self, root: pathlib.Path):
    """Takes the folder of the copy."""
    self.root = root

  def put(self, name: str, data: bytes | str) -> None:
    """A file."""
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)

  def json(self, name: str, content: Any) -> None:
    """A JSON file."""
    self.put(name, json.dumps(content))

  def csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    self.put(name, out.getvalue())

  def media(self, names: Sequence[str], data: bytes) -> None:
    """The media of all samples but the lost one."""
    for i, name in enumerate(names):
      if i != LOST:
        self.put(name, data)
