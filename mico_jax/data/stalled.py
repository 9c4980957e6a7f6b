"""Samples whose decoder did not come back.

The first time, the sample is noted in `<workdir>/stalled.jsonl` and the start
ends: what is to blame may pass. When a sample that was noted before this start
stalls again, it is quarantined: from then on, in every restart, it counts as
broken and its deterministic substitute is read.
"""

from __future__ import annotations

import os
from typing import Any

from mico_jax.data.guard import StalledDecoder
from mico_jax.data.lines import add_lines, read_lines

STEM = "stalled"
EVALUATION = -1  # in place of a step
REASON = "quarantined: its decoder stalled twice (stalled.jsonl)."


def quarantined(workdir: str) -> dict[tuple[str, int], dict[str, Any]]:
  """(source, index) -> the entry that quarantined the sample."""
  entries: dict[tuple[str, int], dict[str, Any]] = {}
  for entry in read_lines(workdir, STEM) if workdir else ():
    if entry.get("quarantined") and "source" in entry and "index" in entry:
      entries.setdefault((entry["source"], entry["index"]), entry)
  return entries


class Stalled:
  """The stalled samples of a run, as one process sees them."""

  def __init__(self, workdir: str, owner: str = "0"):
    """Reads what former starts noted.

    Args:
      workdir: of the run; "": nothing is noted, and nothing quarantined.
      owner: names this process's file on a remote workdir.
    """
    self._workdir, self._owner = workdir, owner
    entries = read_lines(workdir, STEM) if workdir else []
    self._before = {(e.get("source"), e.get("index")) for e in entries}
    self._quarantined = quarantined(workdir)

  def id(self, source: str, index: int) -> str | None:
    """The id of a quarantined sample ("" if unknown); None: it is none."""
    entry = self._quarantined.get((source, index))
    return None if entry is None else str(entry.get("id", ""))

  def note(self, error: StalledDecoder, step: int) -> bool:
    """Notes a sample that stalled; whether it is quarantined now.

    Args:
      error: names the sample.
      step: that read it, or `EVALUATION`.
    """
    sample = (error.source, error.index)
    if sample in self._quarantined:
      return True
    entry: dict[str, Any] = {
      "source": error.source,
      "index": error.index,
      "id": error.id,
      "step": step,
      "reason": str(error),
    }
    again = sample in self._before
    if again:
      entry["quarantined"] = True
      self._quarantined[sample] = entry
    if self._workdir:
      owner = f"{self._owner}-{os.getpid()}"
      add_lines(self._workdir, STEM, [entry], owner)
    return again
