"""Formats of shards that `data convert` and `data build` write: a table."""

from __future__ import annotations

import abc
import io
import json
import os
import tarfile
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np

from mico_jax.config import ConfigError
from mico_jax.data.media_files import file_type
from mico_jax.data.packed import pack
from mico_jax.modalities import DecodeError, by_extension


class ShardWriter(abc.ABC):
  """Writes the samples of one shard, in order.

  Attributes:
    kind: key in the table, and of the source that reads the result.
    ending: of the file's name.
    lists: whether it can hold lists of frames.
  """

  kind: ClassVar[str]
  ending: ClassVar[str]
  lists: ClassVar[bool] = True

  @abc.abstractmethod
  def __init__(self, path: str):
    """Begins a file."""

  @abc.abstractmethod
  def write(
    self, name: str, fields: Mapping[str, Any], media: Mapping[str, Any]
  ) -> None:
    """Adds a sample.

    Raises:
      DecodeError: if the format cannot hold it; the file stays as it was.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Ends the file; what was written is then whole."""

  @classmethod
  def fields(cls, suffixes: Collection[str]) -> dict[str, str]:
    """`fields` of the source.

    Args:
      suffixes: `suffix_of` all media in the files.

    Raises:
      ConfigError: if it cannot tell them all.
    """
    del suffixes
    return {}


class ArrayRecord(ShardWriter):
  """ArrayRecord of packed samples, one a chunk: quick to read at random."""

  kind: ClassVar[str] = "array_record"
  ending: ClassVar[str] = "array_record"

  def __init__(self, path: str):
    """See `ShardWriter`."""
    from array_record.python import array_record_module

    self._file = array_record_module.ArrayRecordWriter(path, "group_size:1")

  def write(
    self, name: str, fields: Mapping[str, Any], media: Mapping[str, Any]
  ) -> None:
    """See `ShardWriter`."""
    self._file.write(pack(name, fields, media))

  def close(self) -> None:
    """See `ShardWriter`."""
    self._file.close()


class Tar(ShardWriter):
  """WebDataset tar: `<key>.json` and `<key>.<suffix_of its medium>` a sample.

  A key is the sample's id with everything but letters, digits, "-", "_" and "~"
  percent-encoded, since readers end keys at a dot; one that stands in the file
  already gets "~2", "~3" and so on behind it. The id is also in the `.json`.
  """

  kind: ClassVar[str] = "webdataset"
  ending: ClassVar[str] = "tar"
  lists: ClassVar[bool] = False

  def __init__(self, path: str):
    """See `ShardWriter`."""
    self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    self._keys: set[str] = set()

  def write(
    self, name: str, fields: Mapping[str, Any], media: Mapping[str, Any]
  ) -> None:
    """See `ShardWriter`."""
    text = json.dumps({**fields, "id": name}, sort_keys=True)
    members = {"json": text.encode("utf-8", "backslashreplace")}
    for modality, value in media.items():
      members[suffix_of(modality, value)] = _single(modality, value)
    key = self._key(name)
    self._keys.add(key)
    for suffix, data in members.items():
      info = tarfile.TarInfo(f"{key}.{suffix}")  # of time 0 and nobody
      info.size = len(data)
      self._file.addfile(info, io.BytesIO(data))

  def _key(self, name: str) -> str:
    first = key = urllib.parse.quote(name, safe="").replace(".", "%2E")
    number = 1
    while key in self._keys:
      number += 1
      key = f"{first}~{number}"
    return key

  def close(self) -> None:
    """See `ShardWriter`."""
    self._file.close()

  @classmethod
  def fields(cls, suffixes: Collection[str]) -> dict[str, str]:
    """See `ShardWriter`; a type that tells its modality needs no field."""
    fields: dict[str, str] = {}
    implied: dict[str, str] = {}
    for suffix in sorted(suffixes):
      modality = by_extension(f".{suffix}")
      if modality is not None:
        implied[modality.key] = suffix
        continue
      key = suffix.partition(".")[0]
      if key in fields:
        _refuse_both(key, fields[key], suffix)
      fields[key] = suffix
    for key in fields.keys() & implied.keys():
      _refuse_both(key, fields[key], implied[key])
    return fields


def _refuse_both(key: str, *suffixes: str) -> NoReturn:
  raise ConfigError(
    f"{key} is stored both as {' and as '.join(suffixes)}, which one source of "
    "tar files cannot read; write array_record."
  )


def _single(modality: str, value: Any) -> bytes:
  if isinstance(value, list):
    raise DecodeError(f"{modality}: a tar member cannot hold a list of frames.")
  if isinstance(value, np.ndarray):
    out = io.BytesIO()
    np.save(out, value, allow_pickle=False)
    return out.getvalue()
  return value


def suffix_of(modality: str, value: Any) -> str:
  """What a medium is called: "jpg", "depth.png", or "depth" of unknown type.

  A type that tells the modality stands alone. A list of frames counts as its
  first one.
  """
  value = value[0] if isinstance(value, list) and value else value
  if isinstance(value, np.ndarray):
    return f"{modality}.npy"
  ending = file_type(value) if isinstance(value, bytes) else ""
  implied = by_extension(ending) if ending else None
  if implied is not None and implied.key == modality:
    return ending.removeprefix(".")
  return f"{modality}{ending}"


WRITERS: dict[str, type[ShardWriter]] = {w.kind: w for w in (ArrayRecord, Tar)}


def sync(path: str) -> None:
  """Returns when a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
