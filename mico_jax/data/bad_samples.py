"""The record of broken samples: one line each, exactly once.

`<workdir>/bad_samples.jsonl` holds step, row, source, id, substitute and
reason. A line is written when its batch is handed out, never when it is only
read ahead; (step, row) already in the file is not written again, so a resumed
run that repeats steps leaves no second line. Processes of one run append to
the same file under a lock; on a remote workdir, which cannot append, each
process rewrites a file of its own, `bad_samples-<first row>.jsonl`.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from mico_jax.data.remote import is_remote

FILE = "bad_samples.jsonl"


class TooManyBadSamples(RuntimeError):
  """More samples are broken than `data.max_bad_fraction` allows."""


def read_bad_samples(workdir: str) -> list[dict[str, Any]]:
  """All lines of a workdir, by step and row; a cut last line is left out."""
  lines: list[str] = []
  if is_remote(workdir):
    from etils import epath

    folder = epath.Path(workdir)
    for file in sorted(folder.glob("bad_samples*.jsonl")):
      lines += file.read_text().splitlines()
  else:
    for path in sorted(pathlib.Path(workdir).glob("bad_samples*.jsonl")):
      lines += path.read_text(encoding="utf-8").splitlines()
  found: dict[tuple[int, int], dict[str, Any]] = {}
  for line in lines:
    try:
      entry = json.loads(line)
      found.setdefault((entry["step"], entry["row"]), entry)
    except (ValueError, KeyError):
      continue
  return [found[key] for key in sorted(found)]


class BadSamples:
  """Writes and counts the broken samples of this process's rows."""

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
    self._entries = entries
    self.count = sum(e["step"] < start_step for e in entries)
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
      key = (entry["step"], entry["row"])
      if key not in self._known:
        self._known.add(key)
        new.append(entry)
    if new and self._workdir:
      self._write(new)
    # Small counts say little: the first thousand samples count as a whole.
    if last and self.count > self._max_fraction * max(self.seen, 1000):
      where = f"; see {self._workdir}/{FILE}" if self._workdir else ""
      raise TooManyBadSamples(
        f"{self.count} of {self.seen} samples are broken, more than "
        f"data.max_bad_fraction={self._max_fraction:g}{where}. Last: "
        f"{last['id']}: {last['reason']}"
      )

  def _write(self, entries: list[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(e, sort_keys=True) + "\n" for e in entries)
    if is_remote(self._workdir):
      from etils import epath

      self._entries += [dict(e) for e in entries]
      file = epath.Path(self._workdir) / f"bad_samples-{self._first_row}.jsonl"
      old = file.read_text() if file.exists() else ""
      file.write_text(old + text)
      return
    import fcntl

    folder = pathlib.Path(self._workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / FILE, "a+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX)
      size = file.seek(0, os.SEEK_END)
      if size:
        file.seek(size - 1)
        if file.read(1) != b"\n":  # cut by a kill in mid-line
          text = "\n" + text
      file.write(text.encode())
      file.flush()
