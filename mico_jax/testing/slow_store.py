"""A store in memory that answers late, refuses, cuts short or hangs.

Paths begin with "slow://". `knobs` sets how it behaves; what it was asked for
is counted.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from mico_jax.testing.faults import StoreError


@dataclasses.dataclass
class Knobs:
  """How the store behaves, and what it did.

  Attributes:
    latency: seconds before an answer.
    fault: told the number of each read (from 0); gives "503" | "429" |
      "truncated" | "hang" | "".
    hang: seconds that a hanging read takes.
    reads: so far.
    received: bytes handed out.
    busy: reads in flight now.
    most: of them at a time so far.
  """

  latency: float = 0.0
  fault: Callable[[int], str] = lambda _: ""
  hang: float = 5.0
  reads: int = 0
  received: int = 0
  busy: int = 0
  most: int = 0


class SlowFileSystem(MemoryFileSystem):
  """See the module."""

  protocol = "slow"
  # Apart from those of "memory://".
  store = {}  # noqa: RUF012
  pseudo_dirs = [""]  # noqa: RUF012
  knobs: ClassVar[Knobs] = Knobs()
  _guard: ClassVar = threading.Lock()

  @classmethod
  def _strip_protocol(cls, path: Any) -> Any:
    """The path as the store in memory has it."""
    if isinstance(path, str):
      path = path.removeprefix("slow://")
    return super()._strip_protocol(path)

  def info(self, path: Any, **options: Any) -> Any:
    """Answers after a while."""
    time.sleep(self.knobs.latency)
    return super().info(path, **options)

  def cat_file(
    self, path: Any, start: Any = None, end: Any = None, **options: Any
  ) -> bytes:
    """Answers after a while, if at all."""
    knobs = self.knobs
    with self._guard:
      number = knobs.reads
      knobs.reads += 1
      knobs.busy += 1
      knobs.most = max(knobs.most, knobs.busy)
    try:
      time.sleep(knobs.latency)
      fault = knobs.fault(number)
      if fault in ("503", "429"):
        raise StoreError(int(fault))
      if fault == "hang":
        time.sleep(knobs.hang)
      with self._guard:
        entry = self.store[self._strip_protocol(path)]
        data = bytes(entry.getbuffer()[start:end])
      if fault == "truncated" and start is not None:
        data = data[: len(data) // 2]
      with self._guard:
        knobs.received += len(data)
      return data
    except KeyError:
      raise FileNotFoundError(path) from None
    finally:
      with self._guard:
        knobs.busy -= 1


def register() -> type[SlowFileSystem]:
  """Lets fsspec find "slow://"; gives the class, whose `knobs` may be set."""
  fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
  SlowFileSystem.knobs = Knobs()
  SlowFileSystem.store.clear()
  return SlowFileSystem


def put(path: str, data: bytes) -> None:
  """Puts a file into the store."""
  fsspec.filesystem("slow").pipe_file(path.removeprefix("slow://"), data)
