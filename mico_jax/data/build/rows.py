"""What flows through a build: raw items, and the rows that become samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mico_jax.data.build.raw import Raw

Span = tuple[float, float]  # s from the first frame, the end not included


@dataclasses.dataclass(frozen=True)
class Entry:
  """What a list of videos says of one of them, or of a clip of it.

  Attributes:
    id: of the sample.
    span: of the clip; None: the whole file.
    texts: caption kind -> texts.
    fields: everything else that is said, kept under "metadata".
    reason: why it cannot be used; "": it can.
  """

  id: str
  span: Span | None = None
  texts: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reason: str = ""


@dataclasses.dataclass
class Row:
  """A sample in the making. Stages change it, or give several for one.

  Attributes:
    id: of the sample.
    fields: what the record will say; plain JSON.
    media: modality key -> bytes, array, or a list of those (frames).
    raw: the file it is cut from; None: there is none.
    span: its part of that file; None: all of it.
    lacks: modality key -> why there is none of it. That is no failure.
    stage: that it failed in; "": none.
    reason: why it failed, in one line; such a row passes the other stages by
      and is written to the status table alone.
  """

  id: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  media: dict[str, Any] = dataclasses.field(default_factory=dict)
  raw: Raw | None = None
  span: Span | None = None
  lacks: dict[str, str] = dataclasses.field(default_factory=dict)
  stage: str = ""
  reason: str = ""

  def fail(self, stage: str, reason: str) -> Row:
    """Marks the row as failed; returns it."""
    self.stage, self.reason = stage, reason
    self.media.clear()
    return self

  def part(self, name: str, span: Span) -> Row:
    """A row of its own for a part of the same file."""
    return dataclasses.replace(
      self,
      id=name,
      span=span,
      fields=dict(self.fields),
      media=dict(self.media),
      lacks=dict(self.lacks),
    )


@dataclasses.dataclass(frozen=True)
class Unit:
  """What becomes one shard: built whole or not at all.

  Attributes:
    index: of the shard.
    size: raw items, for the display of progress.
    payload: what its input needs to list them; picklable.
  """

  index: int
  size: int
  payload: Any = None


def runs(count: int, shards: int) -> Sequence[range]:
  """`count` items dealt to `shards` units in contiguous runs."""
  return [
    range(i * count // shards, (i + 1) * count // shards) for i in range(shards)
  ]
