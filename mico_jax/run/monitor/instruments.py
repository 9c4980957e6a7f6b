"""A counter of compilations, and the profiler."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from mico_jax.run.monitor.progress import say

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
  """Counts what the current thread compiles between `start` and `stop`.

  Other threads (the self-check of a checkpoint, say) compile beside the loop
  without holding it up, so they do not count.

  Attributes:
    count: compilations so far.
  """

  def __init__(self) -> None:
    """Counts nothing until `start`."""
    self.count = 0
    self._thread: int | None = None
    self._registered = False

  @property
  def active(self) -> bool:
    """Whether it counts."""
    return self._thread is not None

  def start(self) -> None:
    """Counts the compilations of this thread from now on."""
    if not self._registered:
      jax.monitoring.register_event_duration_secs_listener(self._hear)
      self._registered = True
    self._thread = threading.get_ident()

  def stop(self) -> None:
    """Stops counting; `start` goes on."""
    self._thread = None

  def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
    del duration_secs
    if event == COMPILE_EVENT and self._thread == threading.get_ident():
      self.count += 1


class StepProfiler:
  """Writes a profiler trace of some steps to `<workdir>/profile`."""

  def __init__(self, steps: Sequence[int], workdir: epath.PathLike):
    """Starts nothing yet.

    Args:
      steps: indices of the first and the last step; empty: none.
      workdir: of the run; the profiler needs a local one.
    """
    self._first, self._last = (steps[0], steps[-1]) if steps else (-1, -1)
    self._folder = epath.Path(workdir) / "profile"
    self._running = False

  def before(self, step: int) -> None:
    """Starts the profiler if the step about to run is the first or later."""
    if self._first <= step <= self._last and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, outputs: Any) -> None:
    """Stops the profiler after the last step, once its outputs are there."""
    if self._running and step >= self._last:
      jax.block_until_ready(outputs)
      self.close()

  def close(self) -> None:
    """Stops the profiler if it runs, for a loop that ends early."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      say(f"profiler trace: {self._folder}")
