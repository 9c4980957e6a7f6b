"""Nested subsets of a source, with the shares of its categories.

`data.sources.NAME.take` reads a part of a source: a share (below 1) or a number
of samples. With `take_by`, the record field of the category, each category
gives the same share. A smaller subset of the same `take_seed` lies within a
larger one, so runs on growing data differ by what was added only. `skip` leaves
a part out at the beginning: one source with `take=0.8` and one with `skip=0.8`
share no sample and are all there is, a part to learn from and one to choose on.

Each category is shuffled; the r-th of its n samples, from 0, comes at place
(r + 1/2) / n of a common order, and a subset is the beginning of that, or what
follows on the part that is left out.

Source: MiCo, arXiv:2406.09412, appendix, subsets of the scaling laws.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.identity import tell
from mico_jax.data.records import Record
from mico_jax.modalities import DecodeError

_UNKNOWN = ""  # category of samples without one
_TELL_S = 5.0  # between notes of progress


def nested_order(categories: Sequence[str], seed: int) -> Int[np.ndarray, " N"]:
  """An order of which every beginning has the shares of the categories.

  Args:
    categories: of each sample.
    seed: of the shuffling.
  """
  draw = np.random.default_rng(seed).random(len(categories))
  _, number = np.unique(np.asarray(categories, object), return_inverse=True)
  order = np.lexsort((draw, number))
  counts = np.bincount(number)
  rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
  place = np.empty(len(order))
  place[order] = (rank + 0.5) / counts[number[order]]
  return np.lexsort((draw, place))


class Subset:
  """A part of a source, in the order of the source."""

  def __init__(self, source: Any, name: str, spec: SourceConfig):
    """Chooses the samples; with categories it looks at all records.

    Args:
      source: open, all of it.
      name: in the config.
      spec: its fields.

    Raises:
      ConfigError: for more samples than there are, none, or a category that no
        sample has.
    """
    total = len(source)
    first = _samples(spec.skip, total)
    if not 0 <= first < total:
      raise ConfigError(
        f"data.sources.{name}.skip={spec.skip!r} leaves out {first} of {total} "
        "samples; expected a share below 1 or a number that leaves some."
      )
    count = _samples(spec.take, total) if spec.take else total - first
    if not 0 < count <= total - first:
      raise ConfigError(
        f"data.sources.{name}.take={spec.take!r}: {count} of {total - first} "
        "samples; expected a share below 1 that leaves some, or a number up to "
        f"{total - first}."
      )
    categories = [_UNKNOWN] * total
    if spec.take_by:
      categories = _categories(source, name, spec.take_by)
    order = nested_order(categories, spec.take_seed)
    self._rows = np.sort(order[first : first + count])
    self._source = source
    digest = hashlib.sha256(source.sha256.encode())
    digest.update(self._rows.astype("<i8").tobytes())
    self.sha256 = digest.hexdigest()
    kept = Counter(categories[i] for i in self._rows)
    parts = f" of {len(kept)} categories" if spec.take_by else ""
    tell(f"source {name!r}: {count} of {total} samples{parts} are taken.")

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

  def former_sha256(self) -> str:
    """See `SourceKind.former_sha256`."""
    return ""

  def _row(self, index: int) -> int:
    return int(self._rows[index])

  def __getattr__(self, name: str) -> Any:
    """What else the source can do, without numbers of samples."""
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self._source, name)


def _samples(amount: float, total: int) -> int:
  """A share of all samples, or a number of them."""
  return round(amount * total) if amount < 1 else int(amount)


def _categories(source: Any, name: str, field: str) -> list[str]:
  """The category of each sample; broken records have none.

  Raises:
    ConfigError: if no sample has the field.
  """
  out, start = [], time.monotonic()
  said = start
  for index in range(len(source)):
    try:
      value = source.record(index).fields.get(field)
    except DecodeError:
      value = None
    out.append(_UNKNOWN if value is None else repr(value))
    now = time.monotonic()
    if now - said > _TELL_S:
      said = now
      left = (now - start) * (len(source) - index - 1) / (index + 1)
      tell(
        f"source {name!r}: category of {index + 1} of {len(source)} samples, "
        f"about {left:.0f} s left"
      )
  missing = out.count(_UNKNOWN)
  if missing == len(out):
    raise ConfigError(
      f"data.sources.{name}.take_by={field!r}: no sample has this field."
    )
  if missing:
    tell(
      f"source {name!r}: {missing} samples have no {field!r}; they are a "
      "category of their own."
    )
  return out
