"""Steps of several tasks are traced one by one and compiled together."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp

from mico_jax.config.loading import load
from mico_jax.run import compile as compile_lib
from mico_jax.run.compile import COMPILE_THREADS, CompiledStep, compile_all
from mico_jax.run.setup import resolve
from mico_jax.train.state import TrainState
from mico_jax.train.step import Program


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


def test_a_stage_compiles_what_it_changes(monkeypatch):
  """Programs that a stage leaves as they are are those of before it."""
  stages = (
    "{'late': {'start': 9, 'set': ('objectives.matching.floor=0.5',"
    "'tasks.align.steps=1')}, 'last': {'start': 19, 'set': ("
    "'optimizer.learning_rate=0.5', 'tasks.fuse.steps=0')}}"
  )
  session = resolve(load("demo", [f"stages={stages}"]))
  lowered = []

  def lower(part: Any, program: Program, state: Any) -> tuple[Any, float]:
    del part, state
    lowered.append(program)
    return SimpleNamespace(compile=lambda **_: program), 0.0

  monkeypatch.setattr(compile_lib, "_lower", lower)
  zero = jnp.zeros((), jnp.int32)
  state = TrainState(zero, {}, {}, None, zero, zero)
  found = compile_lib.compile_steps(session, state)
  makers = {(p.stage, p.task): found[p].run[:2] for p in found}
  early = {(stage, task): ("", task) for stage, task in makers if not stage}
  assert makers == early | {
    ("late", "align"): ("", "align"),
    ("late", "fuse"): ("late", "fuse"),  # trains matching
    ("late", "space"): ("", "space"),
    ("last", "align"): ("last", "align"),
    ("last", "space"): ("last", "space"),
  }
  assert {p[:2] for p in lowered} == set(makers.values())
