"""A manifest: its samples are packed as they are, or go through stages."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.build.inputs.base import Input
from mico_jax.data.build.raw import Raw
from mico_jax.data.build.rows import Row, Unit, runs
from mico_jax.data.faults import guarded
from mico_jax.data.records import media_fields
from mico_jax.data.references import join, parent
from mico_jax.data.sources.manifest import ManifestSource
from mico_jax.data.storage import Storage, is_remote
from mico_jax.modalities import DecodeError, by_extension
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.video import VIDEO

_LOOKED_AT = 10_000  # samples whose fields are looked at up front
_ARRAYS = (".npy", ".npz")


class ManifestInput(Input):
  """The samples of a manifest after `split` and `where`, in its order.

  A field that holds files but is mapped to no modality is an error up front, or
  the failure of its sample where it comes late: `drop` says that it is meant.
  """

  kind: ClassVar[str] = "manifest"

  def __init__(
    self,
    source: SourceConfig,
    *,
    drop: tuple[str, ...] = (),
    open_files: bool = False,
  ):
    """Opens the manifest.

    Args:
      source: of kind "manifest".
      drop: fields whose files are left out.
      open_files: stages work on its video or sound.

    Raises:
      ConfigError: for another kind, a manifest that cannot be opened, a field
        of `drop` that no sample has, and unmapped files.
    """
    if source.kind != "manifest":
      raise ConfigError(
        f"data build packs manifests; the source is of kind {source.kind!r}."
      )
    self._source, self._drop = source, frozenset(drop)
    self._open_files, self.split = open_files, source.split
    self.count = len(self._manifest)
    self._check_fields()

  @functools.cached_property
  def _manifest(self) -> ManifestSource:
    return ManifestSource("build", self._source, Storage())

  def __getstate__(self) -> dict[str, Any]:
    """Workers open the manifest themselves."""
    return {k: v for k, v in self.__dict__.items() if k != "_manifest"}

  def _check_fields(self) -> None:
    counts: dict[str, int] = {}
    looked, seen = min(self.count, _LOOKED_AT), set()
    for i in range(looked):
      try:
        fields = self._manifest.fields(i)
      except DecodeError:  # a failed row
        continue
      seen |= fields.keys()
      for name in self._loose(fields):
        counts[name] = counts.get(name, 0) + 1
    if missing := sorted(self._drop - seen) if looked == self.count else []:
      raise ConfigError(f"drop: no sample has a field {missing[0]!r}.")
    for name, count in counts.items():
      raise ConfigError(
        f"field {name!r} of {count} of {looked} samples holds files of no "
        f"modality, which would be lost: say --field MODALITY={name}, or "
        f"--drop {name}."
      )

  def _loose(self, fields: Mapping[str, Any]) -> Iterator[str]:
    """Fields that hold files and are mapped to no modality."""
    mapped = set(media_fields(self._source).values())
    used = [fields.get(name) for name in mapped]
    folder = parent(self._source.path)
    for name, value in fields.items():
      if name in mapped or name in self._drop or value in used:
        continue
      items = value if isinstance(value, list) else [value]
      if items and all(_is_file(folder, item) for item in items):
        yield name

  def identity(self) -> dict[str, Any]:
    """The SHA-256 of the manifest, and what is taken of it."""
    spec = dataclasses.asdict(self._source)
    names = ("split", "where", "fields", "captions", "root")
    return {
      "kind": self.kind,
      "sha256": self._manifest.sha256,
      "drop": sorted(self._drop),
      **{name: spec[name] for name in names},
    }

  def units(self, shards: int) -> list[Unit]:
    """See `Input`; 0: one."""
    shards = shards or 1
    if not 1 <= shards <= self.count:
      raise ConfigError(
        f"{shards=} must be from 1 to the number of samples, {self.count}."
      )
    parts = runs(self.count, shards)
    return [Unit(i, len(part), part) for i, part in enumerate(parts)]

  def rows(self, unit: Unit) -> Iterator[tuple[int, list[Row]]]:
    """See `Input`; a failed row names the modality, or "record"."""
    for i in unit.payload:
      row = Row(f"sample {i}")
      place = "record"
      try:
        record = self._manifest.record(i)
        row.id, row.fields = record.id, dict(record.fields)
        if loose := next(self._loose(record.fields), ""):
          raise DecodeError(
            f"field {loose!r} holds files of no modality: --field "
            f"MODALITY={loose}, or --drop {loose}."
          )
        for place, read in record.media.items():
          row.media[place] = guarded(read, place, reads=True)
        if self._open_files:
          self._prepare(row, record.captions)
      except DecodeError as error:
        row.fail(place, str(error))
      yield sum(map(_bytes, row.media.values())), [row]

  def _prepare(self, row: Row, captions: Mapping[str, tuple[str, ...]]) -> None:
    """Hands the video or sound to the stages, and captions by their kinds."""
    for kind, texts in captions.items():
      row.fields.setdefault(f"{kind}_caption", list(texts))
    for key in (VIDEO.key, AUDIO.key):
      data = row.media.get(key)
      if isinstance(data, bytes):
        row.raw = Raw(row.id, lambda data=data: data, key=key)
        return

  def source(self) -> dict[str, Any]:
    """See `Input`."""
    spec = self._source
    return {
      "captions": dict(spec.captions),
      "depth_unit": spec.depth_unit,
      "units": spec.units,
      "rates": spec.rates,
      "channels": spec.channels,
    }


def _bytes(media: Any) -> int:
  items = media if isinstance(media, list) else [media]
  return sum(getattr(x, "nbytes", None) or len(x) for x in items)


def _is_file(folder: str, value: Any) -> bool:
  """Whether a value is the name of a media file that is there."""
  if not isinstance(value, str) or not value or len(value) > 4096:
    return False
  path, inside = value, value
  for ending in (".tar:", ".npz:"):
    if ending in value:
      path, _, inside = value.partition(ending)
      path += ending[:-1]
      inside = inside if ending == ".tar:" else ".npz"
  suffix = os.path.splitext(inside)[1].lower()
  modality = by_extension(suffix)
  if suffix not in _ARRAYS and (
    modality is None or modality.kind != "knowledge"
  ):
    return False
  if is_remote(value):  # of a store; web addresses say where it came from
    return not value.startswith(("http://", "https://"))
  try:
    return os.path.isfile(join(folder, path))
  except ValueError:  # a NUL in the name
    return False
