"""Data source of a manifest: a jsonl file with one sample per line."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated
from mico_jax.data.records import (
  Record,
  id_of,
  make_record,
  matches,
  media_fields,
  parse_fields,
)
from mico_jax.data.references import FileReader, parent
from mico_jax.data.remote import Storage
from mico_jax.data.sources.base import SourceKind
from mico_jax.modalities import DecodeError


class ManifestSource(SourceKind):
  """A jsonl file: one sample per line, with its texts and names of its files.

  Only the offsets of the lines are kept, and lines are parsed when they are
  read. A line that is no JSON object is a broken sample of every split; a file
  without any JSON object is no manifest.
  """

  kind: ClassVar = "manifest"
  reads: ClassVar = ("root",)

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the manifest and selects the lines of the split.

    Raises:
      ConfigError: if it is missing, not jsonl, or no sample passes the filters.
      TransientError: for storage that stays unreachable.
    """
    if not config.path:
      raise ConfigError(f"data.sources.{name}.path: name the manifest file.")
    try:
      self._data = storage.read(config.path, limited=False)
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}.path: {error}") from error
    self._name, self._config = name, config
    self._files = FileReader(parent(config.path), config.root, storage, name)
    self.sha256 = hashlib.sha256(self._data).hexdigest()
    starts, start, good = [], 0, 0
    broken: list[DecodeError] = []
    hashes = array.array("q")  # of the ids; -1, the hash of no text: no id
    for number, line in enumerate(self._data.split(b"\n"), 1):
      if line.strip():
        # Invalid UTF-8 makes a broken sample, not a broken manifest.
        text = line.decode("utf-8", "replace")
        try:
          fields = self._parse(text, number)
        except DecodeError as error:
          broken.append(error)
          fields = {}
        else:
          good += 1
        if matches(fields, config):
          starts.append((start, start + len(line), number))
          sample_id = fields.get("id")
          hashes.append(-1 if sample_id is None else hash(str(sample_id)))
      start += len(line) + 1
    if broken and not good:
      raise ConfigError(str(broken[0]))
    if broken:
      tell(
        f"source {name!r}: {len(broken)} of {good + len(broken)} lines are no "
        f"JSON objects and count as broken samples; the first: {broken[0]}"
      )
    if not starts:
      raise ConfigError(
        f"data.sources.{name}: no sample of {config.path} has "
        f"split={config.split!r} and where={dict(config.where)!r}."
      )
    self._lines = np.asarray(starts, np.int64)
    tell_repeated(name, np.asarray(hashes, np.int64), self._id)

  def _parse(self, line: str, number: int) -> dict[str, Any]:
    return parse_fields(line, f"{self._config.path}, line {number}")

  def _id(self, index: int) -> str:
    return str(self.fields(index).get("id"))

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._lines)

  def fields(self, index: int) -> dict[str, Any]:
    """The fields in the line of a sample.

    Raises:
      DecodeError: if the line is not UTF-8 or no JSON object.
    """
    start, end, number = self._lines[index].tolist()
    try:
      line = self._data[start:end].decode("utf-8")
    except UnicodeDecodeError as error:
      raise DecodeError(
        f"{self._config.path}, line {number}: text is not UTF-8: "
        f"{error.reason} at byte {error.start}."
      ) from error
    return self._parse(line, number)

  def record(self, index: int) -> Record:
    """Record of sample `index`.

    Raises:
      DecodeError: for a broken line, or fields of a wrong type.
    """
    return guarded(lambda: self._record(index))

  def _record(self, index: int) -> Record:
    fields = self.fields(index)
    media = {}
    for key, name in media_fields(self._config).items():
      if fields.get(name) is not None:
        media[key] = _reader(self._files, fields[name])
    sample_id = id_of(fields, f"line{self._lines[index][2]}")
    return make_record(sample_id, fields, media, self._config)


def _reader(files: FileReader, reference: Any) -> Callable[[], Any]:
  return lambda: files.read(reference)
