"""Dtypes of files of weights, and the limits of a shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# Name in a safetensors file -> dtype.
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
  """The dtype of a name of NumPy or ml_dtypes, such as "bfloat16"."""
  return next(d for d in DTYPES.values() if d.name == name)


# dtype -> name of its storage in PyTorch files.
STORAGES = {
  DTYPES[name]: storage
  for name, storage in {
    "F64": "Double",
    "F32": "Float",
    "F16": "Half",
    "BF16": "BFloat16",
    "I64": "Long",
    "I32": "Int",
    "I16": "Short",
    "I8": "Char",
    "U8": "Byte",
    "BOOL": "Bool",
  }.items()
}

MAX_AXES, MAX_SIZE = 32, 2**40  # of a tensor, close to NumPy's own limits
