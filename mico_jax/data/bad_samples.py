"""Log of the broken samples of a run, one line for each.

A line of `<workdir>/bad_samples.jsonl` holds step, row, source, index, id and
reason; `modalities` that could not be read ("record": the sample's entry); and,
if the sample was replaced, `substitute` and `substitute_index`. Otherwise the
sample was used without its broken modalities. A line is written when its batch
is yielded, not when it is read ahead. A (step, row) that is in the file already
is not written again, so a resumed run that repeats steps adds no second line.
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
  """All lines of a workdir by step and row, without an incomplete last line."""
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
    count: number of samples that are broken, fully or partly.
    seen: number of samples yielded.
    modalities: modality -> number of samples in which it could not be read.
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
    """Restores the counts from the file.

    Args:
      workdir: of the run; "": nothing is written.
      max_fraction: largest share of broken samples, 0 to 1.
      start_step: first step of this start.
      seen: number of samples yielded before `start_step`.
      first_row: of this process; names its file on a remote workdir.
    """
    self._workdir, self._first_row = str(workdir), first_row
    self._max_fraction = max_fraction
    entries = read_bad_samples(self._workdir) if self._workdir else []
    self._known = {(e["step"], e["row"]) for e in entries}
    earlier = [e for e in entries if e["step"] < start_step]
    self.count = len(earlier)
    self.modalities = Counter(k for e in earlier for k in _modalities(e))
    self.seen = seen

  def add(self, bad: Iterable[Mapping[str, Any]], samples: int) -> None:
    """Counts a batch and writes its broken samples.

    Args:
      bad: lines of the broken samples.
      samples: rows of the batch.

    Raises:
      TooManyBadSamples: when `max_fraction` is exceeded, after writing.
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
    # The share counts from a thousand samples on: before, it says little.
    if last and self.count > self._max_fraction * max(self.seen, 1000):
      where = f"; see {self._workdir}/{FILE}" if self._workdir else ""
      raise TooManyBadSamples(
        f"{self.count} of {self.seen} samples are broken, more than "
        f"data.max_bad_fraction={self._max_fraction:g}{where}. Last: "
        f"{name_of(last['source'], last['index'], last['id'])}: "
        f"{last['reason']}"
      )
