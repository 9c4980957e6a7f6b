"""Processes of one run must agree: before the first step, and where to stop.

A process started by hand or from a stale image may have another seed, config or
version, or a wrong clock, and would silently train something else. So the
processes compare these first, and on a difference all end with the same error.
Later any of them may receive a signal; `StopVote` then stops all of them at the
same step.
"""

from __future__ import annotations

import collections
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mico_jax import config as config_lib
from mico_jax.checkpoint import manifest
from mico_jax.config import Config, ConfigError
from mico_jax.parallel import distributed

# Seconds between the clocks of two processes. Only logs and goodput use times,
# so this is generous; it catches a machine without time synchronisation.
MAX_CLOCK_DIFFERENCE = 30.0


def note(config: Config) -> dict[str, Any]:
  """Values of this process that must equal those of the others."""
  return {
    "clock": time.time(),
    "seed": config.seed,
    "versions": manifest.versions(),
    "config": json.loads(config_lib.to_json(config)),
  }


def compare(notes: Sequence[Mapping[str, Any]]) -> None:
  """Compares the notes of all processes, in their order.

  Raises:
    ConfigError: naming the first process that differs from process 0, and the
      difference.
  """
  first = notes[0]
  for process, other in enumerate(notes[1:], 1):
    behind = other["clock"] - first["clock"]
    if abs(behind) > MAX_CLOCK_DIFFERENCE:
      raise ConfigError(
        f"the clock of process {process} differs by {behind:+.0f} s from that "
        "of process 0; synchronise the clocks of the hosts (NTP)."
      )
    for what in ("seed", "versions", "config"):
      if other[what] == first[what]:
        continue
      lines = (
        manifest.differences(first[what], other[what])
        if what != "seed"
        else [f"seed: {first[what]} != {other[what]}"]
      )
      raise ConfigError(
        f"process {process} has another {what} than process 0: "
        f"{'; '.join(lines[:2])}. Start every process with the same command "
        "and the same installation."
      )


def check_agreement(config: Config) -> None:
  """Compares config, seed, versions and clock; all processes must call it.

  Args:
    config: as loaded, before anything is filled in.

  Raises:
    ConfigError: the same in every process.
  """
  if jax.process_count() == 1:
    return
  distributed.barrier()  # so that all look at their clocks at once
  texts = distributed.gather_texts(json.dumps(note(config)))
  compare([json.loads(text) for text in texts])


def check_same_step(step: int) -> None:
  """Checks that all processes resume at the same step; all must call it.

  Raises:
    ConfigError: if they would resume at different steps.
  """
  steps = distributed.gather_texts(str(step))
  if len(set(steps)) > 1:
    raise ConfigError(
      f"the processes would resume at steps {', '.join(steps)}: they see "
      "different workdirs; use one that all hosts share."
    )


class StopVote:
  """Whether any process wants to stop, asked at each step without waiting.

  A tiny program on the devices takes the maximum of all flags. It is queued
  between two steps and its answer is read `delay` steps later, when it has long
  been computed: the host goes on queueing steps meanwhile. All processes read
  the answer to the same question at the same step, so they stop together.

  The program takes and returns the step counter, so that it runs behind one
  step and before the next: collectives of two programs that run side by side
  could meet each other.
  """

  def __init__(self, counter: Int[jax.Array, ""], *, delay: int):
    """Compiles the program; nothing is asked yet.

    Args:
      counter: scalar of the train state, replicated over all devices.
      delay: calls between a question and its answer; more than the steps that
        are queued at a time, or reading would wait.
    """
    self._delay = delay
    self._answers: collections.deque[jax.Array] = collections.deque()
    self._alone = jax.process_count() == 1
    if self._alone:
      return
    devices = np.asarray(jax.devices())
    mesh = jax.sharding.Mesh(devices, ("all",))
    self._flags = jax.NamedSharding(mesh, jax.P("all"))
    self._count = devices.size
    self._program = (
      jax.jit(
        lambda counter, flags: (counter, jnp.max(flags)),
        out_shardings=(counter.sharding, jax.NamedSharding(mesh, jax.P())),
      )
      .lower(counter, self._shared(False))
      .compile()
    )

  def _shared(self, flag: bool) -> Int[jax.Array, " D"]:
    """The flags of all processes, one for each device."""
    local_flag = lambda _: np.full(1, flag, np.int32)
    return jax.make_array_from_callback((self._count,), self._flags, local_flag)

  def ask(
    self, flag: bool, counter: Int[jax.Array, ""]
  ) -> tuple[bool, Int[jax.Array, ""]]:
    """Asks with the flag of this process; all must call it at every step.

    Args:
      flag: whether this process wants to stop.
      counter: of the state behind the step that was queued last.

    Returns:
      Whether any process wanted to stop `delay` calls ago (alone: now), and
      the counter to go on with.
    """
    if self._alone:
      return flag, counter
    counter, answer = self._program(counter, self._shared(flag))
    self._answers.append(answer)
    if len(self._answers) <= self._delay:
      return False, counter
    return bool(self._answers.popleft().addressable_data(0)), counter
