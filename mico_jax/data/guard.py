"""Time limit for reading and decoding one sample."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mico_jax.failures import TransientError, patience_seconds

_here = threading.local()


class StalledDecoder(TransientError):
  """A sample took longer than `data.timeout`; the run can be started again.

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
  """Within this context the guard's limit for decoding does not apply.

  For waits for storage or memory.
  """
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
  """Runs work in a daemon thread and limits the time for each sample.

  Only time in which this process runs counts, so that a process stopped by
  Ctrl-Z can go on. Waits for storage (`waiting`) have limits of their own.
  """

  def __init__(self, timeout: float):
    """Sets the limit.

    Args:
      timeout: seconds that a sample may take.
    """
    self._timeout = timeout
    self._waited = 0.0  # seconds for this sample, or for this wait
    self._sample = ("", -1, "")
    self._reading = 0

  def at(self, source: str, index: int, sample_id: str = "") -> None:
    """Sets the sample that the work reads now, and restarts its time."""
    self._sample, self._waited = (source, index, sample_id), 0.0

  def wait(self, begins: bool) -> None:
    """Begins or ends a wait for storage or memory."""
    self._reading += 1 if begins else -1
    self._waited = 0.0

  def run(self, work: Callable[[], Any]) -> Any:
    """The result of `work`.

    Raises:
      StalledDecoder: if a sample exceeds the limit; its thread keeps running.
      TransientError: if a store hangs.
    """
    done = threading.Event()
    result: list[Any] = []

    def target() -> None:
      _here.guard = self
      try:
        result.extend((True, work()))
      except BaseException as error:
        result.extend((False, error))
      done.set()

    self._waited = 0.0
    threading.Thread(target=target, daemon=True).start()
    period = max(0.01, min(self._timeout / 4, 1.0))
    while not done.wait(period):
      self._waited += period
      if self._waited > self._limit():
        raise self._error()
    if not result[0]:
      raise result[1]
    return result[1]

  def _limit(self) -> float:
    # Each attempt at a remote store ends by itself after the timeout.
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
  """Name of a sample in messages: its id, source and index."""
  place = f"{source}[{index}]"
  return f"{sample_id} ({place})" if sample_id else place
