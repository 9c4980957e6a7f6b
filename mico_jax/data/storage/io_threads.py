"""Threads that wait for stores, apart from those that decode.

A read that does not come back is given up: its thread is left behind and
another takes its place, so that a store that hangs costs threads, not the run.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitTimeout
from typing import Any, Generic, TypeVar

from mico_jax.failures import TransientError

T = TypeVar("T")
THREADS = 128  # reads in flight of a process, at most
_NAME = "mico-jax-io"
_PERIOD = 0.25  # seconds between looks at the time


class RemoteError(TransientError):
  """A remote file could not be read in time."""


class Task(Generic[T]):
  """A call that a thread makes.

  Attributes:
    future: of its result.
    started: whether a thread is at it; only then does time count.
  """

  def __init__(self, call: Callable[[], T]):
    """Not handed to any thread yet."""
    self.future: Future[T] = Future()
    self.started = False
    self._call = call

  def run(self) -> None:
    """Makes the call, unless it was cancelled."""
    if not self.future.set_running_or_notify_cancel():
      return
    self.started = True
    try:
      result = self._call()
    except BaseException as error:
      self.future.set_exception(error)
    else:
      self.future.set_result(result)


class IoThreads:
  """Up to `most` daemon threads, made when they are needed."""

  def __init__(self, most: int = THREADS):
    """Starts none."""
    self._most = most
    self._lock = threading.Lock()
    self._tasks: queue.SimpleQueue[Task[Any]] = queue.SimpleQueue()
    self._threads = 0
    self._idle = 0
    self._lost: set[threading.Thread] = set()
    self._at: dict[Task[Any], threading.Thread] = {}

  def submit(self, call: Callable[[], T]) -> Task[T]:
    """Queues a call."""
    task = Task(call)
    with self._lock:
      self._tasks.put(task)
      if self._idle < self._tasks.qsize() and self._threads < self._most:
        self._start()
    return task

  def _start(self) -> None:
    self._threads += 1
    threading.Thread(target=self._work, name=_NAME, daemon=True).start()

  def _work(self) -> None:
    here = threading.current_thread()
    done: Task[Any] | None = None
    while True:
      with self._lock:
        if done is not None:
          self._at.pop(done, None)
        if here in self._lost:  # another took this one's place
          self._lost.discard(here)
          return
        self._idle += 1
      done = None  # its bytes are not held by a thread that waits
      task = self._tasks.get()
      with self._lock:
        self._idle -= 1
        self._at[task] = here
      task.run()
      done, task = task, None

  def give_up(self, task: Task[Any]) -> None:
    """Lets another thread take the place of the one that is at a task."""
    if task.future.cancel():
      return
    with self._lock:
      thread = self._at.pop(task, None)
      if thread is not None:
        self._lost.add(thread)
        self._threads -= 1
        if self._threads < self._most:
          self._start()

  def wait(self, task: Task[T], seconds: float, what: str) -> T:
    """The result of a task.

    Args:
      task: of `submit`.
      seconds: that the call may take once a thread is at it.
      what: it does, for messages.

    Raises:
      RemoteError: after that time; its thread is left behind.
    """
    waited, period = 0.0, min(_PERIOD, max(seconds / 4, 0.001))
    while True:
      try:
        return task.future.result(period)
      except WaitTimeout:
        if task.future.done():  # the call's own error
          return task.future.result()
      waited += period if task.started else 0.0
      if waited > seconds:
        self.give_up(task)
        raise RemoteError(
          f"{what}: no answer within {seconds:g} s."
        ) from TimeoutError(what)

  def call(self, call: Callable[[], T], seconds: float, what: str) -> T:
    """`submit` and `wait`; within one of the threads the call itself."""
    if in_io_thread():
      return call()  # all of them may be at tasks that wait for further ones
    return self.wait(self.submit(call), seconds, what)


def in_io_thread() -> bool:
  """Whether the caller is one of these threads."""
  return threading.current_thread().name == _NAME


_shared: list[IoThreads] = []
_making = threading.Lock()
os.register_at_fork(after_in_child=_shared.clear)


def io_threads() -> IoThreads:
  """The threads of this process."""
  with _making:
    if not _shared:
      _shared.append(IoThreads())
    return _shared[0]
