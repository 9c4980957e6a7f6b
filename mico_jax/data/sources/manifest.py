"""Samples that a manifest lists, one JSON object per line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.config.fields import NameMap
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated
from mico_jax.data.index import line_masks, lines, maps, places
from mico_jax.data.index.columns import Columns
from mico_jax.data.index.repeats import NO_ID, hash_of
from mico_jax.data.index.selection import select
from mico_jax.data.records import (
  Record,
  id_of,
  inline_fields,
  make_record,
  matches,
  media_fields,
  parse_fields,
)
from mico_jax.data.references import FileReader, parent
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.templates import check_templates, fill
from mico_jax.data.storage import Span, Storage, is_remote
from mico_jax.modalities import MODALITIES, DecodeError

# Manifests up to this size are read into memory: as safe from changes as fast.
SMALL = 8 << 20
_PIECE = 1 << 20  # rows that are looked at at a time


@dataclasses.dataclass(frozen=True)
class ManifestOptions:
  """How files are named that no field names whole."""

  # modality -> name of its file, such as "digits.npz:{image}"
  files: NameMap = dataclasses.field(default_factory=dict)


class ManifestSource(SourceKind):
  """A jsonl file: one sample per line, with its texts and names of its files.

  `options.files` makes names of fields that hold a part of one.
  Where the lines lie is read once and kept (`mico_jax.data.index`); they are
  parsed when read. A line that is no JSON object is a bad sample, of every
  split; a file without any such object is no manifest.
  """

  kind: ClassVar = "manifest"
  reads: ClassVar = ("root",)
  Options: ClassVar = ManifestOptions
  form: ClassVar[lines.Form] = lines.LINES
  entry: ClassVar = "line"  # what holds a sample, in messages
  plural: ClassVar = "lines"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Takes the index of the manifest, and the lines of the split.

    Raises:
      ConfigError: if it is missing, not jsonl, or no sample is left.
      TransientError: for storage that stays away.
    """
    if not config.path:
      raise ConfigError(f"data.sources.{name}.path: name the manifest file.")
    self._name, self._config, self._storage = name, config, storage
    self._templates = dict(self.options(name, config).files)
    check_templates(self._templates, name)
    self._data: bytes | None = None  # of a small one
    try:
      self._index = self._load()
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}.path: {error}") from error
    self._files = FileReader(parent(config.path), config.root, storage, name)
    self.remote = is_remote(config.path) or is_remote(config.root)
    meta = self._index.meta
    self.sha256 = meta["sha256"]
    self._tell_broken(meta)
    self._selection = select(
      meta["samples"],
      {"sha256": self.sha256, "split": config.split, "where": config.where},
      self._pick if self._selects() else None,
      lambda: self._index["id_hash"],
    )
    if not self._selection.count:
      raise ConfigError(
        f"data.sources.{name}: no sample of {config.path} has "
        f"split={config.split!r} and where={dict(config.where)!r}."
      )
    tell_repeated(
      name, np.empty(0, np.int64), self._id, self._selection.repeats
    )

  def _load(self, *, beside: bool = False) -> Columns:
    path, storage = self._config.path, self._storage
    if storage.stat(path).size <= SMALL and not beside:
      self._data = storage.read(path, limited=False)
      writer, meta = lines.build(path, storage, self._data, self.form)
      try:
        return writer.columns(meta)
      finally:
        writer.close()
    return places.load(
      path,
      self.form.kind,
      storage,
      lambda: lines.build(path, storage, form=self.form),
      beside=beside,
    )

  def write_index(self) -> list[str]:
    """Writes the index beside the manifest, where that may be."""
    self._load(beside=True)
    return [self._config.path]

  def presence(self) -> dict[str, dict[str, int]]:
    """How many lines of the manifest have each field, and are of each split."""
    return lines.presence(self._index)

  def _tell_broken(self, meta: dict[str, Any]) -> None:
    count, good = meta["samples"], meta["good"]
    if good == count:
      return
    try:
      self._fields(meta["broken"])
    except DecodeError as error:
      first = str(error)
    else:  # only bytes that are no UTF-8 parse when replaced
      first = f"{self._config.path}: a {self.entry} is no JSON object."
    if not good:
      raise ConfigError(first)
    tell(
      f"source {self._name!r}: {count - good} of {count} "
      f"{self.plural} are no JSON objects and count as broken samples; "
      f"the first: {first}"
    )

  # ------------------------------------------------------------------ selection
  def _selects(self) -> bool:
    """Whether split or `where` leave any line out."""
    splits = self._index.meta["splits"]
    others = set(splits) - {None, self._config.split}
    return bool(self._config.where or (self._config.split and others))

  def _pick(self) -> Iterator[np.ndarray]:
    """The rows of the split that pass `where`."""
    splits = self._index.meta["splits"]
    wanted = [
      i
      for i, split in enumerate(splits)
      if not self._config.split or split in (None, self._config.split)
    ]
    for start in range(0, self._index.meta["samples"], _PIECE):
      part = self._index["split"][start : start + _PIECE]
      rows = start + np.flatnonzero(np.isin(part, wanted))
      if self._config.where:
        rows = rows[[self._passes(int(row)) for row in rows]]
      maps.release()
      yield rows

  def _passes(self, row: int) -> bool:
    text = self._line(row).decode("utf-8", "replace")
    try:
      fields = parse_fields(text, "")
    except DecodeError:
      fields = {}
    return matches(fields, self._config)

  def having(self, names: Sequence[str]) -> Iterator[np.ndarray] | None:
    """See `SourceKind.having`; what templates name, the index cannot tell."""
    if self._templates:
      return None
    what = line_masks.wanted(self._index.meta, self._config, names)
    return None if what is None else self._having(what)

  def _having(self, what: line_masks.Wanted) -> Iterator[np.ndarray]:
    chosen = self._selection.rows
    for start in range(0, len(self), _PIECE):
      part = slice(start, min(start + _PIECE, len(self)))
      rows = part if chosen is None else chosen[part]
      has, doubt = line_masks.look(self._index, rows, what)
      maps.release()
      yield np.where(doubt, -1, has).astype(np.int8)

  # -------------------------------------------------------------------- samples
  def _id(self, index: int) -> str:
    return str(self.fields(index).get("id"))

  def __len__(self) -> int:
    """Number of samples."""
    return self._selection.count

  def fields(self, index: int) -> dict[str, Any]:
    """The parsed line of a sample.

    Raises:
      DecodeError: if it is not UTF-8, or no JSON object.
      ConfigError: if the manifest is no longer the one that was indexed.
    """
    return self._fields(self._selection.row(index))

  def _line(self, row: int) -> bytes:
    start, size = int(self._index["start"][row]), int(self._index["size"][row])
    if self._data is not None:
      return self._data[start : start + size]
    data = self._storage.read_range(self._config.path, start, size)
    if len(data) != size:
      raise self._changed(row)
    return data

  def _changed(self, row: int) -> ConfigError:
    return ConfigError(
      f"{self._at(row)}: the manifest changed while it was in use; restore it, "
      "or start a new run."
    )

  def _at(self, row: int) -> str:
    """The place of a sample, for messages."""
    number = int(self._index["number"][row])
    return f"{self._config.path}, {self.entry} {number}"

  def _shaped(self, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a sample, of those of its object."""
    return fields

  def _fields(self, row: int) -> dict[str, Any]:
    broken = bool(int(self._index["fields"][row]) & lines.BROKEN)
    data = self._line(row)
    try:
      line = data.decode("utf-8")
    except UnicodeDecodeError as error:
      raise DecodeError(
        f"{self._at(row)}: text is not UTF-8: {error.reason} at byte "
        f"{error.start}."
      ) from error
    try:
      fields = self._shaped(parse_fields(line, self._at(row)))
    except DecodeError:
      if broken or self._data is not None:
        raise
      raise self._changed(row) from None
    named = fields.get("id")
    value = NO_ID if named is None else hash_of(str(named))
    if self._data is None and value != int(self._index["id_hash"][row]):
      raise self._changed(row)
    return fields

  def record(self, index: int) -> Record:
    """Sample number `index`.

    Raises:
      DecodeError: for a broken line, or fields of a wrong type.
    """
    return guarded(lambda: self._record(index))

  def _references(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Modality -> its file."""
    named = {
      key: fields[field]
      for key, field in media_fields(self._config).items()
      if fields.get(field) is not None
    }
    for key, template in self._templates.items():
      name = fill(template, fields)
      if name is not None:
        named[key] = name
    return named

  def _record(self, index: int) -> Record:
    fields = self.fields(index)
    media = {
      key: lambda name=name, key=key: self._files.read(
        name, objects=MODALITIES[key].objects
      )
      for key, name in self._references(fields).items()
    }
    return make_record(self._id_of(fields, index), fields, media, self._config)

  def _id_of(self, fields: Mapping[str, Any], index: int) -> str:
    """The id of a sample; of one without, its place."""
    number = int(self._index["number"][self._selection.row(index)])
    return id_of(fields, f"line{number}")

  def spans(self, index: int, keys: Sequence[str]) -> list[Span]:
    """See `SourceKind.spans`."""
    names = self._references(self.fields(index))
    inline = inline_fields(self._config)
    wanted = [names[k] for k in keys if k in names and k not in inline]
    return [span for name in wanted for span in self._files.spans(name)]
