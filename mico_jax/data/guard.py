"""A limit on the time that reading and decoding a sample may take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class StalledDecoder(RuntimeError):
  """A sample took longer than `data.timeout`."""


class Guard:
  """Runs work in a daemon thread and watches the sample it is at.

  What counts is the time that this process ran: one that was stopped (Ctrl-Z)
  and goes on has no stalled decoder.
  """

  def __init__(self, timeout: float):
    """Watches nothing yet.

    Args:
      timeout: seconds that a sample may take.
    """
    self._timeout = timeout
    self._waited = 0.0  # seconds for this sample
    self._name = ""

  def at(self, name: str) -> None:
    """Notes that a sample begins."""
    self._name, self._waited = name, 0.0

  def run(self, work: Callable[[], Any]) -> Any:
    """The result of `work`.

    Raises:
      StalledDecoder: if a sample hangs; its thread is left behind.
    """
    done = threading.Event()
    result: list[Any] = []

    def target() -> None:
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
      if self._waited > self._timeout:
        raise StalledDecoder(
          f"sample {self._name} was not decoded within data.timeout="
          f"{self._timeout:g} s; the file or its store hangs."
        )
    if not result[0]:
      raise result[1]
    return result[1]
