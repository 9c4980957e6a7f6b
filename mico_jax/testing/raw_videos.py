"""A folder of small raw videos, good and bad, as a download leaves them."""

from __future__ import annotations

import json
import pathlib
import struct
from collections.abc import Sequence

import numpy as np

from mico_jax.testing.media import file_of, tone

SIZE = (48, 64)  # rows, columns
RATE = 10  # frames a second
SILENT, BROKEN, TURNED, UNEVEN = (4, 9), 6, 11, 14


def scene(number: int, frames: int) -> list[np.ndarray]:
  """Frames uint8 [48, 64, 3] of one scene: a bar that moves over its ground."""
  rng = np.random.default_rng(number)
  ground, bar = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
  pictures = []
  for i in range(frames):
    picture = np.full((*SIZE, 3), ground, np.uint8)
    picture[:, 2 * i % 56 : 2 * i % 56 + 8] = bar
    picture[:8, :] = 255 if number % 2 else 0  # scenes differ in brightness
    picture[8:24, 32:] = 230 if number % 2 else 20
    picture[24:, :32] = 250 if number % 2 else 5
    pictures.append(picture)
  return pictures


def raw_video(
  number: int,
  seconds: float = 3.0,
  *,
  sound: bool = True,
  even: bool = True,
  turned: bool = False,
) -> bytes:
  """An MP4 of H.264 with two scenes and a tone (AAC, 16 kHz).

  Args:
    number: of the video: gives its pictures and its pitch.
    seconds: of the whole.
    sound: whether there is any.
    even: False: frames of the second half last twice as long.
    turned: by a quarter, in the display matrix.
  """
  count = round(seconds * RATE)
  first = count // 2
  second = count - first
  times = [100 * i for i in range(first)]
  if even:
    times += [100 * (first + i) for i in range(second)]
  else:
    second = -(-second // 2)
    times += [100 * (first + 2 * i) for i in range(second)]
  data = file_of(
    "mp4",
    scene(2 * number, first) + scene(2 * number + 1, second),
    tone(seconds, hz=200 + 20 * number) if sound else None,
    codec="libx264",
    times=times,
    codec_options={"preset": "ultrafast", "threads": "1"},
    pixels="yuv420p",
    options={"fflags": "+bitexact"},
  )
  return _turned(data) if turned else data


def _turned(data: bytes) -> bytes:
  """The file with a display matrix of a quarter turn."""
  at = data.index(b"tkhd") + 44
  matrix = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
  return data[:at] + struct.pack(">9i", *matrix) + data[at + 36 :]


def write_videos(
  folder: pathlib.Path, count: int = 20, seconds: float = 3.0
) -> list[str]:
  """Writes v000.mp4, v001.mp4, ...; returns their names without ending.

  Those of `SILENT` have no sound, `BROKEN` is cut short, `TURNED` lies on its
  side and `UNEVEN` has a varying rate.
  """
  folder.mkdir(parents=True, exist_ok=True)
  names = [f"v{i:03d}" for i in range(count)]
  for i, name in enumerate(names):
    data = raw_video(
      i,
      seconds,
      sound=i not in SILENT,
      even=i != UNEVEN,
      turned=i == TURNED,
    )
    if i == BROKEN:
      data = data[: len(data) // 2]
    (folder / f"{name}.mp4").write_bytes(data)
  return names


def write_hdvila(
  path: pathlib.Path,
  names: Sequence[str],
  spans: Sequence[tuple[float, float]],
) -> pathlib.Path:
  """A list of clips in the form of HD-VILA, the same spans for each video."""
  lines = []
  for name in names:
    clips = [
      {"clip_id": f"{name}.{i}.mp4", "span": [_clock(a), _clock(b)]}
      for i, (a, b) in enumerate(spans)
    ]
    line = {"video_id": name, "url": f"https://example.org/{name}"}
    lines.append(json.dumps(line | {"clip": clips}))
  path.write_text("\n".join(lines) + "\n")
  return path


def _clock(seconds: float) -> str:
  minutes, rest = divmod(seconds, 60)
  return f"00:{int(minutes):02d}:{rest:06.3f}"
