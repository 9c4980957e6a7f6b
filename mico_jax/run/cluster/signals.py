"""A clean stop on SIGTERM and SIGINT.

The first signal only sets a flag: the loop finishes its step, saves, and ends
with `StopSignal.exit_code`, which is 128 + the signal's number as shells and
schedulers expect (143 for SIGTERM, 130 for SIGINT): the run is not complete, so
the code is not 0. A second SIGINT raises KeyboardInterrupt at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from mico_jax.run.monitor import progress


class StopSignal:
  """Context manager: `if stop.requested: save and leave the loop`.

  With several processes each receives its own signal at its own time; agree
  on the step with `mico_jax.run.cluster.agreement.StopVote`.

  Attributes:
    requested: true once a signal came.
    signum: its number; 0 before.
  """

  def __init__(
    self, signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT)
  ) -> None:
    """Chooses the signals; nothing is installed before `with`.

    Args:
      signals: numbers of the signals that ask for a stop.
    """
    self.requested = False
    self.signum = 0
    self._signals = tuple(signals)
    self._previous: dict[int, Any] = {}

  @property
  def exit_code(self) -> int:
    """Exit status of the process: 128 + signal number; 0 without a signal."""
    return 128 + self.signum if self.requested else 0

  def request(self, signum: int = signal.SIGTERM) -> None:
    """Asks for a stop, as the signal would."""
    self.signum = int(signum)
    self.requested = True

  def __enter__(self) -> StopSignal:
    # Python installs handlers in the main thread only; elsewhere (a test, a
    # notebook's helper) the flag can still be set with `request`.
    if threading.current_thread() is threading.main_thread():
      for number in self._signals:
        self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    self._previous.clear()

  def _handle(self, signum: int, _: FrameType | None) -> None:
    if self.requested:
      if signum == signal.SIGINT:
        raise KeyboardInterrupt
      return
    self.request(signum)
    name = signal.Signals(signum).name
    progress.say(f"{name}: finishing this step, saving, then stopping.")
