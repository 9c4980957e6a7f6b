"""Signs of life of a process that builds; see `mico_jax.data.build.watch`."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager

from mico_jax.data.guard import Guard


class Pulse(Guard):
  """Signs of life in shared memory, and whether a store is waited for."""

  def __init__(self, memory: MutableSequence[int]):
    """Takes two integers that the parent sees."""
    super().__init__(1.0)
    self._memory = memory

  def beat(self) -> None:
    """One sign of life."""
    self._memory[0] += 1

  def wait(self, begins: bool) -> None:
    """See `Guard`; waits for stores have limits of their own."""
    self._memory[1] += 1 if begins else -1
    self.beat()


_pulse: Pulse | None = None


@contextmanager
def beating(memory: MutableSequence[int]) -> Iterator[None]:
  """Within, this process gives signs of life in shared memory."""
  global _pulse
  _pulse = Pulse(memory)
  with _pulse.watching():
    yield


def beat() -> None:
  """A sign of life of what takes long and gets on."""
  if _pulse is not None:
    _pulse.beat()
