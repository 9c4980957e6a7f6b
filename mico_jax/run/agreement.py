"""Processes of one run must agree before the first step.

Started by hand or from a stale image, one process may have another seed, config
or version, or a wrong clock; each would silently train something else. They
compare notes first, and all end with the same line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mico_jax import config as config_lib
from mico_jax.checkpoint import manifest
from mico_jax.config import Config, ConfigError
from mico_jax.parallel import distributed

# Between the clocks of two processes. Times stand in logs and goodput only, so
# this is generous; it catches a machine without time synchronisation.
MAX_CLOCK_DIFFERENCE = 30.0


def note(config: Config) -> dict[str, Any]:
  """What this process compares with the others."""
  return {
    "clock": time.time(),
    "seed": config.seed,
    "versions": manifest.versions(),
    "config": json.loads(config_lib.to_json(config)),
  }


def compare(notes: Sequence[Mapping[str, Any]]) -> None:
  """Compares the notes of all processes, in their order.

  Raises:
    ConfigError: naming the first process that differs from process 0 and in
      what.
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
  """All processes go on from the same step; all must call it.

  Raises:
    ConfigError: if they found different checkpoints.
  """
  steps = distributed.gather_texts(str(step))
  if len(set(steps)) > 1:
    raise ConfigError(
      f"the processes would resume at steps {', '.join(steps)}: they see "
      "different workdirs; use one that all hosts share."
    )
