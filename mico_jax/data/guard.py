"""A limit on the time that reading and decoding a sample may take."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mico_jax.failures import TransientError, patience_seconds

_here = threading.local()


class StalledDecoder(TransientError):
  """A sample took longer than `data.timeout`; the start ends, not the run.

  Attributes:
    source: of the sample.
    index: of the sample in its source.
    id: of the sample; "" if it was not known yet.
  """

  source: str = ""
  index: int = -1
  id: str = ""


@contextlib.contextmanager
def waiting() -> Iterator[None]:
  """Time spent in here is a wait for storage or memory, no stalled decoder."""
  guard: Guard | None = getattr(_here, "guard", None)
  if guard is None:
    yield
    return
  guard.wait(True)
  try:
    yield
  finally:
    guard.wait(False)


class Guard:
  """Watches the sample that a thread is at.

  What counts is the time that this process ran: one that was stopped (Ctrl-Z)
  and goes on has no stalled decoder. Nor has one that waits for a store
  (`waiting`), which has limits of its own.

  Attributes:
    period: seconds between two calls of `tick`.
  """

  def __init__(self, timeout: float):
    """Watches nothing yet.

    Args:
      timeout: seconds that a sample may take.
    """
    self._timeout = timeout
    self.period = max(0.01, min(timeout / 4, 1.0))
    self._waited = 0.0  # seconds for this sample, or for this wait
    self._sample = ("", -1, "")
    self._reading = 0

  def at(self, source: str, index: int, sample_id: str = "") -> None:
    """Notes that a sample begins, or its id."""
    self._sample, self._waited = (source, index, sample_id), 0.0

  def wait(self, begins: bool) -> None:
    """Notes that a wait for storage or memory begins or ends."""
    self._reading += 1 if begins else -1
    self._waited = 0.0

  def tick(self) -> None:
    """Notes that the thread ran on for a period.

    Raises:
      StalledDecoder: if its sample hangs.
      TransientError: if a store does, beyond all patience.
    """
    self._waited += self.period
    if self._waited > self._limit():
      raise self._error()

  @contextlib.contextmanager
  def watching(self) -> Iterator[None]:
    """Within, this thread's waits are told to this guard."""
    _here.guard, self._waited = self, 0.0
    try:
      yield
    finally:
      _here.guard = None

  def run(self, work: Callable[[], Any]) -> Any:
    """The result of `work`, made by a daemon thread of its own.

    Raises:
      StalledDecoder, TransientError: as `tick`; the thread is left behind.
    """
    done = threading.Event()
    result: list[Any] = []

    def target() -> None:
      try:
        with self.watching():
          result.extend((True, work()))
      except BaseException as error:
        result.extend((False, error))
      done.set()

    threading.Thread(target=target, daemon=True).start()
    while not done.wait(self.period):
      self.tick()
    if not result[0]:
      raise result[1]
    return result[1]

  def _limit(self) -> float:
    # Attempts of a remote store end by themselves, after the timeout.
    return self._timeout + (patience_seconds() if self._reading else 0.0)

  def _error(self) -> TransientError:
    source, index, sample_id = self._sample
    name = name_of(source, index, sample_id)
    if self._reading:
      return TransientError(
        f"sample {name} was not read within {self._limit():g} s; its store "
        "hangs."
      )
    error = StalledDecoder(
      f"sample {name} was not decoded within data.timeout={self._timeout:g} s."
    )
    error.source, error.index, error.id = self._sample
    return error


def name_of(source: str, index: int, sample_id: str = "") -> str:
  """What messages call a sample: source and index name it, the id says more."""
  place = f"{source}[{index}]"
  return f"{sample_id} ({place})" if sample_id else place
