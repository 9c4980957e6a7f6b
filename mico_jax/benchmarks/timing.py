"""Times of functions that run in alternating turns on the local device.

Functions take turns, so that a machine that slows down affects all of them, and
are compared by their ratio within a turn. Figures are medians with the distance
of the quartiles. The ceiling is measured likewise: the rate of a large matrix
product, not that of a data sheet.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Side of the matrix product that measures the ceiling, by platform.
_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
_BURST = 0.02  # least seconds of a turn
# Seconds between turns: threads of PyTorch spin for up to a fifth of a second
# after a product, on cores that the next turn needs.
_PAUSE = {"cpu": 0.25}


@dataclasses.dataclass(frozen=True)
class Timing:
  """Seconds of one call.

  Attributes:
    turns: seconds of one call in each turn, in order.
  """

  turns: tuple[float, ...]

  @property
  def median(self) -> float:
    """Median of the turns."""
    return statistics.median(self.turns)

  @property
  def spread(self) -> float:
    """Distance of the quartiles divided by the median."""
    if len(self.turns) < 2:
      return 0.0
    low, _, high = statistics.quantiles(self.turns, n=4, method="inclusive")
    return (high - low) / self.median

  def ratio(self, other: Timing) -> float:
    """Median over turns of the other's seconds divided by these."""
    pairs = zip(other.turns, self.turns, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def _calls(function: Callable[[], Any], *, least: float) -> int:
  """Number of calls that fill a turn."""
  start = time.perf_counter()
  function()
  spent = time.perf_counter() - start
  return max(1, min(math.ceil(least / max(spent, 1e-9)), 1000))


def alternate(
  functions: Mapping[str, Callable[[], Any]],
  *,
  turns: int = 7,
  least: float = _BURST,
) -> dict[str, Timing]:
  """Times functions in turns.

  Args:
    functions: name -> a call that returns when its work is done.
    turns: number of turns of each function, after one that does not count.
    least: least seconds of a turn.
  """
  counts = {}
  for name, function in functions.items():
    function()  # compiles
    counts[name] = _calls(function, least=least)
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  pause = _PAUSE.get(jax.default_backend(), 0.0) if len(functions) > 1 else 0.0
  for _ in range(turns):
    for name, function in functions.items():
      time.sleep(pause)
      start = time.perf_counter()
      for _ in range(counts[name]):
        function()
      seconds[name].append((time.perf_counter() - start) / counts[name])
  return {name: Timing(tuple(x)) for name, x in seconds.items()}


def waiting(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
  """A call of a JAX function that waits for its results."""

  def call() -> Any:
    return jax.block_until_ready(function(*args))

  return call


def ceiling(dtype: Any, *, turns: int = 5) -> float:
  """Measured rate of a large matrix product in FLOP/s.

  Args:
    dtype: of the factors.
    turns: number of turns, of which the fastest counts.
  """
  side = _SIDE.get(jax.default_backend(), 2048)
  x = jnp.ones((side, side), dtype)
  product = jax.jit(lambda x: jnp.matmul(x, x))
  times = alternate({"matmul": waiting(product, x)}, turns=turns)
  return 2 * side**3 / min(times["matmul"].turns)


def records(
  times: Mapping[str, Timing],
  *,
  first: str,
  flops: float = 0.0,
  limit: float = 0.0,
) -> list[dict[str, Any]]:
  """One record per function.

  Args:
    times: from `alternate`.
    first: the function that the others are compared with.
    flops: of one call; 0: without the share of the ceiling.
    limit: ceiling in FLOP/s.
  """
  result = []
  for name, timing in times.items():
    record: dict[str, Any] = {
      "implementation": name,
      "milliseconds": round(1e3 * timing.median, 4),
      "spread": round(timing.spread, 3),
      f"{first}_is_faster": round(times[first].ratio(timing), 3),
    }
    if flops and limit:
      record["share"] = round(flops / timing.median / limit, 3)
    result.append(record)
  return result


def default_dtype() -> str:
  """The dtype of benchmarks: float32 on a CPU, bfloat16 on other platforms."""
  return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def machine() -> str:
  """One line about the devices and the version of JAX."""
  device = jax.devices()[0]
  return (
    f"{device.device_kind}, {jax.device_count()} devices, jax {jax.__version__}"
  )
