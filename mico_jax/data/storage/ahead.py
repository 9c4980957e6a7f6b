"""Ranges that were asked for before they are needed, and their bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from mico_jax.data.storage.io_threads import IoThreads, Task

ROOM = 256 << 20  # bytes that are held for their readers, at most


class Span(NamedTuple):
  """Bytes of a file.

  Attributes:
    path: of the file.
    offset: of the first byte.
    size: number of bytes; -1: the whole file, whatever its size.
  """

  path: str
  offset: int = 0
  size: int = -1


class Ahead:
  """Spans on their way, by whom they are for.

  Nothing here is needed for a read to succeed: one that fails, hangs or comes
  late is read by whoever needs it.
  """

  def __init__(self, threads: IoThreads, room: int = ROOM):
    """Asks for nothing yet."""
    self._threads, self._room = threads, room
    self._lock = threading.Lock()
    self._spans: dict[str, list[tuple[int, int, Task[Any]]]] = {}
    self._owners: OrderedDict[Hashable, list[Span]] = OrderedDict()
    self._held = 0

  def plan(
    self,
    owner: Hashable,
    spans: Callable[[], Iterable[Span]],
    read: Callable[[Span], Any],
  ) -> None:
    """Reads spans in the background.

    Args:
      owner: who will read them; nothing happens if it was planned already.
      spans: says which; may read itself.
      read: reads one; its result is handed to `take`.
    """
    with self._lock:
      if owner in self._owners:
        return
      self._owners[owner] = []
    self._threads.submit(lambda: self._ask(owner, spans(), read))

  def _ask(
    self,
    owner: Hashable,
    spans: Iterable[Span],
    read: Callable[[Span], Any],
  ) -> None:
    for span in spans:
      size = max(span.size, 1 << 16)
      with self._lock:
        if owner not in self._owners or size > self._room:
          return
        while self._held + size > self._room and len(self._owners) > 1:
          oldest = next(iter(self._owners))
          if oldest == owner:
            return
          self._drop(oldest)
        task = self._threads.submit(lambda s=span: read(s))
        end = span.offset + span.size if span.size >= 0 else -1
        self._spans.setdefault(span.path, []).append((span.offset, end, task))
        self._owners[owner].append(span)
        self._held += size

  def take(self, span: Span) -> tuple[Task[Any], int] | None:
    """The task whose bytes hold a span, and the offset of its first byte."""
    with self._lock:
      for start, end, task in self._spans.get(span.path, ()):
        if span.size < 0:
          if end < 0:
            return task, 0
        elif start <= span.offset and span.offset + span.size <= end:
          return task, start
    return None

  def done(self, owner: Hashable) -> None:
    """Forgets what was for an owner."""
    with self._lock:
      if owner in self._owners:
        self._drop(owner)

  def _drop(self, owner: Hashable) -> None:
    for span in self._owners.pop(owner):
      self._held -= max(span.size, 1 << 16)
      end = span.offset + span.size if span.size >= 0 else -1
      others = self._spans[span.path]
      for i, (start, stop, task) in enumerate(others):
        if (start, stop) == (span.offset, end):
          task.future.cancel()
          del others[i]
          break
      if not others:
        del self._spans[span.path]
