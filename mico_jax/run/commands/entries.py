"""Items of an embedding job: files by name, or samples of a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax.config import Config, ConfigError, DataConfig, SourceConfig
from mico_jax.data.sources import open_source
from mico_jax.data.statements import stated
from mico_jax.inference.prepare import Item
from mico_jax.modalities import UNSTATED, DecodeError, FileSpec, Stated


@dataclass(frozen=True)
class EmbedItem:
  """One file to embed.

  Attributes:
    id: of the row in the output; ids may repeat.
    key: modality.
    path: of the file, or what the source has in its place.
    stated: of it: unit, rate, channels.
    read: gives the file's content; None: `path` is read.
    source: path of the data it is from; "" for a file given by name.
    index: of the sample in its source, or of the file in the command.
  """

  id: str
  key: str
  path: str
  stated: Stated = UNSTATED
  read: Callable[[], Any] | None = None
  source: str = ""
  index: int = 0

  def describe(self) -> dict[str, Any]:
    """Fields that identify the entry in the output."""
    return {
      "id": writable(self.id),
      "modality": self.key,
      "path": writable(self.path),
      "source": writable(self.source),
      "index": self.index,
    }

  def item(self) -> Item:
    """The entry as an input of the model."""
    value = self.read or self.path
    stated, file = self.stated, self.read is None
    return Item(
      *(value, stated.unit, self.path, file, stated.rate, stated.channels)
    )

  def statement(self) -> dict[str, Any]:
    """What is stated, for the note of a job; as before there were rates."""
    told: dict[str, Any] = {"depth_unit": self.stated.unit}
    if self.stated.rate or self.stated.channels:
      told |= {"rate": self.stated.rate, "channels": self.stated.channels}
    return told


def writable(text: str) -> str:
  """A text that UTF-8 can hold: bytes of a file name that are none, escaped."""
  return text.encode("utf-8", "backslashreplace").decode()


def file_entries(specs: Sequence[FileSpec], first: int = 0) -> list[EmbedItem]:
  """Entries of files named on the command line; the path is the id.

  Args:
    specs: the files.
    first: index of the first one.
  """
  return [
    EmbedItem(
      *(s.path, s.key, s.path, Stated(s.unit, s.rate, s.channels)), index=i
    )
    for i, s in enumerate(specs, first)
  ]


def source_entries(
  source: SourceConfig, keys: Sequence[str]
) -> list[EmbedItem]:
  """Entries of a source: one per sample and modality it has.

  Args:
    source: of any kind.
    keys: modalities to embed.

  Raises:
    ConfigError: for data that cannot be opened, or have none of these
      modalities.
  """
  config = Config(data=DataConfig(sources={source.kind: source}))
  opened = open_source(config, source.kind)
  entries = []
  for i in range(len(opened)):
    try:
      record = opened.record(i)
    except DecodeError as e:
      entries.append(_broken(source.path, i, keys[0], str(e)))
      continue
    for key, read in record.media.items():
      if key in keys:
        path = str(record.fields.get(source.fields.get(key, key), record.id))
        entries.append(
          EmbedItem(
            *(record.id, key, path, stated(source, key), read, source.path, i)
          )
        )
  if not entries:
    raise ConfigError(
      f"no sample of {source.path} has {' or '.join(keys)}; map its fields "
      "with --field audio=FIELD."
    )
  return entries


def failing(reason: str) -> Callable[[], Any]:
  """A reader that raises DecodeError, for content that cannot be read."""

  def fail() -> Any:
    raise DecodeError(reason)

  return fail


def _broken(source: str, index: int, key: str, reason: str) -> EmbedItem:
  name = f"sample {index}"
  return EmbedItem(name, key, name, UNSTATED, failing(reason), source, index)
