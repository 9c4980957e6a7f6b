"""Sources of samples: the table, and those that read files.

A source has a length, `record(index)` for any index, and the SHA-256 of its
index, which the config keeps so that a run is resumed on the same data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.packed import ArrayRecordSource, expand
from mico_jax.data.records import (
  Record,
  make_record,
  matches,
  media_fields,
)
from mico_jax.data.references import FileReader, TarIndex, parent
from mico_jax.data.remote import Storage
from mico_jax.data.tfds_source import TfdsSource
from mico_jax.data.worlds import OmniWorldSource
from mico_jax.modalities import DecodeError, by_extension


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
    """
    ...


class ManifestSource:
  """A jsonl file: one sample per line (see the README of your data).

  Only the offsets of the lines are kept; they are parsed when read.
  """

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the manifest once and keeps the lines of the split.

    Raises:
      ConfigError: if it is missing, not jsonl, or no sample is left.
    """
    if not config.path:
      raise ConfigError(f"data.sources.{name}.path: name the manifest file.")
    try:
      self._data = storage.read(config.path)
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}.path: {error}") from error
    self._name, self._config = name, config
    self._files = FileReader(parent(config.path), config.root, storage, name)
    self.sha256 = hashlib.sha256(self._data).hexdigest()
    starts, start = [], 0
    for number, line in enumerate(self._data.split(b"\n"), 1):
      if line.strip():
        # Bytes that are no UTF-8 make a bad sample, not a bad manifest.
        fields = self._parse(line.decode("utf-8", "replace"), number)
        if matches(fields, config):
          starts.append((start, start + len(line), number))
      start += len(line) + 1
    if not starts:
      raise ConfigError(
        f"data.sources.{name}: no sample of {config.path} has "
        f"split={config.split!r} and where={dict(config.where)!r}."
      )
    self._lines = np.asarray(starts, np.int64)

  def _parse(self, line: str, number: int) -> dict[str, Any]:
    try:
      fields = json.loads(line)
    except ValueError as error:
      raise ConfigError(
        f"{self._config.path}, line {number}: not JSON: {error}."
      ) from error
    if not isinstance(fields, dict):
      raise ConfigError(
        f"{self._config.path}, line {number}: expected an object per line."
      )
    return fields

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._lines)

  def fields(self, index: int) -> dict[str, Any]:
    """The parsed line of a sample.

    Raises:
      DecodeError: if it is not UTF-8.
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
    """Sample number `index`."""
    fields = self.fields(index)
    media = {}
    for key, name in media_fields(self._config).items():
      if fields.get(name) is not None:
        media[key] = _reader(self._files, fields[name])
    sample_id = str(fields.get("id", f"line{self._lines[index][2]}"))
    return make_record(sample_id, fields, media, self._config)


def _reader(files: FileReader, reference: Any) -> Callable[[], Any]:
  return lambda: files.read(reference)


class WebDatasetSource:
  """Tar shards; members of a sample share their name up to the first dot.

  `.json` holds fields, `.txt` a caption, `.cls` a label; other members are
  fields named by what follows the dot. Without `fields` in the config, a
  member's type follows its ending.
  """

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Indexes the shards (`path`: comma-separated files or glob patterns).

    Raises:
      ConfigError: if there is no shard or no sample is left.
    """
    self._config = config
    self._shards: list[TarIndex] = []
    self._samples: list[tuple[int, str, dict[str, str]]] = []
    digest = hashlib.sha256()
    for path in expand(config.path, name):
      try:
        shard = TarIndex(storage.local(path))
      except DecodeError as error:
        raise ConfigError(f"data.sources.{name}: {error}") from error
      self._shards.append(shard)
      groups: dict[str, dict[str, str]] = {}
      for member, place in shard.members.items():
        folder, base = posixpath.split(member)
        stem, _, suffix = base.partition(".")
        key = posixpath.join(folder, stem)
        groups.setdefault(key, {})[suffix.lower()] = member
        digest.update(f"{member} {place}".encode())
      number = len(self._shards) - 1
      self._samples += [(number, k, v) for k, v in groups.items()]
    self.sha256 = digest.hexdigest()
    if config.where:
      self._samples = [
        s
        for s in self._samples
        if matches(self._fields(s), config, use_split=False)
      ]
    if not self._samples:
      raise ConfigError(
        f"data.sources.{name}: no sample in {config.path} with "
        f"where={dict(config.where)!r}."
      )

  def _fields(self, sample: tuple[int, str, dict[str, str]]) -> dict[str, Any]:
    number, _, members = sample
    shard = self._shards[number]
    fields: dict[str, Any] = {}
    if "json" in members:
      try:
        fields.update(json.loads(shard.read(members["json"])))
      except ValueError as error:
        raise DecodeError(f"{members['json']}: not JSON: {error}.") from error
    if "cls" in members:
      fields["label"] = int(shard.read(members["cls"]))
    if "txt" in members and "caption" not in fields:
      fields["caption"] = shard.read(members["txt"])
    return fields

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._samples)

  def record(self, index: int) -> Record:
    """Sample number `index`."""
    sample = self._samples[index]
    number, sample_id, members = sample
    shard = self._shards[number]
    by_field = {}
    for suffix in members:
      modality = by_extension(f".{suffix.rpartition('.')[2]}")
      if modality is not None and modality.embedding != "text":
        by_field.setdefault(modality.key, suffix)
    by_field.update(self._config.fields)
    media = {
      key: _member(shard, members[suffix])
      for key, suffix in by_field.items()
      if suffix in members
    }
    return make_record(sample_id, self._fields(sample), media, self._config)


def _member(shard: TarIndex, name: str) -> Callable[[], bytes]:
  return lambda: shard.read(name)


Opener = Callable[[str, SourceConfig, Config], Source]


def _files(
  source: Callable[[str, SourceConfig, Storage], Source],
) -> Opener:
  """Opens a source that reads files, with the config's timeout and cache."""

  def opener(name: str, spec: SourceConfig, config: Config) -> Source:
    data = config.data
    storage = Storage(timeout=data.timeout, cache_gb=data.cache_gb)
    return source(name, spec, storage)

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
