"""Samples whose decoder did not return in time.

The first time a sample stalls, it is logged in `<workdir>/stalled.jsonl` and
the run ends with an error, since the cause may be transient. If it stalls again
after a restart, it is quarantined: from then on it counts as broken, and its
deterministic substitute is read.
"""

from __future__ import annotations

import os
from typing import Any

from mico_jax.data.guard import StalledDecoder
from mico_jax.data.lines import add_lines, read_lines

STEM = "stalled"
EVALUATION = -1  # step of samples that an evaluation reads
REASON = "quarantined: its decoder stalled twice (stalled.jsonl)."


def quarantined(workdir: str) -> dict[tuple[str, int], dict[str, Any]]:
  """Log entries of quarantined samples, by (source, index)."""
  entries: dict[tuple[str, int], dict[str, Any]] = {}
  for entry in read_lines(workdir, STEM) if workdir else ():
    if entry.get("quarantined") and "source" in entry and "index" in entry:
      entries.setdefault((entry["source"], entry["index"]), entry)
  return entries


class Stalled:
  """The stalled samples of a run, in one process."""

  def __init__(self, workdir: str, owner: str = "0"):
    """Reads the log of earlier starts.

    Args:
      workdir: of the run; "": no log, and no quarantine after a restart.
      owner: names this process's file on a remote workdir.
    """
    self._workdir, self._owner = workdir, owner
    entries = read_lines(workdir, STEM) if workdir else []
    self._before = {(e.get("source"), e.get("index")) for e in entries}
    self._quarantined = quarantined(workdir)

  def id(self, source: str, index: int) -> str | None:
    """The id ("": unknown) of a quarantined sample; None for other samples."""
    entry = self._quarantined.get((source, index))
    return None if entry is None else str(entry.get("id", ""))

  def note(self, error: StalledDecoder, step: int) -> bool:
    """Logs a sample that stalled and says whether it is quarantined now.

    Args:
      error: holds source, index and id of the sample.
      step: step that read it, or `EVALUATION`.
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
