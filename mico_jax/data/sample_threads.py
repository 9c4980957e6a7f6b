"""Threads that decode: each takes one sample at a time, of whatever batch.

A batch waits for its own samples only, so one that takes long delays no other
batch and no other sample.
"""

from __future__ import annotations

import itertools
import math
import queue
import sys
import threading
from collections.abc import Callable, Sequence

from mico_jax.data.guard import Guard, StalledDecoder
from mico_jax.failures import TransientError

_NAME = "mico-jax-decode"
# Makes a sample; what it gives is called to hand the result in.
Work = Callable[[Guard], Callable[[], None]]


class _Batch:
  """Samples that somebody waits for.

  Attributes:
    changed: notified when all are there, or one failed.
    left: samples that are not there yet.
    error: of the first that failed.
    over: nobody waits any more.
  """

  def __init__(self, left: int):
    self.changed = threading.Condition()
    self.left = left
    self.error: BaseException | None = None
    self.over = False

  def wait(self, seconds: float) -> bool:
    """Waits so long at most; whether all are there.

    Raises:
      Exception: what one of them raised.
    """
    with self.changed:
      self.changed.wait_for(lambda: not self.left or self.error, seconds)
      if self.error is not None:
        raise self.error
      return not self.left


class _Job:
  """A sample to be made, once.

  Attributes:
    guard: watches it.
    rank: see `SampleThreads.run`.
    started: whether a thread is at it.
    done: whether it is handed in.
    replaced: it hangs, and another thread took the place of its own.
  """

  def __init__(self, work: Work, timeout: float, batch: _Batch, rank: int):
    self.guard, self.rank = Guard(timeout), rank
    self.started = self.done = self.replaced = False
    self._work, self._batch = work, batch

  def run(self) -> None:
    """Makes the sample; hands it in if it is still wanted."""
    batch, error = self._batch, None
    hand_in: Callable[[], None] | None = None
    self.started = True
    try:
      if not batch.over:
        with self.guard.watching():
          hand_in = self._work(self.guard)
    except BaseException as raised:
      error = raised
    with batch.changed:
      if batch.over or self.replaced:
        return
      try:
        if hand_in is not None:
          hand_in()
      except BaseException as raised:
        error = raised
      self.done = True
      batch.left -= 1
      batch.error = batch.error or error
      if error is not None or not batch.left:
        batch.changed.notify()


# Of a queue: rank, number of arrival, and the job; None ends a thread.
_Place = tuple[float, int, _Job | None]


class SampleThreads:
  """As many daemon threads as decode at a time."""

  def __init__(self, threads: int, timeout: float):
    """Starts none yet.

    Args:
      threads: how many.
      timeout: seconds that a sample may take (`Guard`).
    """
    self._most, self._timeout = threads, timeout
    self._lock = threading.Lock()
    self._jobs: queue.PriorityQueue[_Place] = queue.PriorityQueue()
    self._numbers = itertools.count()
    self._threads = 0

  def _start(self) -> None:
    with self._lock:
      if self._threads < self._most:
        self._threads += 1
        threading.Thread(
          target=_decode,
          args=(self._jobs,),
          name="mico-jax-decode",
          daemon=True,
        ).start()

  def __del__(self) -> None:
    """Ends the threads once they are idle."""
    if not sys or sys.is_finalizing():  # which ends them, and modules before
      return
    with self._lock:
      for _ in range(self._threads):
        self._jobs.put((math.inf, next(self._numbers), None))
      self._threads = 0

  def _put(self, job: _Job) -> None:
    self._jobs.put((job.rank, next(self._numbers), job))
    self._start()

  def run(
    self,
    works: Sequence[Work],
    again: Callable[[StalledDecoder], bool],
    *,
    rank: int = 0,
  ) -> None:
    """Makes some samples and waits for all of them.

    Args:
      works: of the samples, in the order in which they are begun.
      again: told of one that hangs; whether it is to be made again. The thread
        that is at it is left behind, and another takes its place.
      rank: samples of a lower rank are begun before.

    Raises:
      StalledDecoder: if it is not.
      Exception: what a work raises, at once.
    """
    batch = _Batch(len(works))
    jobs = [_Job(work, self._timeout, batch, rank) for work in works]
    for job in jobs:
      self._put(job)
    period = Guard(self._timeout).period
    try:
      while not batch.wait(period):
        self._watch(jobs, works, batch, again)
    finally:
      with batch.changed:
        batch.over = True

  def _watch(
    self,
    jobs: list[_Job],
    works: Sequence[Work],
    batch: _Batch,
    again: Callable[[StalledDecoder], bool],
  ) -> None:
    """Looks for samples that hang."""
    for i, job in enumerate(jobs):
      if not job.started or job.done:
        continue
      try:
        job.guard.tick()
      except TransientError as error:
        with batch.changed:
          if job.done:
            continue
          job.replaced = True
        with self._lock:
          self._threads -= 1
        if not (isinstance(error, StalledDecoder) and again(error)):
          self._start()
          raise
        jobs[i] = _Job(works[i], self._timeout, batch, job.rank)
        self._put(jobs[i])


def _decode(jobs: queue.PriorityQueue[_Place]) -> None:
  while (job := jobs.get()[-1]) is not None:
    job.run()
    if job.replaced:
      return
    del job
