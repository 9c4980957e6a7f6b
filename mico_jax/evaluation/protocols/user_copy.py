"""A user's copy of a benchmark: its official files, or shards built from them.

What is in the copy is counted before anything is measured: samples listed,
samples whose media are there, and the hash of the list. Sets whose videos are
links decay, so that few copies are whole; what is missing is left out of the
gallery and of the queries, and counted.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from mico_jax import files
from mico_jax.config import (
  Config,
  ConfigError,
  DataConfig,
  SourceConfig,
  from_dict,
  to_dict,
)
from mico_jax.data import field_paths
from mico_jax.data.identity import tell
from mico_jax.data.records import Record
from mico_jax.data.sources import Source, open_source
from mico_jax.data.sources.annotations import AnnotationsSource
from mico_jax.data.sources.rows import some
from mico_jax.evaluation.protocols.schema import BenchmarkProtocol, Classes

SHARDS = "protocol.json"  # what a build writes beside its shards


class MissingCopy(ConfigError):
  """The copy is not there, or not whole; `protocol` says how to get it."""


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a copy holds.

  Attributes:
    count: samples that the annotations list.
    questions: of all samples.
    sha256: of their sorted ids, one a line.
    files: annotation file -> SHA-256 of its content.
    lacking: modality -> ids of the samples without its file.
    absent: ids of the samples without any file.
    other: in what the list differs from that of the protocol; (): in nothing.
  """

  count: int
  questions: int
  sha256: str
  files: Mapping[str, str]
  lacking: Mapping[str, tuple[str, ...]]
  absent: tuple[str, ...]
  other: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class UserCopy:
  """An open copy.

  Attributes:
    spec: config of its source.
    source: open.
    facts: what it holds.
    names: of the classes.
    labels: that mean them.
  """

  spec: SourceConfig
  source: Source
  facts: Facts
  names: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()


def source_config(protocol: BenchmarkProtocol, folder: str) -> SourceConfig:
  """Config of the source that reads the official files in a folder."""
  kind = {protocol.texts.kind: "caption"} if protocol.texts.kind else {}
  return SourceConfig(
    kind=AnnotationsSource.kind,
    path=folder,
    # Files are found by listing the folder, so that only links which the user
    # has put there lead out of it, such as one to a disk with videos.
    root="/",
    split=protocol.split.name,
    captions=kind,
    depth_unit=protocol.depth_unit,
    units=protocol.units,
    rates=protocol.rates,
    channels=protocol.channels,
    options=to_dict(protocol.annotations),
  )


def open_copy(
  protocol: BenchmarkProtocol,
  name: str,
  folder: str,
  *,
  config: Config | None = None,
  other_split: bool = False,
) -> UserCopy:
  """Opens a folder with the official files of a protocol, or its shards.

  Args:
    protocol: loaded.
    name: of the protocol.
    folder: of the copy.
    config: with the limits of reading; None: the defaults.
    other_split: go on where the list of samples is not the protocol's.

  Raises:
    MissingCopy: if there is nothing, or not what the layout says.
    ConfigError: if the samples are others than the protocol's.
  """
  if files.exists(posixpath.join(folder, SHARDS)):
    copy = _open_shards(protocol, name, folder, config)
  else:
    copy = _open_official(protocol, name, folder, config)
  if copy.facts.other and not other_split:
    raise ConfigError(
      f"{folder} does not hold the split of {name}: "
      f"{'; '.join(copy.facts.other)}. Get the official files again, or give "
      "--other-split to measure these samples under a changed name."
    )
  return copy


def _opened(config: Config | None, name: str, spec: SourceConfig) -> Any:
  data = DataConfig() if config is None else config.data
  data = dataclasses.replace(data, sources={name: spec})
  return open_source(Config(data=data), name)


def _open_official(
  protocol: BenchmarkProtocol, name: str, folder: str, config: Config | None
) -> UserCopy:
  spec = source_config(protocol, folder)
  try:
    source: AnnotationsSource = _opened(config, name, spec)
  except ConfigError as error:
    raise MissingCopy(str(error)) from error
  ids = source.ids()
  twice = source.listed_again(single=False) if source.questions() else []
  if twice:
    tell(
      f"{folder}: a question with all its fields stands twice in {len(twice)} "
      f"samples ({some(twice)}); each counts."
    )
  lacking = {key: tuple(v) for key, v in source.lacking().items()}
  some_key = next(iter(lacking), None)
  absent = set(lacking[some_key]) if some_key is not None else set()
  for lost in lacking.values():
    absent &= set(lost)
  if len(absent) == len(ids):
    templates = [t for v in protocol.annotations.files.values() for t in v]
    raise MissingCopy(
      f"{folder}: of {len(ids)} samples, such as {some(ids)}, none has a file; "
      f"looked for {', '.join(templates)}."
    )
  found = {table.path: table.sha256 for table in source.tables}
  digest = ids_sha256(ids)
  facts = Facts(
    count=len(ids),
    questions=source.questions(),
    sha256=digest,
    files=found,
    lacking=lacking,
    absent=tuple(i for i in ids if i in absent),
    other=_differences(protocol, source, len(ids), digest),
  )
  names, labels = _classes(protocol.classes, source)
  return UserCopy(spec, source, facts, names, labels)


def ids_sha256(ids: Sequence[str]) -> str:
  """SHA-256 of sorted ids, one a line."""
  return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _differences(
  protocol: BenchmarkProtocol,
  source: AnnotationsSource,
  count: int,
  sha256: str,
) -> tuple[str, ...]:
  """In what the list of samples is not that of the protocol."""
  split, out = protocol.split, []
  asked = source.questions()
  if split.questions and asked != split.questions:
    out.append(f"{asked} questions are listed, expected {split.questions}")
  if split.count and count not in split.count:
    wanted = " or ".join(map(str, split.count))
    out.append(f"{count} samples are listed, expected {wanted} ({split.ids})")
  if split.sha256 and split.sha256 != sha256:
    out.append(
      f"the SHA-256 of the sorted ids is {sha256[:16]}..., expected "
      f"{split.sha256[:16]}..."
    )
  texts = max(1, protocol.texts.per_item) if protocol.texts.rule else 0
  rule = protocol.texts.rule
  again = source.listed_again(single=rule == "one") if rule else []
  if again:
    out.append(f"{len(again)} samples are listed again: {some(again)}")
  few = source.with_fewer_texts(texts) if texts else []
  if few:
    out.append(
      f"{len(few)} samples have fewer than {texts} captions: {some(few)}"
    )
  for table in source.tables:
    wanted = split.md5.get(posixpath.basename(table.path), "")
    if wanted and wanted != table.md5:
      out.append(
        f"{table.path} has the MD5 {table.md5}; its publisher gives {wanted}"
      )
  return tuple(out)


def _classes(
  classes: Classes, source: AnnotationsSource
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Names of the classes and the labels that mean them."""
  if classes.names:
    names, labels = classes.names, classes.labels or classes.names
  elif classes.table.file:
    rows = source.extra_table(classes.table).rows
    pairs = [
      (field_paths.fill(classes.label, r), field_paths.fill(classes.name, r))
      for r in rows
    ]
    if not all(label and name for label, name in pairs):
      raise ConfigError(f"a class of {classes.table.file[0]} lacks its name.")
    labels = tuple(str(label) for label, _ in pairs)
    names = tuple(str(name) for _, name in pairs)
    if classes.first:
      names = tuple(name.partition(",")[0].strip() for name in names)
  elif source.has_labels:
    labels = tuple(sorted(source.labels()))
    names = tuple(label.replace("_", " ") for label in labels)
  else:
    return (), ()
  if classes.present:
    there = source.labels()
    kept = [i for i, label in enumerate(labels) if label in there]
    names = tuple(names[i] for i in kept)
    labels = tuple(labels[i] for i in kept)
  return names, labels


# ---------------------------------------------------------------------- shards
class _Once:
  """The samples of a source without modalities that repeat another's file."""

  sha256: str

  def __init__(self, source: AnnotationsSource, repeated: Mapping[str, str]):
    self._source, self._repeated = source, repeated
    self.sha256 = source.sha256

  def __len__(self) -> int:
    return len(self._source)

  def record(self, index: int) -> Record:
    record = self._source.record(index)
    media = {k: v for k, v in record.media.items() if k not in self._repeated}
    return dataclasses.replace(record, media=media)


def each_file_once(copy: UserCopy, kind: str) -> tuple[Source, dict[str, str]]:
  """Samples to write as shards, and `fields` of the source that reads them.

  A file that two modalities share, such as a video and its sound, is written
  once where the shards can say so.

  Args:
    copy: of official files.
    kind: of the shards.
  """
  source = copy.source
  if kind != "array_record" or not isinstance(source, AnnotationsSource):
    return source, {}
  repeated = source.same_files()
  return (_Once(source, repeated) if repeated else source), repeated


def _reading_sha256(protocol: BenchmarkProtocol) -> str:
  """Hash of what a protocol says of the samples and how they are read."""
  names = ("annotations", "split", "classes", "texts", "depth_unit")
  whole = to_dict(protocol)
  parts = {name: whole[name] for name in names}
  # Shards of protocols that state none of these keep their hash.
  more = ("units", "rates", "channels")
  parts |= {name: whole[name] for name in more if whole[name]}
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def write_shards_note(
  folder: str,
  name: str,
  protocol: BenchmarkProtocol,
  copy: UserCopy,
  spec: SourceConfig,
) -> str:
  """Writes what `open_copy` needs to know of shards; returns the path.

  Args:
    folder: of the shards.
    name: of the protocol.
    protocol: by which they were made.
    copy: that the shards were made from.
    spec: config of a source that reads them.
  """
  pattern = os.path.basename(spec.path)
  content = {
    "protocol": name,
    "reading_sha256": _reading_sha256(protocol),
    "source": {**to_dict(spec), "path": pattern},
    "facts": dataclasses.asdict(copy.facts),
    "names": copy.names,
    "labels": copy.labels,
  }
  path = os.path.join(folder, SHARDS)
  files.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
  return path


@dataclasses.dataclass(frozen=True)
class ShardsNote:
  """What `write_shards_note` wrote.

  Attributes:
    spec: config of a source that reads the shards where they lie now.
    facts: of the copy that they were made from.
    names: of the classes.
    labels: that mean them.
  """

  spec: SourceConfig
  facts: Facts
  names: tuple[str, ...]
  labels: tuple[str, ...]


def read_shards_note(
  protocol: BenchmarkProtocol, name: str, folder: str
) -> ShardsNote:
  """What stands beside shards.

  Args:
    protocol: loaded.
    name: of the protocol.
    folder: of the shards.

  Raises:
    ConfigError: for shards of another protocol, or one that reads otherwise.
  """
  path = posixpath.join(folder, SHARDS)
  try:
    content = json.loads(files.read_text(path))
    made_for, reading = content["protocol"], content["reading_sha256"]
    spec = from_dict(content["source"], SourceConfig)
    facts = from_dict(content["facts"], Facts)
    names, labels = tuple(content["names"]), tuple(content["labels"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(f"{path}: not what a build writes: {error}.") from error
  if made_for != name:
    raise ConfigError(
      f"{folder} holds shards of the protocol {made_for!r}, not of {name!r}."
    )
  if reading != _reading_sha256(protocol):
    raise ConfigError(
      f"{folder}: the protocol {name!r} reads the official files in another "
      "way than when these shards were built; build them again."
    )
  pattern = posixpath.join(glob.escape(folder), spec.path)
  spec = dataclasses.replace(spec, path=pattern)
  return ShardsNote(spec, facts, names, labels)


def _open_shards(
  protocol: BenchmarkProtocol, name: str, folder: str, config: Config | None
) -> UserCopy:
  note = read_shards_note(protocol, name, folder)
  source = _opened(config, name, note.spec)
  if len(source) != note.facts.count:
    raise ConfigError(
      f"{folder}: the shards hold {len(source)} samples, {note.facts.count} "
      "were built; copy them again."
    )
  return UserCopy(note.spec, source, note.facts, note.names, note.labels)
