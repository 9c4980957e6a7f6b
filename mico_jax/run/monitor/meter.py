"""Time and memory of a run: parts of a step, MFU, goodput, high-water marks."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from mico_jax.run.monitor.goodput import GoodputLog
from mico_jax.train.flops import mfu

# Parts of the loop, each logged as "time/<name>" in milliseconds a step.
PARTS = ("input_wait", "transfer", "step", "log", "save", "check")


@dataclasses.dataclass
class Clock:
  """Wall time of the parts of a run, in seconds.

  Attributes:
    compile: until every task's step was compiled.
    train: in the loop; the sum of the parts below and what is between them.
    input_wait: waiting for a batch.
    transfer: bringing it to the devices.
    step: in steps: starting them and waiting for them.
    log: fetching and writing metrics.
    save: until a checkpoint is copied and the previous one is on disk.
    check: in the cheap evaluations between steps.
    evaluate: in the evaluation after the loop.
  """

  compile: float = 0.0
  train: float = 0.0
  input_wait: float = 0.0
  transfer: float = 0.0
  step: float = 0.0
  log: float = 0.0
  save: float = 0.0
  check: float = 0.0
  evaluate: float = 0.0

  @property
  def total(self) -> float:
    """Seconds in all."""
    return self.compile + self.train + self.evaluate

  @contextlib.contextmanager
  def measure(self, part: str) -> Iterator[None]:
    """Adds the time inside to a field."""
    began = time.monotonic()
    try:
      yield
    finally:
      setattr(self, part, getattr(self, part) + time.monotonic() - began)


def memory_gb() -> dict[str, float]:
  """High-water marks of this process in GB.

  "memory/device_gb" of the fullest device, absent where the backend does not
  report it (CPU); "memory/host_gb", absent on Windows.
  """
  marks: dict[str, float] = {}
  peaks = [
    (device.memory_stats() or {}).get("peak_bytes_in_use")
    for device in jax.local_devices()
  ]
  known = [peak for peak in peaks if peak is not None]
  if known:
    marks["memory/device_gb"] = max(known) / 1e9
  with contextlib.suppress(ImportError):  # Windows
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024
    marks["memory/host_gb"] = used * unit / 1e9
  return marks


class Meter:
  """Turns the clock into values for the log, interval by interval."""

  def __init__(
    self,
    clock: Clock,
    *,
    flops: Mapping[Any, float] | None = None,
    goodput: GoodputLog | None = None,
  ):
    """Starts the first interval.

    Args:
      clock: of the run; the loop advances it.
      flops: program -> model FLOPs of its step on all devices together.
      goodput: of the run; None in all processes but the first.
    """
    self.clock = clock
    self._flops = dict(flops or {})
    self._goodput = goodput
    self._since = time.monotonic()
    self._former = dataclasses.replace(clock)

  def interval(self, done: int, counts: Mapping[Any, int]) -> dict[str, float]:
    """Values of the interval since the last call.

    Args:
      done: steps done since the beginning of the run.
      counts: program -> its steps in the interval.
    """
    now, steps = time.monotonic(), max(sum(counts.values()), 1)
    wall = max(now - self._since, 1e-9)
    spent = {
      part: getattr(self.clock, part) - getattr(self._former, part)
      for part in PARTS
    }
    values = {f"time/{k}": 1000 * v / steps for k, v in spent.items()}
    values["input_wait_share"] = spent["input_wait"] / wall
    flops = sum(self._flops.get(name, 0.0) * n for name, n in counts.items())
    # Waiting for data counts as training time; saves and evaluations do not.
    training = wall - spent["save"] - spent["check"]
    if flops and training > 0:
      values["model_tflops_per_second"] = flops / training / 1e12
      share = mfu(flops, training, jax.device_count(), jax.devices()[0])
      if share is not None:
        values["mfu"] = share
    values.update(memory_gb())
    if self._goodput is not None:
      seconds = {part: getattr(self.clock, part) for part in PARTS}
      values["goodput"] = self._goodput.update(
        done, {**seconds, "compile": self.clock.compile}
      )
    self._since, self._former = now, dataclasses.replace(self.clock)
    return values
