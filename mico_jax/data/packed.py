"""Records packed into ArrayRecord files: one sample, one blob.

A blob is the length of a JSON header (uint32, little endian), the header, then
the media one after another. The header holds id, fields, and per modality a
list of (offset, size, kind) with kind "file" (an encoded file as it was) or
"npy"; a list of more than one entry is a list of frames.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.records import Record, make_record
from mico_jax.data.remote import Storage, is_remote
from mico_jax.modalities import DecodeError

FORMAT = "mico_jax.packed.1"


def pack(
  sample_id: str, fields: Mapping[str, Any], media: Mapping[str, Any]
) -> bytes:
  """One sample as bytes; media as sources read them (bytes, arrays, lists)."""
  entries: dict[str, dict[str, Any]] = {}
  blobs: list[bytes] = []
  offset = 0
  for key, raw in media.items():
    many = isinstance(raw, list)
    parts = []
    for item in raw if many else [raw]:
      if isinstance(item, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, item, allow_pickle=False)
        kind, data = "npy", buffer.getvalue()
      elif isinstance(item, bytes):
        kind, data = "file", item
      else:
        raise TypeError(f"cannot pack {type(item).__name__} of {key!r}.")
      parts.append((offset, len(data), kind))
      blobs.append(data)
      offset += len(data)
    entries[key] = {"many": many, "parts": parts}
  header = json.dumps(
    {"format": FORMAT, "id": sample_id, "fields": fields, "media": entries},
    sort_keys=True,
  ).encode()
  return b"".join((struct.pack("<I", len(header)), header, *blobs))


def unpack(data: bytes, config: SourceConfig) -> Record:
  """The record of a blob of `pack`.

  Raises:
    DecodeError: if it is none.
  """
  try:
    (size,) = struct.unpack_from("<I", data)
    header = json.loads(data[4 : 4 + size])
    if header["format"] != FORMAT:
      raise ValueError(f"format {header['format']!r}")
  except (struct.error, ValueError, KeyError, TypeError) as error:
    raise DecodeError(
      f"not a record made by `mico-jax data build`: {error}"
    ) from error
  start = 4 + size

  def reader(entry: Mapping[str, Any]) -> Callable[[], Any]:
    def read() -> Any:
      items = []
      for offset, length, kind in entry["parts"]:
        blob = data[start + offset : start + offset + length]
        if kind == "npy":
          blob = np.load(io.BytesIO(blob), allow_pickle=False)
        items.append(blob)
      return items if entry["many"] else items[0]

    return read

  media = {key: reader(entry) for key, entry in header["media"].items()}
  return make_record(header["id"], header["fields"], media, config)


class ArrayRecordSource:
  """ArrayRecord files written by `mico-jax data build`.

  `path` is a file, a glob pattern, or several joined by commas.
  """

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Opens the files.

    Raises:
      ConfigError: if there are none, or `where` is set (filter when building).
    """
    from array_record.python import array_record_data_source

    if config.where:
      raise ConfigError(
        f"data.sources.{name}.where: ArrayRecord files are not filtered when "
        "read; build them from a filtered manifest."
      )
    paths = [storage.local(p) for p in expand(config.path, name)]
    self._config = config
    self._data = array_record_data_source.ArrayRecordDataSource(paths)
    digest = hashlib.sha256()
    for path in paths:
      digest.update(f"{os.path.getsize(path)} ".encode())
    digest.update(str(len(self._data)).encode())
    if len(self._data):
      digest.update(self._data[0])
      digest.update(self._data[len(self._data) - 1])
    self.sha256 = digest.hexdigest()

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._data)

  def record(self, index: int) -> Record:
    """Sample number `index`."""
    return unpack(self._data[int(index)], self._config)


def expand(pattern: str, name: str) -> list[str]:
  """Files of comma-separated paths and glob patterns, sorted within each.

  Raises:
    ConfigError: if a pattern finds nothing.
  """
  found: list[str] = []
  for part in filter(None, (p.strip() for p in pattern.split(","))):
    if is_remote(part) and not glob.has_magic(part):
      files = [part]
    elif is_remote(part):
      import fsspec

      fs, inner = fsspec.core.url_to_fs(part)
      scheme = part.split("://")[0]
      files = [f"{scheme}://{p.lstrip('/')}" for p in sorted(fs.glob(inner))]
    else:
      files = sorted(glob.glob(part))
    if not files:
      raise ConfigError(f"data.sources.{name}.path: no file matches {part!r}.")
    found.extend(files)
  if not found:
    raise ConfigError(f"data.sources.{name}.path is empty; name the files.")
  return found
