"""What an input of a build is: something that gives units, and their rows."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

from mico_jax.data.build.rows import Row, Unit


class Input(abc.ABC):
  """Raw material; picklable, since workers list the rows of their units.

  Attributes:
    kind: key in the table.
    spans: it names parts of files, which a stage must then store.
    whole: its units count as one raw item each, however much they hold.
    split: name of the split that the result is called by; "": all.
  """

  kind: ClassVar[str]
  whole: ClassVar[bool] = False
  spans: bool = False
  split: str = ""

  @abc.abstractmethod
  def identity(self) -> dict[str, Any]:
    """What the bytes of the result follow from, as JSON.

    A build goes on only where it is the same.
    """

  @abc.abstractmethod
  def units(self, shards: int) -> list[Unit]:
    """The units in order.

    Args:
      shards: how many; 0: as the input has them.

    Raises:
      ConfigError: if there is nothing, or that number does not fit.
    """

  @abc.abstractmethod
  def rows(self, unit: Unit) -> Iterator[tuple[int, list[Row]]]:
    """(bytes, rows) of each raw file or record of a unit, in order.

    What cannot be used is a failed row.
    """

  def source(self) -> dict[str, Any]:
    """Fields of the `SourceConfig` that reads the result."""
    return {}
