"""Tar shards of videos, as video2dataset and img2dataset write them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.build.inputs.base import Input
from mico_jax.data.build.inputs.metadata import PLACES
from mico_jax.data.build.raw import Raw
from mico_jax.data.build.rows import Row, Unit
from mico_jax.data.faults import guarded
from mico_jax.data.records import Record, as_texts
from mico_jax.data.sources.shards import expand
from mico_jax.data.sources.webdataset import WebDatasetSource
from mico_jax.data.storage import Storage, is_remote, short
from mico_jax.modalities import WHOLE, DecodeError
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.image import IMAGE
from mico_jax.modalities.video import VIDEO


class TarsInput(Input):
  """Tar shards, one unit each; a sample's video or sound is its raw file.

  An image is taken as it is; captions and maps can be made of it.

  The caption (`.txt`, or "caption" in `.json`) counts as one of the whole,
  unless `columns` names fields of the `.json` by caption kind; what else the
  `.json` says is kept under "metadata".
  """

  kind: ClassVar[str] = "tars"
  whole: ClassVar[bool] = True

  def __init__(
    self,
    pattern: str,
    *,
    columns: Mapping[str, str] | None = None,
    key_dot: str = "first",
    split: str = "",
  ):
    """Lists the shards.

    Args:
      pattern: files, as a source's path.
      columns: caption kind -> field of the `.json`.
      key_dot: see `SourceConfig`.
      split: name of the split that the result is called by.

    Raises:
      ConfigError: if there is none.
    """
    self._paths = expand(pattern, "tars")
    self._columns, self._key_dot = dict(columns or {}), key_dot
    self.split = split
    if roles := [role for role in self._columns if role in PLACES]:
      raise ConfigError(
        f"column {roles[0]}: the samples of tar shards are named by their "
        "members; only kinds of captions have columns."
      )

  def identity(self) -> dict[str, Any]:
    """Names and sizes of the shards."""
    return {
      "kind": self.kind,
      "columns": self._columns,
      "key_dot": self._key_dot,
      "files": [
        (os.path.basename(p), 0 if is_remote(p) else os.path.getsize(p))
        for p in self._paths
      ],
    }

  def units(self, shards: int) -> list[Unit]:
    """See `Input`."""
    if shards not in (0, len(self._paths)):
      raise ConfigError(
        f"{shards=}: each of the {len(self._paths)} tar files gives one shard."
      )
    return [Unit(i, 1, path) for i, path in enumerate(self._paths)]

  def rows(self, unit: Unit) -> Iterator[tuple[int, list[Row]]]:
    """See `Input`; a shard that cannot be read is one failed row."""
    path, name = unit.payload, os.path.basename(unit.payload)
    spec = SourceConfig(kind="webdataset", path=path, key_dot=self._key_dot)
    try:
      source = WebDatasetSource(name, spec, Storage())
    except ConfigError as error:
      yield 0, [Row(short(name)).fail("input", str(error))]
      return
    for i in range(len(source)):
      try:
        record = source.record(i)
        yield 0, [self._row(record, f"{name}:{record.id}")]
      except DecodeError as error:
        yield 0, [Row(f"{name}[{i}]").fail("input", str(error))]

  def _row(self, record: Record, name: str) -> Row:
    row = Row(record.id)
    for kind, column in self._columns.items():
      if texts := as_texts(record.fields.get(column)):
        row.fields[f"{kind}_caption"] = list(texts)
    if not self._columns and record.captions.get(WHOLE):
      row.fields[f"{WHOLE}_caption"] = list(record.captions[WHOLE])
    row.fields |= {"file": name, "metadata": _texts(record.fields)}
    key = next((k for k in (VIDEO.key, AUDIO.key) if k in record.media), "")
    if not key and IMAGE.key in record.media:
      row.media[IMAGE.key] = guarded(
        record.media[IMAGE.key], IMAGE.key, reads=True
      )
      return row
    if not key:
      media = ", ".join(record.media) or "no media"
      return row.fail("input", f"no video, sound or image; it has {media}.")
    read = record.media[key]
    row.raw = Raw(name, lambda: guarded(read, key, reads=True), key=key)
    return row


def _texts(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields as JSON can hold them: bytes are texts."""
  return {
    name: value.decode("utf-8", "replace")
    if isinstance(value, bytes)
    else value
    for name, value in fields.items()
  }
