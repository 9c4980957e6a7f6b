"""Reading safetensors files with NumPy alone.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes
and byte ranges, then the bytes. Arrays are memory-mapped, not copied.

Source: https://huggingface.co/docs/safetensors (format description).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np

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


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The tensors of a file, by name.

  Raises:
    ValueError: if the file is cut short or holds an unknown dtype.
  """
  size = os.path.getsize(path)
  with open(path, "rb") as file:
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or 8 + length > size:
      raise ValueError(f"{os.fspath(path)}: no safetensors header; cut short?")
    header = json.loads(file.read(length))
  start = 8 + length
  data = (
    np.memmap(path, np.uint8, "r", offset=start)
    if size > start
    else np.zeros(0, np.uint8)
  )
  tensors = {}
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    if entry["dtype"] not in DTYPES:
      raise ValueError(
        f"{os.fspath(path)}: {name} has dtype {entry['dtype']}; known: "
        f"{', '.join(DTYPES)}."
      )
    first, last = entry["data_offsets"]
    if last > data.size:
      raise ValueError(f"{os.fspath(path)}: {name} is cut short.")
    raw = np.array(data[first:last])
    tensors[name] = raw.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
  return tensors


def write(
  path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes tensors, in the order given.

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
      file.write(np.ascontiguousarray(value).tobytes())
