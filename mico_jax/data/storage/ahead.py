"""Ranges that were asked for before they are needed, and their bytes."""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mico_jax.data.storage.io_threads import IoThreads, Task

ROOM = 256 << 20  # bytes that are held for their readers, about
_UNKNOWN = 1 << 18  # bytes of a file whose size is not known, until it came
_STALE = 300.0  # seconds after which nobody is expected to come
_ASKED = 32  # owners whose spans one thread finds out, at a time


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


class _Piece:
  """A span on its way."""

  def __init__(
    self, span: Span, task: Task[bytes], read: Callable[[Span], bytes]
  ):
    self.span, self.task, self.read = span, task, read
    self.held = span.size if span.size >= 0 else _UNKNOWN
    self.dropped = False

  def holds(self, span: Span) -> bool:
    """Whether another span lies within this one."""
    if span.size < 0 or self.span.size < 0:
      return span.size < 0 and self.span.size < 0
    start, end = self.span.offset, self.span.offset + self.span.size
    return start <= span.offset and span.offset + span.size <= end


class _Pieces:
  """Those of one file, by their first byte."""

  def __init__(self) -> None:
    """None yet."""
    self._offsets: list[int] = []
    self._pieces: list[_Piece] = []
    self._longest = 0

  def __len__(self) -> int:
    """How many there are."""
    return len(self._pieces)

  def add(self, piece: _Piece) -> None:
    """Takes one."""
    at = bisect.bisect_right(self._offsets, piece.span.offset)
    self._offsets.insert(at, piece.span.offset)
    self._pieces.insert(at, piece)
    self._longest = max(self._longest, piece.span.size)

  def remove(self, piece: _Piece) -> None:
    """Lets one go."""
    at = bisect.bisect_left(self._offsets, piece.span.offset)
    at = self._pieces.index(piece, at)
    del self._offsets[at], self._pieces[at]

  def find(self, span: Span) -> _Piece | None:
    """One that holds a span; of several that begin alike the latest."""
    at = bisect.bisect_right(self._offsets, span.offset)
    for piece in reversed(self._pieces[:at]):
      if piece.holds(span):
        return piece
      if piece.span.offset + self._longest < span.offset + span.size:
        return None
    return None


# Owner, number of arrival, what to read, and how.
_Waiting = tuple[Any, int, Span, Callable[[Span], bytes]]
# Owner, what says its spans, and how they are read.
_Asked = tuple[Any, Callable[[], Iterable[Span]], Callable[[Span], bytes]]


class Ahead:
  """Spans on their way, by whom they are for.

  Nothing here is needed for a read to succeed: one that fails, hangs or comes
  late is read by whoever needs it. What finds no room waits until others were
  read; the lowest owner is served first.
  """

  def __init__(self, threads: IoThreads, room: int = ROOM):
    """Asks for nothing yet."""
    self._threads, self._room = threads, room
    # Again by the same thread, if a read is done before anybody waits for it.
    self._lock = threading.RLock()
    self._pieces: dict[str, _Pieces] = {}
    self._asked: deque[_Asked] = deque()
    self._asking = 0  # threads
    self._owners: OrderedDict[Any, tuple[float, list[_Piece]]]
    self._owners = OrderedDict()
    self._waiting: list[_Waiting] = []  # a heap
    self._numbers = itertools.count()
    self._begun: list[Any] = []  # owners of pieces, sorted
    self._held = 0

  def plan(
    self,
    owner: Any,
    spans: Callable[[], Iterable[Span]],
    read: Callable[[Span], bytes],
  ) -> None:
    """Reads spans in the background.

    Args:
      owner: who will read them, such as (step, row); nothing happens if it was
        planned already.
      spans: says which; may read itself.
      read: reads one.
    """
    with self._lock:
      if owner in self._owners:
        return
      self._owners[owner] = (time.monotonic(), [])
      self._drop_stale()
      self._asked.append((owner, spans, read))
      wanted = 1 + len(self._asked) // _ASKED
      if self._asking >= wanted:
        return
      self._asking += 1
    self._threads.submit(self._ask)

  def _ask(self) -> None:
    """Finds out spans until none is asked for; a thread hands on several."""
    while True:
      with self._lock:
        count = min(len(self._asked), _ASKED)
        asked = [self._asked.popleft() for _ in range(count)]
        if not asked:
          self._asking -= 1
          return
      found: list[_Waiting] = []
      for owner, spans, read in asked:
        # An error is that of whoever reads it.
        with contextlib.suppress(Exception):
          found += [(owner, next(self._numbers), s, read) for s in spans()]
      with self._lock:
        for place in found:
          heapq.heappush(self._waiting, place)
        self._start()

  def _start(self) -> None:
    """Starts what waits, as far as there is room; under the lock."""
    while self._waiting:
      owner, _, span, read = self._waiting[0]
      if owner not in self._owners:  # read it by itself meanwhile
        heapq.heappop(self._waiting)
        continue
      size = span.size if span.size >= 0 else _UNKNOWN
      while self._held and self._held + size > self._room:
        if not self._begun or self._begun[-1] <= owner:
          return
        self._put_back(self._begun[-1])
      heapq.heappop(self._waiting)
      task = self._threads.submit(lambda s=span, r=read: r(s))
      piece = _Piece(span, task, read)
      self._held += piece.held
      self._pieces.setdefault(span.path, _Pieces()).add(piece)
      if not self._owners[owner][1]:
        bisect.insort(self._begun, owner)
      self._owners[owner][1].append(piece)
      if span.size < 0:
        task.future.add_done_callback(lambda f, p=piece: self._came(p, f))

  def _came(self, piece: _Piece, future: Any) -> None:
    """Counts the bytes of a file whose size was not known."""
    if future.cancelled() or future.exception() is not None:
      return
    with self._lock:
      if not piece.dropped:
        size = len(future.result())
        self._held += size - piece.held
        piece.held = size

  def take(self, span: Span) -> tuple[Task[bytes], int] | None:
    """The task whose bytes hold a span, and the offset of its first byte."""
    with self._lock:
      pieces = self._pieces.get(span.path)
      piece = None if pieces is None else pieces.find(span)
    return None if piece is None else (piece.task, piece.span.offset)

  def done(self, owner: Any) -> None:
    """Forgets what was for an owner."""
    with self._lock:
      self._drop(owner)
      self._start()

  def _put_back(self, owner: Any) -> None:
    """Lets a later owner wait for an earlier one that has come."""
    began, pieces = self._owners[owner]
    again = [(owner, next(self._numbers), p.span, p.read) for p in pieces]
    self._drop(owner)
    self._owners[owner] = began, []
    for place in again:
      heapq.heappush(self._waiting, place)

  def _drop(self, owner: Any) -> None:
    pieces = self._owners.pop(owner, (0.0, []))[1]
    if pieces:
      del self._begun[bisect.bisect_left(self._begun, owner)]
    for piece in pieces:
      self._held -= piece.held
      piece.dropped = True
      if not piece.task.future.done():
        piece.task.future.cancel()
      others = self._pieces[piece.span.path]
      others.remove(piece)
      if not len(others):
        del self._pieces[piece.span.path]

  def _drop_stale(self) -> None:
    """Drops owners that never came, as those of a loop that was left."""
    now = time.monotonic()
    while self._owners:
      owner, (began, _) = next(iter(self._owners.items()))
      if now - began < _STALE:
        return
      self._drop(owner)
