"""Sources of samples: the table, and those that read files.

A source has a length, `record(index)` for any index, and the SHA-256 of its
index, which the config keeps so that a run is resumed on the same data.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated
from mico_jax.data.packed import ArrayRecordSource
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
from mico_jax.data.tfds_source import TfdsSource
from mico_jax.data.webdataset import WebDatasetSource
from mico_jax.data.worlds import OmniWorldSource
from mico_jax.modalities import DecodeError


@runtime_checkable
class Source(Protocol):
  """Random access to records.

  Attributes:
    sha256: of the index: changes when samples are added, removed or reordered.
  """

  sha256: str

  def __len__(self) -> int:
    """Number of samples."""
    ...

  def record(self, index: int) -> Record:
    """Sample number `index`; reads no media.

    Raises:
      DecodeError: if the sample's entry itself is broken.
      TransientError: for storage that stays away.
    """
    ...


class ManifestSource:
  """A jsonl file: one sample per line (see the README of your data).

  Only the offsets of the lines are kept; they are parsed when read. A line that
  is no JSON object is a bad sample, of every split; a file without any such
  object is no manifest.
  """

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the manifest once and keeps the lines of the split.

    Raises:
      ConfigError: if it is missing, not jsonl, or no sample is left.
      TransientError: for storage that stays away.
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
    hashes = array.array("q")  # of the ids; -1 hashes no text
    for number, line in enumerate(self._data.split(b"\n"), 1):
      if line.strip():
        # Bytes that are no UTF-8 make a bad sample, not a bad manifest.
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
          found = fields.get("id")
          hashes.append(-1 if found is None else hash(str(found)))
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
    """The parsed line of a sample.

    Raises:
      DecodeError: if it is not UTF-8, or no JSON object.
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
    """Sample number `index`.

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


Opener = Callable[[str, SourceConfig, Config], Source]


def _files(
  source: Callable[[str, SourceConfig, Storage], Source],
) -> Opener:
  """Opens a source that reads files, with the config's timeout and cache."""

  def opener(name: str, spec: SourceConfig, config: Config) -> Source:
    return source(name, spec, Storage.of(config.data))

  return opener


# Kind -> opener. A new format is one class and one line.
SOURCES: dict[str, Opener] = {
  "omniworld": OmniWorldSource,
  "manifest": _files(ManifestSource),
  "webdataset": _files(WebDatasetSource),
  "array_record": _files(ArrayRecordSource),
  "tfds": _files(TfdsSource),
}


def open_source(config: Config, name: str) -> Source:
  """Opens one source of a config.

  Raises:
    ConfigError: for an unknown name or kind, data that cannot be opened, or
      data that changed since the config was pinned.
  """
  data = config.data
  if name not in data.sources:
    raise ConfigError(
      f"no data source {name!r}; known: {', '.join(sorted(data.sources))}."
    )
  spec = data.sources[name]
  if spec.kind not in SOURCES:
    raise ConfigError(
      f"data.sources.{name}.kind={spec.kind!r} is unknown; known: "
      f"{', '.join(SOURCES)}."
    )
  if spec.negative_facts and spec.kind != "omniworld":
    raise ConfigError(
      f"data.sources.{name}.negative_facts={spec.negative_facts}: only "
      'kind="omniworld" makes negatives; write them into the records instead.'
    )
  source = SOURCES[spec.kind](name, spec, config)
  if spec.size and spec.kind != "omniworld":
    source = First(source, spec.size)
  for what, old, new in (
    ("samples", spec.count, len(source)),
    ("index SHA-256", spec.sha256, source.sha256),
  ):
    if old and old != new:
      raise ConfigError(
        f"data source {name!r} changed: {what} was {old}, is now {new}. "
        f"Restore the data, or start a new run (path {spec.path!r})."
      )
  return source


class First:
  """The first samples of a source, in its order."""

  def __init__(self, source: Source, size: int):
    """Keeps `size` samples, or all if there are fewer."""
    self._source, self._size = source, min(size, len(source))
    self.sha256 = source.sha256

  def __len__(self) -> int:
    """Number of samples."""
    return self._size

  def record(self, index: int) -> Record:
    """Sample number `index`."""
    return self._source.record(index)


def open_sources(config: Config) -> dict[str, Source]:
  """Opens every source of a config."""
  return {name: open_source(config, name) for name in config.data.sources}


def pin_sources(
  config: Config, sources: Mapping[str, Source] | None = None
) -> Config:
  """The config with count and SHA-256 of each source filled in.

  Call it when a run starts; `open_source` then refuses data that changed.
  """
  if sources is None:
    sources = open_sources(config)
  pinned = {
    name: dataclasses.replace(
      spec, count=len(sources[name]), sha256=sources[name].sha256
    )
    for name, spec in config.data.sources.items()
  }
  return dataclasses.replace(
    config, data=dataclasses.replace(config.data, sources=pinned)
  )
