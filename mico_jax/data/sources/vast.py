"""Data source of the annotations of VAST-27M, with a folder of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.config.fields import NameMap
from mico_jax.data.faults import guarded
from mico_jax.data.index import lines
from mico_jax.data.index.entries import entries
from mico_jax.data.records import (
  id_of,
  matches,
)
from mico_jax.data.sources.manifest import ManifestSource
from mico_jax.data.sources.rows import present
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError

_ID = "clip_id"
# Field of the annotations -> kind of caption.
_CAPTIONS = {"vision_cap": "vision", "audio_cap": "audio", "vast_cap": "omni"}


@dataclasses.dataclass(frozen=True)
class VastOptions:
  """How the files of a clip are named."""

  # modality -> name of its file, relative to the folder of the annotations
  files: NameMap = dataclasses.field(
    default_factory=lambda: {
      "video": "{clip_id}.mp4",
      "audio": "{clip_id}.mp4",
    }
  )


def _fields_of(
  item: Mapping[str, Any], named: Collection[str] = ()
) -> dict[str, Any]:
  """The fields of a sample.

  Args:
    item: entry of the annotations.
    named: kinds of captions that are made of other fields.
  """
  fields = present(item)
  captions = {
    kind: fields[field]
    for field, kind in _CAPTIONS.items()
    if field in fields and kind not in named
  }
  if captions and "captions" not in fields:
    fields["captions"] = captions
  fields.setdefault("id", fields.get(_ID))
  return fields


class VastSource(ManifestSource):
  """A JSON list in the form of VAST-27M's annotations, with its clips.

  `vision_cap`, `audio_cap` and `vast_cap` are vision, audio and omni captions,
  `subtitle` is the subtitle, `clip_id` the id. `options.files` names the files
  of a clip; by default sound comes from the clip itself. `url` and `clip_span`
  are kept as fields: a file is used from its beginning to its end. Where the
  entries lie is read once and kept; they are parsed when read.
  """

  kind: ClassVar = "vast"
  reads: ClassVar = ("root",)
  Options: ClassVar = VastOptions
  form: ClassVar = lines.Form("vast.1", entries, _fields_of)
  entry: ClassVar = "entry"
  plural: ClassVar = "entries"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Takes the index of the annotations, and the entries of the split.

    Raises:
      ConfigError: if they are missing or no list of objects with `clip_id`.
      TransientError: for storage that stays away.
    """
    super().__init__(name, config, storage)
    if _ID not in self._index.meta["fields"]:
      raise ConfigError(
        f"data.sources.{name}.path: {config.path}: expected a JSON list of "
        f"objects with {_ID!r}; a file with one object a line is of kind "
        "'manifest'."
      )

  def _shaped(self, fields: dict[str, Any]) -> dict[str, Any]:
    return _fields_of(fields, self._config.captions)

  def _passes(self, row: int) -> bool:
    try:
      fields = guarded(lambda: self._fields(row))
    except DecodeError:  # to be named when it is read
      return True
    return matches(fields, self._config)

  def having(self, names: Sequence[str]) -> None:
    """See `SourceKind.having`: the index tells of no captions of entries."""
    del names

  def _id_of(self, fields: Mapping[str, Any], index: int) -> str:
    return id_of(fields, f"row{self._selection.row(index)}")
