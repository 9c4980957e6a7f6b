"""Ends a run whose steps no longer finish.

A collective that waits for a lost device never returns and cannot be
interrupted from Python. The watchdog is a thread: when no step finishes within
its limit it writes the stacks of all threads to stderr and to
`<workdir>/hang-<process>.txt` and ends the process with `status.HUNG`. The last
checkpoint is intact, so the same command resumes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from mico_jax.run.cluster import status
from mico_jax.run.monitor import progress


class Watchdog:
  """Context manager around a loop that calls `beat` after every step."""

  def __init__(
    self,
    seconds: float,
    workdir: epath.PathLike,
    *,
    end: Callable[[int], Any] = os._exit,
  ):
    """Starts nothing before `with`.

    Args:
      seconds: without a finished step; 0: never.
      workdir: of the run, where the stacks are written if it is local.
      end: called with `status.HUNG`; ends the process.
    """
    self._seconds = seconds
    self._workdir = os.fspath(workdir)
    self._end = end
    self._step = -1
    self._last = time.monotonic()
    self._paused = 0
    self._ended = threading.Event()

  def __enter__(self) -> Watchdog:
    self._last = time.monotonic()
    if self._seconds > 0:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self._ended.set()

  def beat(self, step: int) -> None:
    """Notes that a step is finished."""
    self._step, self._last = step, time.monotonic()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count the time inside, of an evaluation for example."""
    self._paused += 1
    try:
      yield
    finally:
      self._last = time.monotonic()
      self._paused -= 1

  def _watch(self) -> None:
    while not self._ended.wait(min(self._seconds / 4, 5.0)):
      waited = time.monotonic() - self._last
      if not self._paused and waited > self._seconds:
        self._bark(waited)
        return

  def _bark(self, waited: float) -> None:
    after = f"since step {self._step}" if self._step >= 0 else "at all"
    message = (
      f"no step finished {after} for {waited:.0f} s (train.watchdog_s="
      f"{self._seconds:g}): a collective or a decoder hangs. Stacks of all "
      "threads follow; the same command resumes at the last checkpoint."
    )
    progress.say(message)
    with contextlib.suppress(Exception):  # a stderr without a file behind it
      faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    if "://" not in self._workdir:
      name = f"hang-{jax.process_index()}.txt"
      with (
        contextlib.suppress(OSError),
        open(os.path.join(self._workdir, name), "w", encoding="utf-8") as file,
      ):
        file.write(message + "\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)
    sys.stderr.flush()
    self._end(status.HUNG)
