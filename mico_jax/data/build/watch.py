"""What a build is at, told to the process that can end it.

Python cannot end a call that hangs, nor survive a crash of a library. So
workers tell what they are at, and give signs of life; their parent kills one
that gives none for `Job.timeout`, notes the rows that it was at, and starts
another, which begins the unit anew. A row is tried twice, the second time
without others in its batch; then it has failed in that stage.

The notes of a unit lie beside its status table until it is done, so what was
found out is not lost when the build itself is interrupted.
"""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mico_jax.data.build import pulse
from mico_jax.modalities import DecodeError

if TYPE_CHECKING:
  from mico_jax.data.build.rows import Row

TRIES = 2  # of a row in a stage that hangs or crashes

# Told (what, keys of rows) whenever a worker goes on to something else.
Tell = Callable[[str, Sequence[str]], Any]


class Tries:
  """The notes of a unit: which rows hung or crashed in which stage."""

  def __init__(self, path: pathlib.Path | None = None):
    """Reads the notes that there are."""
    self._counts: Counter[tuple[str, str]] = Counter()
    self._reasons: dict[tuple[str, str], str] = {}
    try:
      lines = path.read_text().splitlines() if path is not None else []
    except FileNotFoundError:
      lines = []
    for line in lines:
      try:
        stage, key, reason = json.loads(line)
      except ValueError:  # cut short by a kill
        continue
      self._counts[stage, key] += 1
      self._reasons[stage, key] = reason

  @staticmethod
  def add(
    path: pathlib.Path, stage: str, keys: Sequence[str], reason: str
  ) -> None:
    """Notes rows that a worker was at when it had to be replaced."""
    text = "".join(json.dumps([stage, key, reason]) + "\n" for key in keys)
    with open(path, "ab") as file:
      file.write(text.encode())

  def of(self, stage: str, row: Row) -> int:
    """How often a row hung or crashed in a stage."""
    return self._counts[stage, key_of(row)]

  def check(self, stage: str, row: Row) -> None:
    """Raises DecodeError for a row that is not tried again."""
    if self.of(stage, row) >= TRIES:
      reason = self._reasons[stage, key_of(row)]
      raise DecodeError(f"{reason}, {TRIES} times.")


def key_of(row: Row) -> str:
  """What tells a row from the others of its unit, in any process."""
  return json.dumps([row.raw.name if row.raw else "", row.id, row.span])


_tell: Tell = lambda what, keys: None
_at: tuple[str, Sequence[str]] = ("start", ())
_tries = Tries()


def begin(tries: Tries) -> None:
  """A unit begins."""
  global _tries
  _tries = tries


@contextmanager
def telling(tell: Tell, memory: MutableSequence[int]) -> Iterator[None]:
  """Within, this process tells its parent what it is at."""
  global _tell
  _tell = tell
  with pulse.beating(memory):
    yield


def at(stage: str, rows: Sequence[Row] = ()) -> None:
  """A stage goes on to rows; without rows: what no row can be blamed for.

  Raises:
    DecodeError: if one of them hung or crashed here too often.
  """
  for row in rows:
    _tries.check(stage, row)
  _say(stage, [key_of(row) for row in rows])


def _say(stage: str, keys: Sequence[str]) -> None:
  global _at
  _at = stage, keys
  _tell(stage, keys)


@contextmanager
def pausing(what: str) -> Iterator[None]:
  """Within, something happens that no row can be blamed for."""
  before = _at
  _say(what, ())
  try:
    yield
  finally:
    _say(*before)


def alone(stage: str, row: Row) -> bool:
  """Whether a row hung or crashed here, maybe for another of its batch."""
  return _tries.of(stage, row) > 0
