"""Goodput: the share of wall time since the run began that trained it.

`<workdir>/goodput.json` holds one entry for each start of the run: when it
began, which steps it trained and where its time went. Steps that a later start
trained again are lost, as is the time between two starts; compilation, saves
that held up the loop and waiting for data are no training either.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mico_jax import files

FILE = "goodput.json"


def goodput(sessions: Sequence[Mapping[str, Any]], now: float) -> float:
  """Useful training seconds over wall seconds, in [0, 1].

  Args:
    sessions: in order; "began" (seconds since the epoch), "start" and "step"
      (first step and steps done), "train" (seconds in steps).
    now: the end of the last one.
  """
  useful = 0.0
  for index, session in enumerate(sessions):
    end = session["step"]
    for later in sessions[index + 1 :]:
      end = min(end, later["start"])
    trained = session["step"] - session["start"]
    if trained > 0:
      useful += session["train"] * max(end - session["start"], 0) / trained
  wall = now - sessions[0]["began"] if sessions else 0.0
  return min(useful / wall, 1.0) if wall > 0 else 0.0


class GoodputLog:
  """Keeps the file of one run; the main process calls `update` at each log."""

  def __init__(self, workdir: epath.PathLike, *, start_step: int, began: float):
    """Reads the entries of former starts.

    Args:
      workdir: of the run.
      start_step: first step of this start.
      began: when this start began, seconds since the epoch.
    """
    self._path = epath.Path(workdir) / FILE
    self._former: list[dict[str, Any]] = []
    with contextlib.suppress(FileNotFoundError, ValueError):
      self._former = json.loads(files.read_text(self._path))
    self._entry: dict[str, Any] = {
      "began": began,
      "start": start_step,
      "step": start_step,
      "train": 0.0,
    }

  def update(self, step: int, seconds: Mapping[str, float]) -> float:
    """Writes the state of this start and returns the goodput so far.

    Args:
      step: steps done.
      seconds: where the time of this start went; "step" is training.
    """
    now = time.time()
    self._entry.update(
      step=step, ended=now, train=seconds["step"], seconds=dict(seconds)
    )
    sessions = [*self._former, self._entry]
    files.write_text(self._path, json.dumps(sessions))
    return goodput(sessions, now)
