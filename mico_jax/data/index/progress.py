"""How far the making of an index is, where it takes long."""

from __future__ import annotations

import time

from mico_jax.data.identity import tell

_QUIET = 5.0  # seconds between lines, and before the first


class Progress:
  """Lines on stderr: done, of how many, and how long it will take."""

  def __init__(self, total: int, what: str, unit: int = 1):
    """Says nothing yet.

    Args:
      total: that is to be done.
      what: is done: "indexing shards".
      unit: that numbers are divided by for messages.
    """
    self._total, self._what, self._unit = total, what, unit
    self._began = self._said = time.monotonic()

  def __enter__(self) -> Progress:
    """Itself."""
    return self

  def __exit__(self, *_: object) -> None:
    """Nothing to close."""

  def update(self, done: int) -> None:
    """Says how far it is, now and then."""
    now = time.monotonic()
    if now - self._said < _QUIET or not 0 < done < self._total:
      return
    self._said = now
    left = (now - self._began) * (self._total - done) / done
    tell(
      f"{self._what}: {done // self._unit} of {self._total // self._unit}, "
      f"{left:.0f} s left."
    )
