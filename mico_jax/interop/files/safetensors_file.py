"""Reading safetensors files with NumPy alone.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes
and byte ranges, then the bytes.

Source: https://huggingface.co/docs/safetensors (format description).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mico_jax import json_text
from mico_jax.interop.files.tensors import Tensor, Tensors, WeightsError
from mico_jax.printing import shown

DTYPES: dict[str, np.dtype] = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}


def dtype(name: str) -> np.dtype:
  """The dtype of NumPy's or ml_dtypes' name, "bfloat16" say."""
  return next(d for d in DTYPES.values() if d.name == name)


MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_AXES, MAX_SIZE = 32, 2**40  # of a tensor; NumPy's own limits are near


def open_tensors(path: str | os.PathLike[str]) -> Tensors:
  """The tensors of a file, read when they are needed.

  The header is trusted in nothing: its length, every dtype, shape and range of
  bytes are checked against each other and against the size of the file before
  any number is read.

  Raises:
    WeightsError: naming the first tensor that does not fit the file.
  """
  place, size = os.fspath(path), os.path.getsize(path)
  with open(path, "rb") as file:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
      raise WeightsError(f"{place}: no safetensors header; cut short?")
    if length > MAX_HEADER or 8 + length > size:
      raise WeightsError(
        f"{place}: declares a header of {length} bytes in a file of {size} "
        f"(at most {MAX_HEADER}); cut short, or no safetensors file."
      )
    try:
      header = json.loads(file.read(length), object_pairs_hook=json_text.unique)
    except (ValueError, RecursionError) as error:
      raise WeightsError(
        f"{place}: the safetensors header is not valid ({error})."
      ) from error
  if not isinstance(header, dict):
    raise WeightsError(f"{place}: the safetensors header is no object.")
  header.pop("__metadata__", None)
  start, end = 8 + length, 0
  tensors: Tensors = {}
  ranges = []
  for name, entry in header.items():
    dtype, shape, first, last = _entry(place, name, entry, size - start)
    ranges.append((first, last, name))
    tensors[name] = Tensor(
      name, shape, dtype, _loader(place, dtype, shape, start + first)
    )
  for first, last, name in sorted(ranges):
    if first != end:
      raise WeightsError(
        f"{place}: {name!r} begins at byte {first}, expected {end}: the "
        "tensors must follow each other without gap or overlap."
      )
    end = last
  if end != size - start:
    raise WeightsError(
      f"{place}: {size - start - end} bytes behind the last tensor; cut short "
      "or altered."
    )
  return tensors


def _entry(
  place: str, name: str, entry: Any, size: int
) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Dtype, shape and byte range of a header's entry, checked."""
  whole = lambda values: (
    isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)
  )
  try:
    kind, shape = entry["dtype"], entry["shape"]
    offsets = entry["data_offsets"]
  except (KeyError, TypeError) as error:
    raise WeightsError(
      f"{place}: {name!r} lacks dtype, shape or data_offsets."
    ) from error
  if not isinstance(kind, str) or kind not in DTYPES:
    raise WeightsError(
      f"{place}: {name!r} has dtype {shown(kind)}; known: {', '.join(DTYPES)}."
    )
  if not whole(shape) or not whole(offsets) or len(offsets) != 2:
    raise WeightsError(
      f"{place}: {name!r} has shape {shown(shape)} and data_offsets "
      f"{shown(offsets)}; expected whole numbers, none negative."
    )
  if len(shape) > MAX_AXES or max(shape, default=0) > MAX_SIZE:
    raise WeightsError(
      f"{place}: {name!r} has shape {shown(shape)}; expected at most "
      f"{MAX_AXES} axes of at most {MAX_SIZE} each."
    )
  first, last = offsets
  need = math.prod(shape) * DTYPES[kind].itemsize
  if last > size:
    raise WeightsError(
      f"{place}: {name!r} ends at byte {last} of {size}; cut short?"
    )
  if last - first != need:
    raise WeightsError(
      f"{place}: {name!r} is {kind} {shape}, {need} bytes, but the header "
      f"gives it {last - first}."
    )
  return DTYPES[kind], tuple(shape), first, last


def _loader(
  place: str, dtype: np.dtype, shape: tuple[int, ...], offset: int
) -> Callable[[], np.ndarray]:
  count = math.prod(shape)

  def load() -> np.ndarray:
    raw = np.fromfile(place, np.uint8, count * dtype.itemsize, offset=offset)
    return raw.view(dtype).reshape(shape)

  return load


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The tensors of a file, by name.

  Raises:
    WeightsError: a ValueError, as `open_tensors`.
  """
  return {name: t.load() for name, t in open_tensors(path).items()}


def write(
  path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray | Tensor]
) -> None:
  """Writes tensors, in the order given; lazy ones are read one at a time.

  Raises:
    ValueError: for a dtype that the format lacks.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  header, offset = {}, 0
  for name, value in tensors.items():
    if value.dtype not in names:
      raise ValueError(f"{name}: dtype {value.dtype} is not in safetensors.")
    header[name] = {
      "dtype": names[value.dtype],
      "shape": list(value.shape),
      "data_offsets": [offset, offset + value.nbytes],
    }
    offset += value.nbytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as file:
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for value in tensors.values():
      file.write(np.ascontiguousarray(np.asarray(value)).tobytes())
