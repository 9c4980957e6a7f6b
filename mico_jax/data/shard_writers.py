"""Writers of the shards of `mico-jax data convert`."""

from __future__ import annotations

import abc
import io
import json
import re
import tarfile
from collections.abc import Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError
from mico_jax.data.media_files import file_type
from mico_jax.data.packed import pack
from mico_jax.modalities import by_extension

# Names of members that every reader of WebDataset takes for one key.
_KEY = re.compile(
  r"[A-Za-z0-9_-][A-Za-z0-9_ -]*(/[A-Za-z0-9_-][A-Za-z0-9_ -]*)*"
)
_KEY_LENGTH = 200


class ShardWriter(abc.ABC):
  """Writes samples to one file.

  Attributes:
    suffix: of the file.
    renamed: number of samples whose id is not their name in the file.
    fields: modality -> name of its field, where it is not the usual one.
  """

  suffix: ClassVar[str]

  def __init__(self, path: str):
    """Creates the file."""
    self.renamed = 0
    self.fields: dict[str, str] = {}

  @abc.abstractmethod
  def add(
    self,
    index: int,
    sample_id: str,
    fields: Mapping[str, Any],
    media: Mapping[str, Any],
  ) -> None:
    """Adds a sample.

    Args:
      index: of the sample in its source.
      sample_id: of the sample.
      fields: as JSON can hold them.
      media: modality -> bytes, an array, or a list of these.

    Raises:
      ConfigError: for a medium that the format cannot hold.
    """

  @abc.abstractmethod
  def close(self) -> None:
    """Completes the file."""


class ArrayRecordWriter(ShardWriter):
  """ArrayRecord files of packed samples."""

  suffix: ClassVar = ".array_record"

  def __init__(self, path: str):
    super().__init__(path)
    from array_record.python import array_record_module

    self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")

  def add(
    self,
    index: int,
    sample_id: str,
    fields: Mapping[str, Any],
    media: Mapping[str, Any],
  ) -> None:
    """See `ShardWriter.add`."""
    self._writer.write(pack(sample_id, fields, media))

  def close(self) -> None:
    """Completes the file."""
    self._writer.close()


class TarWriter(ShardWriter):
  """WebDataset tar files.

  A sample is `KEY.json` and a member for each modality: `KEY.jpg` if the type
  of the file implies the modality, else `KEY.<modality>`, which the config of
  the source names in `fields`. The key is the id, or the sample's number if
  that is no plain name.
  """

  suffix: ClassVar = ".tar"

  def __init__(self, path: str):
    super().__init__(path)
    self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
    self._keys: set[str] = set()

  def add(
    self,
    index: int,
    sample_id: str,
    fields: Mapping[str, Any],
    media: Mapping[str, Any],
  ) -> None:
    """See `ShardWriter.add`."""
    key = sample_id
    plain = len(key) <= _KEY_LENGTH and _KEY.fullmatch(key)
    if not plain or key in self._keys:
      key = f"{index:09d}"
      while key in self._keys:
        key = f"{key}_"
      self.renamed += 1
      fields = {"id": sample_id, **fields}
    self._keys.add(key)
    self._member(f"{key}.json", json.dumps(fields, sort_keys=True).encode())
    endings: set[str] = set()
    for name, raw in media.items():
      data, suffix = _content(name, raw, sample_id)
      modality = by_extension(suffix) if suffix else None
      ending = suffix.removeprefix(".")
      if modality is None or modality.key != name or ending in endings:
        ending = name
        self.fields[name] = name
      endings.add(ending)
      self._member(f"{key}.{ending}", data)

  def _member(self, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    self._tar.addfile(info, io.BytesIO(data))

  def close(self) -> None:
    """Completes the file."""
    self._tar.close()


def _content(name: str, raw: Any, sample_id: str) -> tuple[bytes, str]:
  """The bytes of a member, and the type of the file."""
  if isinstance(raw, bytes):
    return raw, file_type(raw)
  what = "frames in several files" if isinstance(raw, list) else "an array"
  raise ConfigError(
    f"sample {sample_id}: its {name} is {what}, which a WebDataset cannot "
    "hold; convert with --to array_record."
  )


WRITERS: dict[str, type[ShardWriter]] = {
  "array_record": ArrayRecordWriter,
  "webdataset": TarWriter,
}
