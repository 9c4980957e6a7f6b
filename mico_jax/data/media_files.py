"""The type and size of a medium, from its bytes alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

# Bytes at the start of a file, their offset -> file type.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
  (0, b"\xff\xd8\xff", ".jpg"),
  (0, b"\x89PNG\r\n\x1a\n", ".png"),
  (8, b"WEBP", ".webp"),
  (0, b"BM", ".bmp"),
  (0, b"GIF8", ".gif"),
  (0, b"II*\0", ".tif"),
  (0, b"MM\0*", ".tif"),
  (0, b"\x93NUMPY", ".npy"),
  (8, b"WAVE", ".wav"),
  (0, b"fLaC", ".flac"),
  (0, b"OggS", ".ogg"),
  (0, b"ID3", ".mp3"),
  (0, b"\xff\xfb", ".mp3"),
  (4, b"ftypM4A", ".m4a"),
  (4, b"ftyp", ".mp4"),
  (0, b"\x1aE\xdf\xa3", ".webm"),
  (8, b"AVI ", ".avi"),
)


def file_type(data: bytes) -> str:
  """The extension of a file's content, such as ".jpg"; "": unknown."""
  for offset, signature, suffix in _SIGNATURES:
    if data[offset : offset + len(signature)] == signature:
      return suffix
  return ""


def describe_medium(raw: Any) -> dict[str, Any]:
  """What the head of a medium says of it; decodes no picture.

  Args:
    raw: bytes of a file, an array, or a list of these.

  Returns:
    `bytes`, and where known `type`, `width` and `height` in pixels, `seconds`,
    `frames` (of a list), `shape` (of an array).
  """
  if isinstance(raw, (list, tuple)):
    first = describe_medium(raw[0]) if len(raw) else {}
    sizes = [describe_medium(item).get("bytes", 0) for item in raw]
    return {**first, "bytes": sum(sizes), "frames": len(raw)}
  if isinstance(raw, np.ndarray):
    return {"bytes": raw.nbytes, "type": "array", "shape": raw.shape}
  if not isinstance(raw, bytes):
    return {}
  facts: dict[str, Any] = {"bytes": len(raw), "type": file_type(raw) or "?"}
  try:
    facts |= _picture(raw)
  except Exception:  # Pillow raises many kinds for what is no picture
    try:
      facts |= _container(raw)
    except Exception:  # and PyAV for what is neither sound nor video
      facts["type"] = facts["type"] if file_type(raw) else "?"
  return facts


def _picture(data: bytes) -> dict[str, Any]:
  from PIL import Image

  with Image.open(io.BytesIO(data)) as image:
    return {"width": image.width, "height": image.height}


def _container(data: bytes) -> dict[str, Any]:
  import av

  facts: dict[str, Any] = {}
  with av.open(io.BytesIO(data), mode="r") as container:
    if container.duration is not None:
      facts["seconds"] = container.duration / 1e6
    for stream in container.streams.video:
      facts["width"], facts["height"] = stream.width, stream.height
  return facts
