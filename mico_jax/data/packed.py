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
from mico_jax.data.faults import describe, guarded
from mico_jax.data.records import Record, id_of, make_record
from mico_jax.data.remote import Storage, is_remote
from mico_jax.modalities import DecodeError
from mico_jax.modalities.arrays import read_npy

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
    if not isinstance(header["media"], Mapping):
      raise TypeError("media is no mapping")
    if not isinstance(header["fields"], Mapping):
      raise TypeError("fields is no mapping")
  except (
    struct.error,
    ValueError,
    KeyError,
    TypeError,
    RecursionError,
  ) as error:
    raise DecodeError(
      f"not a record made by `mico-jax data build`: {error}"
    ) from error
  start = 4 + size

  def reader(entry: Mapping[str, Any]) -> Callable[[], Any]:
    def read() -> Any:
      items = []
      for offset, length, kind in entry["parts"]:
        blob = data[start + offset : start + offset + length]
        if offset < 0 or len(blob) != length:
          raise DecodeError("the record is cut short.")
        items.append(read_npy(blob) if kind == "npy" else blob)
      return items if entry["many"] else items[0]

    return read

  media = {key: reader(entry) for key, entry in header["media"].items()}
  return make_record(id_of(header, ""), header["fields"], media, config)


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
    try:
      paths = [storage.local(p) for p in expand(config.path, name)]
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}: {error}") from error
    self._config, self._storage, self._paths = config, storage, paths
    try:
      self._data = array_record_data_source.ArrayRecordDataSource(paths)
      count = len(self._data)
    except Exception as error:  # a header or the index at the end is damaged
      text = " ".join(str(error).split())[:300]
      raise ConfigError(
        f"data.sources.{name}.path: not readable as ArrayRecord: {text}"
      ) from error
    digest = hashlib.sha256()
    for path in paths:
      digest.update(f"{os.path.getsize(path)} ".encode())
    digest.update(str(count).encode())
    for index in (0, count - 1) if count else ():
      try:
        digest.update(self._blob(index))
      except DecodeError as error:  # one bad sample
        digest.update(type(error).__name__.encode())
    self.sha256 = digest.hexdigest()

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._data)

  def record(self, index: int) -> Record:
    """Sample number `index`.

    Raises:
      DecodeError: if its bytes are damaged, or no packed sample.
    """
    data = self._blob(index)
    return guarded(lambda: unpack(data, self._config))

  def _blob(self, index: int) -> bytes:
    # The library says RuntimeError to a damaged chunk and to a store that is
    # away; the files themselves tell which.
    try:
      return self._data[int(index)]
    except Exception as error:
      for path in self._paths:
        self._storage.patiently(lambda p=path: _touch(p), path)
      first = error
    try:
      return self._data[int(index)]
    except Exception as error:
      raise DecodeError(describe(error)) from first


def _touch(path: str) -> None:
  """Reads a byte of a file to see whether its store is there."""
  with open(path, "rb", buffering=0) as file:
    file.read(1)


def expand(pattern: str, name: str) -> list[str]:
  """Files of comma-separated paths and glob patterns, sorted within each.

  What exists under the very name is no pattern, whatever brackets, stars or
  commas the name holds.

  Raises:
    ConfigError: if a pattern finds nothing.
  """
  pieces, found, start = pattern.split(","), [], 0
  while start < len(pieces):
    if not pieces[start].strip():
      start += 1
      continue
    # The longest run of pieces that names something: names may hold commas.
    for end in range(len(pieces), start, -1):
      part = ",".join(pieces[start:end]).strip()
      files = _files_of(part)
      if files:
        break
    else:
      raise ConfigError(
        f"data.sources.{name}.path: no file matches {pieces[start].strip()!r}."
      )
    found.extend(files)
    start = end
  if not found:
    raise ConfigError(f"data.sources.{name}.path is empty; name the files.")
  return found


def _files_of(part: str) -> list[str]:
  """The file of a name, or those of a pattern; none if there are none."""
  if not is_remote(part):
    return [part] if os.path.lexists(part) else sorted(glob.glob(part))
  if "," in part and part.count("://") > 1:
    return []  # several
  if not glob.has_magic(part):
    return [part]
  import fsspec

  fs, inner = fsspec.core.url_to_fs(part)
  if fs.exists(inner):
    return [part]
  scheme = part.split("://")[0]
  return [f"{scheme}://{p.lstrip('/')}" for p in sorted(fs.glob(inner))]
