"""The inputs of a gallery: in memory as far as it goes, else read again.

Matching and writing pass over the inputs again after the embedding. Those of a
large gallery (40,000 pictures of 384 pixels: 18 GB) do not fit into memory.
Reading for evaluation is deterministic, so reading again gives the same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

KEPT_BYTES = 2**31  # of arrays in memory

Inputs = Mapping[str, Any]


class KeptInputs:
  """Batches of inputs in their order; true once there is one."""

  def __init__(
    self,
    again: Callable[[], Iterator[Inputs]],
    *,
    limit: int | None = None,
  ):
    """Starts empty.

    Args:
      again: reads all batches anew, from the first.
      limit: bytes to keep; None: `KEPT_BYTES`.
    """
    self._again = again
    self._room = KEPT_BYTES if limit is None else limit
    self._kept: list[Inputs] = []
    self._count = 0

  def add(self, inputs: Inputs) -> None:
    """Notes the next batch, and keeps it if all before it are and it fits."""
    size = sum(array.nbytes for array in inputs.values())
    if len(self._kept) == self._count and size <= self._room:
      self._kept.append(inputs)
      self._room -= size
    else:
      self._room = 0
    self._count += 1

  def __len__(self) -> int:
    """Number of batches."""
    return self._count

  def __iter__(self) -> Iterator[Inputs]:
    """All batches; those that are not kept are read."""
    yield from self._kept
    if len(self._kept) < self._count:
      for number, inputs in enumerate(self._again()):
        if number >= len(self._kept):
          yield inputs
