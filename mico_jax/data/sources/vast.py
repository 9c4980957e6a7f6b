"""Data source of the annotations of VAST-27M, with a folder of clips."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from mico_jax import json_text
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.config.fields import NameMap
from mico_jax.data.references import FileReader, parent
from mico_jax.data.sources.rows import Media, RowSource, present
from mico_jax.data.sources.templates import check_templates, fill
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


class VastSource(RowSource):
  """A JSON list in the form of VAST-27M's annotations, with its clips.

  `vision_cap`, `audio_cap` and `vast_cap` are vision, audio and omni captions,
  `subtitle` is the subtitle, `clip_id` the id. `options.files` names the files
  of a clip; by default sound comes from the clip itself. `url` and `clip_span`
  are kept as fields: a file is used from its beginning to its end.
  """

  kind: ClassVar = "vast"
  reads: ClassVar = ("root",)
  Options: ClassVar = VastOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the annotations.

    Raises:
      ConfigError: if they are missing or no list of objects with `clip_id`.
    """
    self._name, self._config = name, config
    self._templates = dict(self.options(name, config).files)
    check_templates(self._templates, name)
    try:
      data = storage.read(config.path, limited=False)
      items = json.loads(data, object_pairs_hook=json_text.unique)
    except (DecodeError, ValueError, RecursionError) as error:
      text = " ".join(str(error).split())[:200]
      raise ConfigError(
        f"data.sources.{name}.path: {config.path}: {text}"
      ) from error
    if not isinstance(items, list) or not any(
      isinstance(i, dict) and _ID in i for i in items
    ):
      raise ConfigError(
        f"data.sources.{name}.path: {config.path}: expected a JSON list of "
        f"objects with {_ID!r}; a file with one object a line is of kind "
        "'manifest'."
      )
    self._items: list[Any] = items
    self._files = FileReader(parent(config.path), config.root, storage, name)
    self.sha256 = hashlib.sha256(data).hexdigest()
    self._choose(len(items))
    ids = (items[int(i)] for i in self._rows)
    self._tell_repeated(
      i.get(_ID) if isinstance(i, dict) else None for i in ids
    )

  def _fields(self, row: int) -> dict[str, Any]:
    item = self._items[row]
    if not isinstance(item, dict):
      raise DecodeError(f"entry {row} is no JSON object: {item!r:.60}.")
    fields = present(item)
    named = set(self._config.captions)
    captions = {
      kind: fields[field]
      for field, kind in _CAPTIONS.items()
      if field in fields and kind not in named
    }
    if captions and "captions" not in fields:
      fields["captions"] = captions
    fields.setdefault("id", fields.get(_ID))
    return fields

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    media = dict(super()._media(row, fields))
    for key, template in self._templates.items():
      name = fill(template, fields)
      if name is not None:
        media[key] = lambda name=name: self._files.read(name)
    return media
