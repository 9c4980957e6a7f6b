"""Values of the cells of MDS shards (MosaicML Streaming), by encoding.

Pickles are refused: they can run code. Format: the package `streaming` 0.13,
base/format/mds/encodings.py.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
from PIL import Image

from mico_jax import json_text
from mico_jax.modalities import DecodeError

FILES = ("jpeg", "png")  # files of pictures
# Encodings whose values are media or bytes, not fields.
MEDIA = (*FILES, "bytes", "ndarray", "pil", "jpeg_array", "jpegarray",
         "list[pil]", "list[jpeg]", "list[png]")  # fmt: skip
_SCALARS = tuple(
  f"{kind}{bits}"
  for kind, sizes in (
    ("uint", (8, 16, 32, 64)),
    ("int", (8, 16, 32, 64)),
    ("float", (16, 32, 64)),
  )
  for bits in sizes
)
KNOWN = (*MEDIA, *_SCALARS, "str", "int", "json", "str_int", "str_float",
         "str_decimal")  # fmt: skip
REFUSED = ("pkl",)
# Numbers that stand for the type of an array.
_DTYPES = {8: "u1", 9: "i1", 16: "<u2", 17: "<i2", 18: "<f2", 32: "<u4",
           33: "<i4", 34: "<f4", 64: "<u8", 65: "<i8", 66: "<f8"}  # fmt: skip
_NAMES = {np.dtype(d).name: d for d in _DTYPES.values()}
_ARRAY = re.compile(r"ndarray(:(?P<dtype>\w+)(:(?P<shape>\d+(,\d+)*))?)?")
_DIGITS = re.compile(r"[+-]?\d{1,400}")
# Modes of pictures that a PNG keeps; of one with a palette it is not stored.
_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")


def base(encoding: str) -> str:
  """The name of an encoding without its options: "jpeg:90" is "jpeg"."""
  return encoding.partition(":")[0]


def fixed_size(encoding: str) -> int | None:
  """Bytes of each value of an encoding; None: they vary.

  Raises:
    ValueError: for an unknown encoding, and for wrong options.
  """
  if base(encoding) not in (*KNOWN, *REFUSED):
    raise ValueError(f"the encoding {encoding!r:.60} is unknown")
  if encoding == "int":
    return 8
  if encoding in _SCALARS:
    return np.dtype(encoding).itemsize
  if base(encoding) == "ndarray":
    dtype, shape = _static(encoding)
    if dtype and shape:
      return math.prod(shape) * np.dtype(dtype).itemsize
  return None


def _static(encoding: str) -> tuple[str, tuple[int, ...]]:
  """Type and shape that an encoding of arrays fixes; empty: it does not."""
  match = _ARRAY.fullmatch(encoding)
  if not match or (match["dtype"] or "uint8") not in _NAMES:
    raise ValueError(f"the encoding {encoding!r:.60} is unknown")
  dtype = _NAMES[match["dtype"]] if match["dtype"] else ""
  shape = tuple(map(int, match["shape"].split(","))) if match["shape"] else ()
  return dtype, shape


def decode(encoding: str, data: bytes) -> Any:
  """A value: number, text, what JSON holds, bytes, array, or list of bytes.

  Pictures are given as files; those that are stored as pixels become PNG.

  Args:
    encoding: of the column.
    data: of the cell.

  Raises:
    DecodeError: for bytes that are no such value, and for pickles.
  """
  name = base(encoding)
  try:
    return _decoded(name, encoding, data)
  except DecodeError:
    raise
  except (ValueError, RecursionError, OverflowError) as error:
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a value of {encoding!r}: {text}.") from error


def _decoded(name: str, encoding: str, data: bytes) -> Any:
  if name in ("bytes", *FILES):
    return data
  if name == "str":
    return data.decode("utf-8")
  if name == "int" or name in _SCALARS:
    dtype = np.dtype("int64" if name == "int" else name).newbyteorder("<")
    if len(data) != dtype.itemsize:
      raise ValueError(f"{len(data)} bytes")
    return np.frombuffer(data, dtype)[0].item()
  if name == "json":
    return json_text.loads_unique(data)
  if name == "str_int":
    text = data.decode("ascii")
    if not _DIGITS.fullmatch(text):
      raise ValueError(f"{text!r:.40} is no whole number")
    return int(text)
  if name in ("str_float", "str_decimal"):
    return float(data.decode("ascii"))
  if name == "ndarray":
    return _array(encoding, data)
  if name == "pil":
    return _png(data)
  if name.startswith("list["):
    parts = _parts(data, 4)  # the first number means nothing yet
    return [_png(p) for p in parts] if name == "list[pil]" else parts
  if name in ("jpeg_array", "jpegarray"):
    return _parts(data, 0)
  raise DecodeError(
    f"the encoding {encoding!r:.60} is not read: a pickle can run code; write "
    "the column again with another encoding."
  )


def _array(encoding: str, data: bytes) -> np.ndarray:
  """An array, whose type and shape come first unless the encoding says them."""
  dtype, shape = _static(encoding)
  at = 0
  if not dtype:
    if not data or data[0] not in _DTYPES:
      raise ValueError(f"the type of an array is {data[:1]!r}")
    dtype, at = _DTYPES[data[0]], 1
  if not shape:
    packed = data[at] if at < len(data) else 0
    axes, size = packed >> 2, 1 << (packed & 3)
    ends = at + 1 + axes * size
    shape = tuple(
      np.frombuffer(data[at + 1 : ends], np.dtype(f"<u{size}")).tolist()
    )
    if not axes or len(shape) < axes:
      raise ValueError("an array without a shape")
    at = ends
  if math.prod(shape) * np.dtype(dtype).itemsize != len(data) - at:
    raise ValueError(f"an array of shape {shape!s:.60} has other bytes")
  return np.frombuffer(data, dtype, offset=at).reshape(shape)


def _png(data: bytes) -> bytes:
  """The PNG file of a picture that is stored as pixels."""
  if len(data) < 12:
    raise ValueError("a picture without a size")
  width, height, length = np.frombuffer(data[:12], "<u4").tolist()
  mode = data[12 : 12 + length].decode("ascii")
  if mode not in _MODES:
    raise DecodeError(
      f"a picture of mode {mode!r:.20} is not read; expected "
      f"{', '.join(_MODES)}."
    )
  bits = {"1": 1, "LA": 16, "RGB": 24, "RGBA": 32, "I;16": 16}.get(mode, 8)
  row = -(-width * bits // 8)
  if not width or not height or row * height != len(data) - 12 - length:
    raise ValueError(f"a picture of {width} x {height} has other bytes")
  out = io.BytesIO()
  image = Image.frombytes(mode, (width, height), data[12 + length :])
  image.save(out, "png", compress_level=1)
  return out.getvalue()


def _parts(data: bytes, at: int) -> list[bytes]:
  """The bytes of a list's items, whose number and sizes come first."""
  count = int.from_bytes(data[at : at + 4], "little")
  start = at + 4 + 4 * count
  if len(data) < start:
    raise ValueError(f"a list of {count} items has other bytes")
  sizes = np.frombuffer(data[at + 4 : start], "<u4").astype(np.int64)
  ends = start + np.cumsum(sizes)
  if not count or ends[-1] != len(data):
    raise ValueError(f"a list of {count} items has other bytes")
  begins = [start, *ends[:-1].tolist()]
  return [data[a:b] for a, b in zip(begins, ends.tolist(), strict=True)]
