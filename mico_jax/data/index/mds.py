"""Samples of an MDS shard (MosaicML Streaming) as a column: `begin`.

A shard is the number of its samples (uint32, little endian, as all numbers), a
uint32 for the first byte of each sample and one for the end, a JSON object that
says its columns, and the samples. Format: the package `streaming` 0.13,
base/format/mds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax import json_text
from mico_jax.data.index.columns import Writer
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError

KIND = "mds.1"
LAYOUT = ("column_names", "column_encodings", "column_sizes")
_NUMBER = np.dtype("<u4")


def build(
  path: str, storage: Storage, entry: Mapping[str, Any]
) -> tuple[Writer, dict[str, Any]]:
  """Reads the head of a shard.

  Args:
    path: of the shard.
    storage: reads it.
    entry: what `index.json` says of it.

  Returns:
    The column: the first byte of each sample, and the end of the last; and its
    meta: `samples`, and `sha256` of the head and of what `index.json` says.

  Raises:
    DecodeError: if it is no shard, or another one than `entry` describes.
    TransientError: for storage that stays away.
  """
  size, count = storage.stat(path).size, int(entry["samples"])
  stated = entry["raw_data"].get("bytes")
  if size != stated:
    raise DecodeError(f"{size} bytes, but index.json says {stated}.")
  table = _NUMBER.itemsize * (count + 2)
  head = storage.read_range(path, 0, table)
  numbers = np.frombuffer(head[: len(head) // 4 * 4], _NUMBER).astype(np.int64)
  if len(numbers) < count + 2 or numbers[0] != count:
    held = numbers[0] if len(numbers) else 0
    raise DecodeError(f"{held} samples, but index.json says {count}.")
  begin = numbers[1:]
  if begin[0] < table or begin[-1] != size or (np.diff(begin) < 0).any():
    raise DecodeError("its table of samples is damaged.")
  text = storage.read_range(path, table, int(begin[0]) - table)
  _check_layout(text, entry)
  digest = hashlib.sha256(head + text)
  digest.update(json.dumps(entry, sort_keys=True).encode())
  writer = Writer(begin="<i8")
  writer.add(begin=begin)
  return writer, {"samples": count, "sha256": digest.hexdigest()}


def _check_layout(text: bytes, entry: Mapping[str, Any]) -> None:
  """Checks that a shard has the columns that `index.json` says."""
  try:
    own = json_text.loads_unique(text)
    same = all(own[name] == entry[name] for name in LAYOUT)
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise DecodeError("its description of columns is damaged.") from error
  if not same:
    raise DecodeError("its columns are not those that index.json says.")
