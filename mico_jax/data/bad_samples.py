"""The record of broken samples: one line each, exactly once.

`<workdir>/bad_samples.jsonl` holds step, row, source, index, id and reason;
`modalities`, which could not be read ("record": the entry itself); and, where
the sample was replaced, `substitute` and `substitute_index`. Without those the
sample was used, its broken modalities absent. A line is written when its batch
is handed out, never when it is only read ahead; (step, row) already in the file
is not written again, so a resumed run that repeats steps leaves no second line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mico_jax.data.guard import name_of
from mico_jax.data.lines import add_lines, read_lines

_STEM = "bad_samples"
FILE = f"{_STEM}.jsonl"


class TooManyBadSamples(RuntimeError):
  """More samples are broken than `data.max_bad_fraction` allows."""


def read_bad_samples(workdir: str) -> list[dict[str, Any]]:
  """All lines of a workdir, by step and row; a cut last line is left out."""
  entries: dict[tuple[int, int], dict[str, Any]] = {}
  for entry in read_lines(workdir, _STEM):
    if isinstance(entry.get("step"), int) and isinstance(entry.get("row"), int):
      entries.setdefault((entry["step"], entry["row"]), entry)
  return [entries[place] for place in sorted(entries)]


def _modalities(entry: Mapping[str, Any]) -> list[str]:
  return list(entry.get("modalities", ()))


class BadSamples:
  """Writes and counts the broken samples of this process's rows.

  Attributes:
    count: of samples that are broken, in whole or in part.
    seen: samples handed out.
    modalities: how often each could not be read.
  """

  def __init__(
    self,
    workdir: str,
    *,
    max_fraction: float,
    start_step: int,
    seen: int,
    first_row: int = 0,
  ):
    """Rebuilds the counts from the file.

    Args:
      workdir: of the run; "" keeps counts only.
      max_fraction: of the samples; beyond it `add` raises.
      start_step: lines of earlier steps count as seen.
      seen: samples handed out before `start_step`.
      first_row: of this process, names its file on a remote workdir.
    """
    self._workdir, self._first_row = str(workdir), first_row
    self._max_fraction = max_fraction
    entries = read_bad_samples(self._workdir) if self._workdir else []
    self._known = {(e["step"], e["row"]) for e in entries}
    former = [e for e in entries if e["step"] < start_step]
    self.count = len(former)
    self.modalities = Counter(k for e in former for k in _modalities(e))
    self.seen = seen

  def add(self, bad: Iterable[Mapping[str, Any]], samples: int) -> None:
    """Counts a batch of `samples` rows with its broken ones.

    Raises:
      TooManyBadSamples: when the fraction is exceeded; the lines are written.
    """
    self.seen += samples
    new, last = [], None
    for entry in bad:
      last = entry
      self.count += 1
      self.modalities.update(_modalities(entry))
      place = (entry["step"], entry["row"])
      if place not in self._known:
        self._known.add(place)
        new.append(entry)
    if new and self._workdir:
      add_lines(self._workdir, _STEM, new, str(self._first_row))
    # Small counts say little: the first thousand samples count as a whole.
    if last and self.count > self._max_fraction * max(self.seen, 1000):
      where = f"; see {self._workdir}/{FILE}" if self._workdir else ""
      raise TooManyBadSamples(
        f"{self.count} of {self.seen} samples are broken, more than "
        f"data.max_bad_fraction={self._max_fraction:g}{where}. Last: "
        f"{name_of(last['source'], last['index'], last['id'])}: "
        f"{last['reason']}"
      )
