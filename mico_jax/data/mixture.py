"""Shares of the sources of a task.

With a temperature T a source of n samples and weight w has the share
w n**(1/T) / sum(w n**(1/T)), as T5 mixes its tasks (arXiv:1910.10683, section
3.5.2). The order of data needs integers, so the shares become weights with the
sum `PARTS`: each is rounded down, but at least 1; what is left goes to the
largest remainders, equal ones by name. A weight is thus within 1 / `PARTS` of
its share, unless a source would have got none. Powers are taken in decimal
arithmetic of 30 digits, which gives the same on every machine.
"""

from __future__ import annotations

import decimal
from collections.abc import Mapping

from mico_jax.config import ConfigError, TaskConfig

PARTS = 10_000  # sum of the weights that follow from a temperature
_EXACT = decimal.Context(prec=30, rounding=decimal.ROUND_HALF_EVEN)


def source_weights(
  task: TaskConfig, sizes: Mapping[str, int]
) -> dict[str, int]:
  """The integer weights by which a task reads its sources.

  Args:
    task: of the config.
    sizes: source -> number of samples, at least 1.

  Raises:
    ConfigError: for more sources than `PARTS` can tell apart, and for a
      temperature whose powers cannot be computed.
  """
  named = {name: w for name, w in sorted(task.sources.items()) if w}
  if not task.temperature or not named:
    return dict(task.sources)
  power = _EXACT.divide(1, decimal.Decimal(repr(task.temperature)))
  try:
    parts = {
      name: _EXACT.multiply(
        w, _EXACT.power(decimal.Decimal(sizes[name]), power)
      )
      for name, w in named.items()
    }
  except decimal.Overflow:
    raise ConfigError(
      f"temperature={task.temperature}: 1 / {task.temperature} is too large a "
      "power of the sizes of the sources; 1 reads all samples equally often."
    ) from None
  return {**dict.fromkeys(task.sources, 0), **_rounded(parts)}


def _rounded(parts: Mapping[str, decimal.Decimal]) -> dict[str, int]:
  """Integers with the sum `PARTS` in proportion to `parts`."""
  if len(parts) > PARTS // 10:
    raise ConfigError(
      f"a temperature mixes at most {PARTS // 10} sources, got {len(parts)}."
    )
  total = decimal.Decimal(0)
  for part in parts.values():
    total = _EXACT.add(total, part)
  exact = {
    name: _EXACT.divide(_EXACT.multiply(part, PARTS), total)
    for name, part in parts.items()
  }
  whole = {name: max(1, int(x)) for name, x in exact.items()}
  first = sorted(exact, key=lambda name: (whole[name] - exact[name], name))
  left = PARTS - sum(whole.values())
  for name in first[: max(left, 0)]:
    whole[name] += 1
  for _ in range(-left):  # small sources got 1: the largest give it
    whole[max(first, key=whole.__getitem__)] -= 1
  return whole
