"""What a stage is: one class, one file, one line in the table.

A stage gets rows and gives rows. One that fails for a row marks the row with
the reason (`Row.fail`, or a DecodeError out of `one`); no row is ever dropped.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from mico_jax.data.build import pulse, watch
from mico_jax.data.build.rows import Row
from mico_jax.data.faults import guarded
from mico_jax.modalities import DecodeError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """Options of a stage that has none."""


class Stage(abc.ABC):
  """A step of a build; the first paragraph of its docstring is its help.

  Attributes:
    name: key in the table, and what `--stages` and `--set` call it.
    Options: dataclass of its options, set by `--set <name>.<option>=<value>`.
    cuts: it gives parts of files, which another stage must then store.
    makes: keys of the modalities that it stores.
    lists: what it stores is a list of frames, which a tar member cannot hold.
    options: an instance of `Options`.
  """

  name: ClassVar[str]
  Options: ClassVar[type] = NoOptions
  cuts: ClassVar[bool] = False
  makes: ClassVar[tuple[str, ...]] = ()
  lists: ClassVar[bool] = False

  def __init__(self, options: Any):
    """Takes the checked options; opens nothing."""
    self.options = options

  def check(self) -> None:  # noqa: B027 (most need nothing)
    """Looks up front for what the stage needs, such as a package.

    Raises:
      ConfigError: saying what to install or to set.
    """

  def source(self) -> dict[str, Any]:
    """Fields of the `SourceConfig` that reads the result."""
    return {}

  def __call__(self, rows: Sequence[Row]) -> list[Row]:
    """The rows after this stage, in order; failed ones as they were."""
    after: list[Row] = []
    for row in rows:
      if row.reason:
        after.append(row)
        continue
      try:
        watch.at(self.name, [row])
        after.extend(guarded(lambda row=row: list(self.one(row))))
      except DecodeError as error:
        after.append(row.fail(self.name, str(error)))
    return after

  @abc.abstractmethod
  def one(self, row: Row) -> Iterable[Row]:
    """The rows that one gives: itself, or its parts. Safe to repeat.

    Raises:
      DecodeError: if the row fails.
    """

  @classmethod
  def summary(cls) -> str:
    """The first paragraph of its docstring in one line."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())


class BatchStage(Stage):
  """A stage that handles many rows in one call, as an accelerator likes it.

  Its options have a field `batch`: the most rows of a call.
  """

  def __call__(self, rows: Sequence[Row]) -> list[Row]:
    """The same rows, changed in place."""
    items, todo = [], []
    for row in rows:
      if row.reason:
        continue
      try:
        watch.at(self.name, [row])
        item = guarded(lambda row=row: self.item(row))
      except DecodeError as error:
        row.fail(self.name, str(error))
        continue
      if item is not None:
        items.append(item)
        todo.append(row)
    for part in self._batches(todo):
      watch.at(self.name, todo[part])
      results = each(self.call, items[part])
      for row, result in zip(todo[part], results, strict=True):
        try:
          if isinstance(result, DecodeError):
            raise result
          guarded(lambda row=row, result=result: self.store(row, result))
        except DecodeError as error:
          row.fail(self.name, str(error))
    return list(rows)

  def _batches(self, rows: Sequence[Row]) -> Iterator[slice]:
    """Rows of a call; one that may have made a call hang is alone."""
    start = 0
    for i, row in enumerate(rows):
      alone = watch.alone(self.name, row)
      if i > start and (alone or i - start == self.options.batch):
        yield slice(start, i)
        start = i
      if alone:
        yield slice(i, i + 1)
        start = i + 1
    if start < len(rows):
      yield slice(start, len(rows))

  def one(self, row: Row) -> Iterable[Row]:
    """A batch of one."""
    return self([row])

  @abc.abstractmethod
  def item(self, row: Row) -> Any:
    """What the call needs of a row; None: nothing is to be done for it.

    Raises:
      DecodeError: if the row fails.
    """

  @abc.abstractmethod
  def call(self, items: Sequence[Any]) -> Sequence[Any]:
    """One result per item."""

  @abc.abstractmethod
  def store(self, row: Row, result: Any) -> None:
    """Puts a result into its row.

    Raises:
      DecodeError: if the row fails.
    """


def each(
  call: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]
) -> list[Any]:
  """What a call gives for each item; halves again what holds a bad one."""
  pulse.beat()
  try:
    results = list(guarded(lambda: call(items)))
    if len(results) != len(items):
      raise DecodeError(f"{len(items)} inputs gave {len(results)} results.")
    return results
  except DecodeError as error:
    if len(items) == 1:
      return [error]
  half = len(items) // 2
  return each(call, items[:half]) + each(call, items[half:])


def span_of(row: Row) -> tuple[float, float]:
  """Start and end in s of the part that a row is.

  Raises:
    DecodeError: if there is no file, or the part lies beyond its end.
  """
  if row.raw is None:
    raise DecodeError("the sample has no raw file to work on.")
  seconds = row.raw.seconds
  if row.span is None:
    return 0.0, seconds
  start, end = row.span
  if not 0 <= start < end:
    raise DecodeError(f"the span [{start:g}, {end:g}] s is none.")
  # Lists of others round to frames or to hundredths of a second.
  if end > seconds + 0.1:
    raise DecodeError(
      f"the span [{start:g}, {end:g}] s ends behind the file, which has "
      f"{seconds:.3f} s."
    )
  return start, min(end, seconds)
