"""Formats of shards: the one place that lists them."""

from __future__ import annotations

import abc
import io
import json
import os
import tarfile
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError
from mico_jax.data.packed import pack
from mico_jax.modalities import DecodeError, by_extension

_STARTS = (
  (b"\xff\xd8", "jpg"),
  (b"\x89PNG", "png"),
  (b"GIF8", "gif"),
  (b"fLaC", "flac"),
  (b"OggS", "ogg"),
  (b"ID3", "mp3"),
  (b"\x93NUMPY", "npy"),
  (b"\x1aE\xdf\xa3", "webm"),
)


class Writer(abc.ABC):
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


class ArrayRecord(Writer):
  """ArrayRecord of packed samples, one a chunk: quick to read at random."""

  kind: ClassVar[str] = "array_record"
  ending: ClassVar[str] = "array_record"

  def __init__(self, path: str):
    """See `Writer`."""
    from array_record.python import array_record_module

    self._file = array_record_module.ArrayRecordWriter(path, "group_size:1")

  def write(
    self, name: str, fields: Mapping[str, Any], media: Mapping[str, Any]
  ) -> None:
    """See `Writer`."""
    self._file.write(pack(name, fields, media))

  def close(self) -> None:
    """See `Writer`."""
    self._file.close()


class Tar(Writer):
  """WebDataset tar: `<key>.json` and `<key>.<modality>.<ending>` a sample.

  A key is the sample's id with everything but letters, digits, "-", "_" and "~"
  percent-encoded, since readers end keys at a dot.
  """

  kind: ClassVar[str] = "webdataset"
  ending: ClassVar[str] = "tar"
  lists: ClassVar[bool] = False

  def __init__(self, path: str):
    """See `Writer`."""
    self._file = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    self._keys: set[str] = set()

  def write(
    self, name: str, fields: Mapping[str, Any], media: Mapping[str, Any]
  ) -> None:
    """See `Writer`."""
    key = urllib.parse.quote(name, safe="").replace(".", "%2E")
    if key in self._keys:
      raise DecodeError(f"the id {name!r:.60} stands twice in one tar file.")
    text = json.dumps({"id": name, **fields}, sort_keys=True)
    members = {"json": text.encode("utf-8", "backslashreplace")}
    for modality, value in media.items():
      suffix = suffix_of(modality, value)
      if suffix.endswith("."):
        raise DecodeError(f"{modality}: a file of a type without a known name.")
      members[suffix] = _single(modality, value)
    self._keys.add(key)
    for suffix, data in members.items():
      info = tarfile.TarInfo(f"{key}.{suffix}")  # of time 0 and nobody
      info.size = len(data)
      self._file.addfile(info, io.BytesIO(data))

  def close(self) -> None:
    """See `Writer`."""
    self._file.close()

  @classmethod
  def fields(cls, suffixes: Collection[str]) -> dict[str, str]:
    """See `Writer`; a type that tells its modality needs no field."""
    fields: dict[str, str] = {}
    for suffix in sorted(suffixes):
      key, _, ending = suffix.partition(".")
      implied = by_extension(f".{ending}")
      if implied is not None and implied.key == key:
        continue
      if key in fields:
        raise ConfigError(
          f"{key} is stored both as {fields[key]} and as {suffix}, which one "
          "source cannot read; use format=array_record."
        )
      fields[key] = suffix
    return fields


def _single(modality: str, value: Any) -> bytes:
  if isinstance(value, list):
    raise DecodeError(f"{modality}: a tar member cannot hold a list of frames.")
  if isinstance(value, np.ndarray):
    out = io.BytesIO()
    np.save(out, value, allow_pickle=False)
    return out.getvalue()
  return value


def suffix_of(modality: str, value: Any) -> str:
  """Modality and type of what is stored: "depth.png"; "depth." of unknown type.

  A list of frames counts as its first one.
  """
  value = value[0] if isinstance(value, list) and value else value
  if isinstance(value, np.ndarray):
    return f"{modality}.npy"
  data = value if isinstance(value, bytes) else b""
  kinds = {b"RIFFWAVE": "wav", b"RIFFWEBP": "webp", b"RIFFAVI ": "avi"}
  ending = kinds.get(data[:4] + data[8:12], "")
  for start, name in _STARTS:
    ending = name if data.startswith(start) else ending
  return f"{modality}.{'mp4' if data[4:8] == b'ftyp' else ending}"


WRITERS: dict[str, type[Writer]] = {w.kind: w for w in (ArrayRecord, Tar)}


def sync(path: str) -> None:
  """Returns when a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
