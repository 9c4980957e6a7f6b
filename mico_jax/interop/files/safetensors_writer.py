"""Writing safetensors tensor by tensor: one file, or several with an index.

One tensor at a time is in memory: it is read, hashed, written and dropped.
bfloat16 is written by its bits. PyTorch is not needed.

Source: https://huggingface.co/docs/safetensors (format description); the index
file is the one of the transformers library.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from mico_jax.interop.files.dtypes import DTYPES
from mico_jax.interop.files.tensors import (
  Item,
  Tensor,
  Written,
  contents,
  record,
)

NAMES = {dtype: name for name, dtype in DTYPES.items()}
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _shards(items: Sequence[Item], limit: int) -> list[list[Item]]:
  """Items in order, in groups of at most `limit` bytes or a single item."""
  groups: list[list[Item]] = [[]]
  size = 0
  for one in items:
    if groups[-1] and size + one.nbytes > limit:
      groups.append([])
      size = 0
    groups[-1].append(one)
    size += one.nbytes
  return groups


def _write_file(
  path: pathlib.Path, items: Sequence[Item], metadata: Mapping[str, str]
) -> tuple[list[dict[str, Any]], str]:
  """Writes one file; returns its tensors' records and its SHA-256."""
  header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
  offset = 0
  for one in items:
    if one.dtype not in NAMES:
      raise ValueError(f"{one.name}: dtype {one.dtype} is not in safetensors.")
    header[one.name] = {
      "dtype": NAMES[one.dtype],
      "shape": list(one.shape),
      "data_offsets": [offset, offset + one.nbytes],
    }
    offset += one.nbytes
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  whole, records = hashlib.sha256(), []
  with open(path, "wb") as file:
    _put(file, whole, len(text).to_bytes(8, "little") + text)
    for one, data, digest in contents(items):
      _put(file, whole, data.data)
      records.append(record(one, sha256=digest))
  return records, whole.hexdigest()


def _put(file: BinaryIO, digest: Any, data: Any) -> None:
  file.write(data)
  digest.update(data)


def write(
  folder: pathlib.Path,
  items: Iterable[Item],
  *,
  max_shard_size: int = 5 * 10**9,
  metadata: Mapping[str, str] | None = None,
  name: str = WEIGHTS,
) -> Written:
  """Writes one file, or shards and their index.

  Args:
    folder: an existing folder.
    items: in the order of the file.
    max_shard_size: bytes of tensors per file.
    metadata: strings of the header; such as {"format": "pt"}.
    name: of the file, if it is one.

  Raises:
    ValueError: for two tensors of one name, or a dtype that the format lacks.
  """
  items = list(items)
  names = [one.name for one in items]
  if repeated := sorted(n for n, k in Counter(names).items() if k > 1):
    raise ValueError(f"several tensors are called {', '.join(repeated)}.")
  groups = _shards(items, max_shard_size)
  files, tensors, places = [], [], {}
  for i, group in enumerate(groups, 1):
    place = name
    if len(groups) > 1:
      place = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
    path = folder / place
    records, digest = _write_file(path, group, metadata or {})
    tensors += records
    places |= dict.fromkeys((one.name for one in group), place)
    files.append(
      {
        "name": place,
        "bytes": path.stat().st_size,
        "sha256": digest,
        "tensors": len(group),
      }
    )
  if len(groups) > 1:
    index = {
      "metadata": {"total_size": sum(one.nbytes for one in items)},
      "weight_map": places,
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1))
  return Written(tuple(files), tuple(tensors))


def write_arrays(
  path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray | Tensor]
) -> None:
  """Writes arrays to one file in their order, lazy ones one at a time.

  Raises:
    ValueError: for a dtype that the format lacks.
  """
  items = [
    Item(name, value.shape, value.dtype, lambda value=value: np.asarray(value))
    for name, value in arrays.items()
  ]
  _write_file(pathlib.Path(path), items, {})
