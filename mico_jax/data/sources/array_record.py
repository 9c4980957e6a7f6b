"""Data source of ArrayRecord files with packed samples."""

from __future__ import annotations

import hashlib
import os
from typing import ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe, guarded
from mico_jax.data.packed import unpack
from mico_jax.data.records import Record
from mico_jax.data.remote import Storage
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.shards import expand
from mico_jax.modalities import DecodeError


class ArrayRecordSource(SourceKind):
  """ArrayRecord files written by `mico-jax data build`.

  `path` is a file, a glob pattern, or several joined by commas.
  """

  kind: ClassVar = "array_record"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Opens the files.

    Raises:
      ConfigError: if there are none, or `where` is set (filter when building).
    """
    from array_record.python import array_record_data_source

    if config.where:
      raise ConfigError(
        f"data.sources.{name}.where: ArrayRecord files cannot be filtered; "
        "build them from a filtered manifest."
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
    """Record of sample `index`.

    Raises:
      DecodeError: if its bytes are damaged or no packed sample.
    """
    data = self._blob(index)
    return guarded(lambda: unpack(data, self._config))

  def _blob(self, index: int) -> bytes:
    # The library raises RuntimeError for a damaged chunk and for unreachable
    # storage; reading a byte of each file tells which of them it is.
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
  """Reads a byte of a file, an error if its storage is unreachable."""
  with open(path, "rb", buffering=0) as file:
    file.read(1)
