"""Selecting samples by what they have: modalities and captions.

`data.sources.NAME.require` names what a sample must have to be read at all: a
modality ("audio"), a kind of caption ("caption:vision"), any caption
("caption"). The others are counted on stderr when the source is opened. A
broken record passes, so that it is named when it is read. What the index of a
source tells is not asked of its records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mico_jax.config import ConfigError, SourceConfig, to_dict
from mico_jax.data.identity import tell
from mico_jax.data.index import classes
from mico_jax.data.records import CAPTION, Record
from mico_jax.modalities import MODALITIES, DecodeError


def has(record: Record, name: str) -> bool:
  """Whether a record has what a name of `require` says."""
  what, _, kind = name.partition(":")
  if what == CAPTION:
    return kind in record.captions if kind else len(record.captions) > 0
  if MODALITIES[name].embedding == "text":
    return MODALITIES[name].caption_kind in record.captions
  return name in record.media


def check_names(source: str, names: Sequence[str]) -> None:
  """Checks the names of `require`.

  Raises:
    ConfigError: listing the known ones.
  """
  known = [k for k, m in MODALITIES.items() if m.letter != "t"]
  for name in names:
    what, colon, kind = name.partition(":")
    if name not in known and (what != CAPTION or (colon and not kind)):
      raise ConfigError(
        f"data.sources.{source}.require names {name!r}; known: "
        f"{', '.join(known)}, caption, caption:KIND."
      )


def _classes(known: np.ndarray) -> np.ndarray:
  """Class 0 of those that have all, 1 of others."""
  has, open_ones = known == 1, known < 0
  return np.where(open_ones, classes.UNKNOWN, ~has).astype(np.uint8)


class Having:
  """The samples of a source that have all that `require` names."""

  def __init__(self, source: Any, name: str, spec: SourceConfig):
    """Looks at the records, or takes what is known of them.

    Args:
      source: open, all of it.
      name: in the config.
      spec: its fields.

    Raises:
      ConfigError: for an unknown name, or if no sample is left.
    """
    check_names(name, spec.require)
    self._source, self.sha256 = source, source.sha256
    fields = to_dict(spec)
    later = ("size", "take", "skip", "take_by", "take_seed")
    for key in ("count", "sha256", "root", *later):
      fields.pop(key)
    wanted = tuple(dict.fromkeys(spec.require))

    def class_of(index: int) -> int:
      try:
        record = source.record(index)
      except DecodeError:
        return 0
      return 0 if all(has(record, n) for n in wanted) else 1

    known: Any = getattr(source, "having", lambda _: None)(wanted)
    found = classes.sort(
      source,
      fields,
      2,
      class_of,
      f"what the samples of {name!r} have",
      None if known is None else lambda: map(_classes, known),
    )
    self._rows = found.rows[: found.ends[0]]
    out = len(source) - len(self._rows)
    tell(
      f"source {name!r}: {len(self._rows)} of {len(source)} samples have "
      f"{' and '.join(wanted)}; {out} are left out."
    )
    if not len(self._rows):
      raise ConfigError(
        f"data.sources.{name}.require: no sample has {' and '.join(wanted)}."
      )

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._rows)

  def record(self, index: int) -> Record:
    """Record of sample `index`."""
    return self._source.record(self._row(index))

  def spans(self, index: int, keys: Sequence[str]) -> Any:
    """See `SourceKind.spans`."""
    return self._source.spans(self._row(index), keys)

  def plan(self, owner: Any, index: int, keys: Sequence[str]) -> None:
    """See `SourceKind.plan`."""
    self._source.plan(owner, self._row(index), keys)

  def _row(self, index: int) -> int:
    return int(self._rows[index])

  def __getattr__(self, name: str) -> Any:
    """What else the source can do, without numbers of samples."""
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self._source, name)
