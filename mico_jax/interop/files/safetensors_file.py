"""Reading safetensors files with NumPy alone.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes
and byte ranges, then the bytes.

Source: https://huggingface.co/docs/safetensors (format description).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mico_jax import json_text
from mico_jax.interop.files.dtypes import DTYPES, MAX_AXES, MAX_SIZE
from mico_jax.interop.files.tensors import Tensor, Tensors, WeightsError
from mico_jax.printing import shown

MAX_HEADER = 100_000_000  # bytes; the format's own limit


def open_tensors(path: str | os.PathLike[str]) -> Tensors:
  """The tensors of a file, each read when it is loaded.

  Nothing of the header is trusted: its length, every dtype, shape and range of
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
