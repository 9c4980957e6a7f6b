"""Steps of several tasks are traced one by one and compiled together."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

from mico_jax.run import compile as compile_lib
from mico_jax.run.compile import COMPILE_THREADS, CompiledStep, compile_all


class Busy:
  """Counts the threads inside, for as long as each stays."""

  def __init__(self, seconds: float) -> None:
    self.seconds = seconds
    self.now = self.most = 0
    self._lock = threading.Lock()

  def stay(self) -> str:
    """Enters, waits, leaves."""
    with self._lock:
      self.now += 1
      self.most = max(self.most, self.now)
    time.sleep(self.seconds)
    with self._lock:
      self.now -= 1
    return "compiled"


def test_one_step_is_traced_at_a_time_and_several_are_compiled(
  monkeypatch,
):
  """Linen changes fields of module classes while another thread reads them."""
  # Longer than tracing, or it would be over when the next one starts.
  tracing, compiling = Busy(0.05), Busy(1.0)

  def lower(name: str) -> tuple[Any, float]:
    tracing.stay()
    return SimpleNamespace(compile=compile_it), float(len(name))

  def compile_it(compiler_options: Any) -> str:
    assert compiler_options == {"an_option": True}
    return compiling.stay()

  monkeypatch.setattr(compile_lib, "step_options", lambda: {"an_option": True})
  found = compile_all(["one", "two", "three"], lower)
  assert found == {
    name: CompiledStep("compiled", len(name))
    for name in ("one", "two", "three")
  }
  assert tracing.most == 1
  assert compiling.most == COMPILE_THREADS
