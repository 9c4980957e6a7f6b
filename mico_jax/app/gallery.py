"""What is searched: an index of files, or scenes of OmniWorld."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.sources import open_source
from mico_jax.data.statements import stated
from mico_jax.inference.index import COLUMNS, Hit, Index, read_note, read_tables
from mico_jax.inference.omni_model import OmniModel
from mico_jax.modalities import MODALITIES, DecodeError
from mico_jax.modalities.items import Item
from mico_jax.world import World

SHOWN = 160  # pixels of a scene's pictures, larger than small models see them
_FRAMES = 8  # of a scene's video as it is shown
_SPLIT = "test"  # no scenes that a demo was trained on
_CAPTION = "omni"  # kind of the texts of scenes
_SOURCE = "omniworld"


@runtime_checkable
class Gallery(Protocol):
  """Items that are searched and shown.

  Attributes:
    index: their embeddings.
    title: one line about them.
  """

  index: Index
  title: str

  def item(self, row: int) -> Item:
    """An input of the model; the content is read when it is used.

    Raises:
      DecodeError: if the row says too little to read it again.
    """
    ...

  def view(self, row: int) -> Item:
    """The same item as it is shown, perhaps larger."""
    ...

  def text(self, row: int) -> str:
    """The text of an item that is one; "" for others."""
    ...


class IndexGallery:
  """The items of an index on disk; a row alone names a file that is read.

  Attributes: see `Gallery`.
  """

  def __init__(self, folder: str, model: OmniModel):
    """Opens an index.

    Raises:
      ConfigError: if there is none, or another checkpoint made it.
    """
    self.index = Index.open(folder)
    made_by = self.index.fingerprint
    if made_by and made_by != model.fingerprint:
      raise ConfigError(
        f"{folder} was made by another checkpoint ({self.index.checkpoint}); "
        "give that one."
      )
    place = pathlib.Path(folder)
    tables = read_tables(place, read_note(place), (COLUMNS[0], "stated"))
    self._stated = [text for table in tables for text in table["stated"]]
    self.title = f"{len(self.index)} items of {folder}"
    self._manifests: dict[str, Any] = {}

  def item(self, row: int) -> Item:
    """See `Gallery`."""
    hit = self.index.hit(row, 0.0)
    told = json.loads(self._stated[row])
    unit, rate = told.get("depth_unit", ""), told.get("rate", 0.0)
    channels = tuple(told.get("channels", ()))
    name = os.path.basename(hit.path) or hit.id
    if not hit.source:
      file = MODALITIES[hit.modality].kind == "interface"
      return Item(hit.path, unit, name, file, rate, channels)
    read = self._reader(hit)
    return Item(read, unit, name, False, rate, channels)

  def view(self, row: int) -> Item:
    """See `Gallery`."""
    return self.item(row)

  def text(self, row: int) -> str:
    """See `Gallery`; texts of files are not shown."""
    del row
    return ""

  def _reader(self, hit: Hit) -> Callable[[], Any]:
    """Reads a sample of a manifest again; an index keeps no other source."""
    if not hit.source.endswith(".jsonl"):
      raise DecodeError(f"{hit.id}: an item of a data set, without a preview.")
    if hit.source not in self._manifests:
      self._manifests[hit.source] = _opened(
        SourceConfig(kind="manifest", path=hit.source)
      )
    record = self._manifests[hit.source].record(hit.index)
    if record.id != hit.id or hit.modality not in record.media:
      raise DecodeError(f"{hit.id}: the manifest has changed.")
    return record.media[hit.modality]


def _opened(spec: SourceConfig, model: OmniModel | None = None) -> Any:
  config = Config() if model is None else model.config
  data = dataclasses.replace(config.data, sources={_SOURCE: spec})
  return open_source(dataclasses.replace(config, data=data), _SOURCE)


class WorldGallery:
  """Scenes of OmniWorld: their pictures, clips, sounds, maps and captions.

  Attributes: see `Gallery`.
  """

  def __init__(
    self,
    model: OmniModel,
    scenes: int = 64,
    progress: Callable[[int, int], None] | None = None,
  ):
    """Renders and embeds scenes.

    Args:
      model: that embeds them.
      scenes: how many.
      progress: called with (done, total) modalities.

    Raises:
      ConfigError: for a checkpoint that takes nothing of OmniWorld.
    """
    self._spec = SourceConfig(kind=_SOURCE, split=_SPLIT, size=scenes)
    source = _opened(self._spec, model)
    self._records = [source.record(i) for i in range(scenes)]
    self._world = World(split=_SPLIT, seed=self._spec.seed)
    media = self._records[0].media
    keys = [key for key in model.modalities if key in media or key == "text"]
    if not keys:
      raise ConfigError(
        "the checkpoint takes nothing that OmniWorld has (it takes "
        f"{', '.join(model.modalities)}); give --index."
      )
    self._rows = [(key, i) for key in keys for i in range(scenes)]
    parts = []
    for done, key in enumerate(keys):
      if progress is not None:
        progress(done, len(keys))
      given: dict[str, Any] = {key: [self._item(key, i) for i in range(scenes)]}
      parts.append(model.embed(**given, progress=False)[key])
    ids = [f"{self._records[i].id} {key}" for key, i in self._rows]
    columns: dict[str, Sequence[Any]] = {
      "id": ids,
      "modality": [key for key, _ in self._rows],
      "path": [""] * len(ids),
      "source": [_SOURCE] * len(ids),
      "index": [i for _, i in self._rows],
    }
    self.index = Index(parts, columns, fingerprint=model.fingerprint)
    self.title = f"{scenes} scenes of OmniWorld, {len(ids)} items"

  def item(self, row: int) -> Item:
    """See `Gallery`."""
    return self._item(*self._rows[row])

  def _item(self, key: str, scene: int) -> Item:
    record = self._records[scene]
    if key not in record.media:
      return Item(record.captions[_CAPTION][0], name=record.id)
    told = stated(self._spec, key)
    return Item(
      *(record.media[key], told.unit, record.id, False),
      *(told.rate, told.channels),
    )

  def view(self, row: int) -> Item:
    """See `Gallery`; pictures of `SHOWN` pixels."""
    key, scene = self._rows[row]
    plain = self._item(key, scene)
    if key not in self._records[scene].media:
      return plain

    def render() -> np.ndarray:
      arrays = self._world.render(
        self._world.scene(scene),
        size=SHOWN,
        num_frames=_FRAMES,
        fields=(key,),
      )
      return arrays[key]

    return dataclasses.replace(plain, value=render)

  def text(self, row: int) -> str:
    """See `Gallery`."""
    key, scene = self._rows[row]
    captions = self._records[scene].captions
    return "" if key in self._records[scene].media else captions[_CAPTION][0]
