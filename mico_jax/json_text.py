"""Strict JSON: no bare NaN or Infinity, no name twice in an object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
  """A value as JSON can hold it; numbers that are not finite become texts.

  Those are "nan", "inf" and "-inf".
  """
  if isinstance(value, str) or value is None:
    return value
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, bool | np.bool_):
    return bool(value)
  if isinstance(value, int):
    return value
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else str(float(value))
  array = np.asarray(value)
  if array.ndim:
    return [plain(v) for v in array.tolist()]
  if np.issubdtype(array.dtype, np.integer):
    return int(array)
  number = float(array)
  return number if math.isfinite(number) else str(number)


def dumps(value: Any, **options: Any) -> str:
  """A value as JSON text, see `plain`; options are those of `json.dumps`."""
  return json.dumps(plain(value), allow_nan=False, **options)


def loads_unique(text: str | bytes) -> Any:
  """As `json.loads` with `unique`; makes no decoder each time.

  Raises:
    ValueError: for what is no JSON, and for repeated names.
  """
  if isinstance(text, bytes):
    text = text.decode(json.detect_encoding(text), "surrogatepass")
  elif text.startswith("\ufeff"):
    raise ValueError("a text that begins with a byte order mark")
  return _UNIQUE.decode(text)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """An `object_pairs_hook` for `json.loads` that refuses repeated names.

  Raises:
    ValueError: if a name stands twice in one object.
  """
  merged = dict(pairs)
  if len(merged) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the name {twice!r:.40} stands twice in one object")
  return merged


_UNIQUE = json.JSONDecoder(object_pairs_hook=unique)
