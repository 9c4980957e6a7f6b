"""Processes that build units, are watched, and are replaced when they hang."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing import connection as connections
from typing import Any

from mico_jax import failures
from mico_jax.data.build import watch
from mico_jax.data.build.job import Job
from mico_jax.data.build.rows import Unit
from mico_jax.data.build.unit import Names, Tick, run_unit
from mico_jax.failures import TransientError

_START_SECONDS = 600.0  # that a process may take until it is at something
# What a library that crashes ends a process with. SIGKILL may be a lack of
# memory, which is nothing that a row can be blamed for.
_CRASHES = tuple(
  getattr(signal, name)
  for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
  if hasattr(signal, name)
)


def _serve(pipe: Any, memory: Any) -> None:
  """The life of a worker, which ends when its parent does, killed or not."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
  parent = multiprocessing.parent_process()
  assert parent is not None

  def follow() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=follow, daemon=True).start()
  with watch.telling(lambda *what: pipe.send(("at", what)), memory):
    while True:
      job, unit, count = pipe.recv()
      try:
        run_unit(job, unit, count, lambda items: pipe.send(("tick", items)))
      except Exception as error:
        pipe.send(("error", _portable(error)))
      else:
        pipe.send(("done", None))


def _portable(error: Exception) -> Exception:
  """An error that another process can raise, with the trace of this one."""
  trace = "".join(traceback.format_exception(error))
  if failures.is_transient(error) and not isinstance(error, OSError):
    error = TransientError(str(error))  # its cause does not travel
  try:
    same = multiprocessing.reduction.ForkingPickler.loads(
      multiprocessing.reduction.ForkingPickler.dumps(error)
    )
  except Exception:  # some errors of libraries cannot be unpickled
    same = RuntimeError(f"{type(error).__name__}: {error}")
  same.add_note(trace)
  return same


@dataclasses.dataclass
class _Worker:
  """A process, and what is known of it.

  Attributes:
    process: that serves.
    pipe: to it.
    memory: beats, and waits for a store that last.
    unit: that it builds; None: it is idle.
    told: raw items of the unit that progress knows of.
    ticks: raw items that this attempt has done.
    at: (stage, keys of rows) that it said last; None: nothing yet.
    beats: as seen last.
    silent: seconds without a sign of life.
  """

  process: Any
  pipe: Any
  memory: Any
  unit: Unit | None = None
  told: int = 0
  ticks: int = 0
  at: tuple[str, Sequence[str]] | None = None
  beats: int = 0
  silent: float = 0.0

  @classmethod
  def start(cls) -> _Worker:
    """A new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    memory = context.RawArray("q", 2)
    process = context.Process(target=_serve, args=(theirs, memory), daemon=True)
    process.start()
    theirs.close()
    return cls(process, ours, memory)

  def begin(self, job: Job, unit: Unit, count: int) -> None:
    """Sends a unit."""
    self.unit, self.at, self.ticks, self.silent = unit, None, 0, 0.0
    # One that has just died is seen to in `Crew._heard`.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.pipe.send((job, unit, count))

  def end(self) -> int:
    """Kills the process; the status that it ended with."""
    self.process.kill()
    self.process.join()
    self.pipe.close()
    return self.process.exitcode


class Crew:
  """Workers of one build; use as a context."""

  def __init__(self, job: Job, count: int, size: int):
    """Starts nothing yet.

    Args:
      job: of the build.
      count: of all its units.
      size: processes at a time.
    """
    self._job, self._count, self._size = job, count, size
    self._workers: list[_Worker] = []
    self._period = max(0.05, min(job.timeout / 4, 1.0))

  def __enter__(self) -> Crew:
    """Itself."""
    return self

  def __exit__(self, *_: Any) -> None:
    """Ends all workers."""
    while self._workers:
      self._workers.pop().end()

  def build(self, units: Sequence[Unit], tick: Tick) -> None:
    """Builds units; see `run_unit` for what it raises.

    Raises:
      TransientError: if a worker dies or hangs where no row is to blame.
    """
    todo = collections.deque(units)
    while len(self._workers) < min(self._size, len(units)):
      self._workers.append(_Worker.start())
    while True:
      for worker in self._workers:
        if worker.unit is None and todo:
          worker.told = 0
          worker.begin(self._job, todo.popleft(), self._count)
      busy = [w for w in self._workers if w.unit is not None]
      if not busy:
        return
      began = time.monotonic()
      connections.wait([w.pipe for w in busy], timeout=self._period)
      # A parent that was stopped (Ctrl-Z) for hours has waited one period.
      passed = min(time.monotonic() - began, 2 * self._period)
      for worker in busy:
        try:
          self._listen(worker, tick)
        except (EOFError, ConnectionResetError):
          self._died(worker)
          continue
        self._watch(worker, passed)

  def _listen(self, worker: _Worker, tick: Tick) -> None:
    """Takes what a worker has sent."""
    while worker.pipe.poll():
      kind, value = worker.pipe.recv()
      worker.silent = 0.0
      if kind == "at":
        worker.at = value
      elif kind == "tick":
        worker.ticks += value
        if worker.ticks > worker.told:
          tick(worker.ticks - worker.told)
          worker.told = worker.ticks
      elif kind == "error":
        raise value
      else:
        worker.unit = None

  def _watch(self, worker: _Worker, passed: float) -> None:
    """Replaces a worker that has given no sign of life for too long."""
    beats, waits = worker.memory
    if beats != worker.beats or worker.unit is None:
      worker.beats, worker.silent = beats, 0.0
      return
    worker.silent += passed
    limit = self._job.timeout
    if worker.at is None:
      limit = max(limit, _START_SECONDS)
    elif waits:
      limit += failures.patience_seconds()
    if worker.silent <= limit:
      return
    worker.end()
    self._replace(worker, f"not done within {limit:g} s (--timeout)", waits)

  def _died(self, worker: _Worker) -> None:
    """Replaces a worker that a library took down."""
    worker.process.join()
    code = worker.end()
    if -code not in _CRASHES:
      self._workers.remove(worker)
      raise TransientError(
        f"a worker of the build died with status {code} (killed, out of "
        "memory, or a library ended it); the same command goes on with the "
        "units that are not done."
      )
    name = signal.Signals(-code).name
    self._replace(worker, f"its process crashed with {name}", 0)

  def _replace(self, worker: _Worker, reason: str, waits: int) -> None:
    """Notes what an ended worker was at; another begins its unit anew.

    Raises:
      TransientError: if no row is to blame.
    """
    unit = worker.unit
    assert unit is not None
    self._workers.remove(worker)
    stage, keys = worker.at or ("start", ())
    if not keys or waits:
      what = "waiting for storage" if waits else stage
      raise TransientError(
        f"shard {unit.index}, {what}: {reason}; the same command goes on with "
        "the units that are not done."
      )
    names = Names.of(self._job, unit.index, self._count)
    watch.Tries.add(names.tries, stage, keys, reason)
    failures.say(
      f"data build: shard {unit.index}, {stage} of {_shown(keys)}: {reason}; "
      "the shard is begun anew."
    )
    fresh = _Worker.start()
    fresh.told = worker.told
    self._workers.append(fresh)
    fresh.begin(self._job, unit, self._count)


def _shown(keys: Sequence[str]) -> str:
  """Rows by their keys, for a message."""
  more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
  return f"{json.loads(keys[0])[1]}{more}"
