"""Declarations of the values that a config field may hold.

A field is `name: Annotated[int, Range(1, 8192, "pixels")] = 224`; entries of
tuples and mappings are declared the same way. `conversion` checks values by
these declarations, and `docs/config.md` is made from them.

Each declaration has `accepts(value)`, `short` (its text for tables) and
`expected` (its text for error messages).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any


class ConfigError(ValueError):
  """A user's mistake in a config or on the command line."""


def _number(value: float) -> str:
  return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True)
class Range:
  """A number in [low, high]; an integer if both limits are.

  Attributes:
    low: smallest value.
    high: largest value, beyond all sensible ones.
    unit: for tables and messages.
  """

  low: float
  high: float
  unit: str = ""

  def accepts(self, value: Any) -> bool:
    """Whether the value is inside; NaN is not."""
    return self.low <= value <= self.high

  @property
  def short(self) -> str:
    """For tables."""
    unit = f" {self.unit}" if self.unit else ""
    return f"{_number(self.low)} to {_number(self.high)}{unit}"

  @property
  def expected(self) -> str:
    """For messages."""
    whole = isinstance(self.low, int) and isinstance(self.high, int)
    unit = f" ({self.unit})" if self.unit else ""
    return (
      f"{'an integer' if whole else 'a number'} of at least "
      f"{_number(self.low)} and at most {_number(self.high)}{unit}"
    )


@dataclass(frozen=True, init=False)
class Choice:
  """One of a few names."""

  names: tuple[str, ...]

  def __init__(self, *names: str):
    """Sets the names."""
    object.__setattr__(self, "names", names)

  def accepts(self, value: Any) -> bool:
    """Whether it is one of them."""
    return value in self.names

  @property
  def short(self) -> str:
    """For tables."""
    return ", ".join(f'"{n}"' for n in self.names)

  @property
  def expected(self) -> str:
    """For messages."""
    return f"one of {self.short}"


@dataclass(frozen=True)
class Key:
  """A key of an extensible table of the package.

  Only its form is checked here, since this package imports no table;
  `mico_jax.run.checks.check_values` looks it up before a device is used.

  Attributes:
    table: path of the table, such as "mico_jax.models.ENCODERS".
    also: further names that are allowed.
  """

  table: str
  also: tuple[str, ...] = ()

  def accepts(self, value: Any) -> bool:
    """Whether it looks like a key."""
    return value in self.also or bool(re.fullmatch(r"[\w.+-]{1,64}", value))

  @property
  def short(self) -> str:
    """For tables."""
    others = "".join(f', or "{name}"' for name in self.also)
    return f"key of `{self.table}`{others}"

  @property
  def expected(self) -> str:
    """For messages."""
    return f"a {self.short}"


@dataclass(frozen=True)
class Keys:
  """Keys of tables of the package: a text with commas, or a tuple of texts.

  Attributes:
    tables: paths of the tables, see `Key`.
  """

  tables: tuple[str, ...]

  def accepts(self, value: Any) -> bool:
    """Whether all look like keys."""
    return len(value) <= 4096 and all(map(Key("").accepts, keys_in(value)))

  @property
  def short(self) -> str:
    """For tables."""
    tables = " or ".join(f"`{table}`" for table in self.tables)
    return f"keys of {tables}, joined by commas"

  @property
  def expected(self) -> str:
    """For messages."""
    return self.short


def keys_in(value: str | tuple[str, ...] | list[str]) -> list[str]:
  """The keys in a value of `Keys`, in their order."""
  return [
    k.strip() for k in (value.split(",") if isinstance(value, str) else value)
  ]


@dataclass(frozen=True)
class Text:
  """Text without control characters.

  Attributes:
    low: fewest characters.
    high: most characters.
    what: kind of text, for tables and messages.
  """

  low: int = 0
  high: int = 4096
  what: str = "text"

  def accepts(self, value: Any) -> bool:
    """Whether its length is allowed and it has no control characters."""
    return self.low <= len(value) <= self.high and not any(
      unicodedata.category(c) in ("Cc", "Cs") for c in value
    )

  @property
  def short(self) -> str:
    """For tables."""
    return f"{self.what}{', not empty' if self.low else ''}"

  @property
  def expected(self) -> str:
    """For messages."""
    return (
      f"{self.what} of {self.low} to {self.high} characters without control "
      "characters"
    )


@dataclass(frozen=True)
class Regex(Text):
  """A regular expression."""

  low: int = 1
  what: str = "regular expression"

  def accepts(self, value: Any) -> bool:
    """Whether it compiles."""
    try:
      re.compile(value)
    except (re.error, RecursionError, OverflowError):
      return False
    return super().accepts(value)


@dataclass(frozen=True)
class Items:
  """Number of entries of a tuple or mapping.

  Attributes:
    low: fewest.
    high: most.
    only: the allowed numbers; (): all from `low` to `high`.
  """

  low: int = 0
  high: int = 1024
  only: tuple[int, ...] = ()

  def accepts(self, value: Any) -> bool:
    """Whether the number of entries is allowed."""
    if self.only:
      return len(value) in self.only
    return self.low <= len(value) <= self.high

  @property
  def short(self) -> str:
    """For tables."""
    return f"{self._counts} entries"

  @property
  def _counts(self) -> str:
    if self.only:
      return " or ".join(map(str, self.only))
    return f"{self.low} to {self.high}"

  @property
  def expected(self) -> str:
    """For messages."""
    return f"{self._counts} entries"


@dataclass(frozen=True)
class Scalars:
  """A plain value or a tuple of them, to compare a record's field with."""

  def accepts(self, value: Any) -> bool:
    """Whether it is text, a number, a boolean, None, or a tuple of these."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return len(values) <= 4096 and all(
      v is None
      or isinstance(v, bool)
      or (isinstance(v, str) and Text().accepts(v))
      or (isinstance(v, int) and abs(v) < 2**63)
      or (isinstance(v, float) and math.isfinite(v))
      for v in values
    )

  @property
  def short(self) -> str:
    """For tables."""
    return "value or tuple of values"

  @property
  def expected(self) -> str:
    """For messages."""
    return "text, a finite number, True, False, None, or a tuple of these"


@dataclass(frozen=True)
class Nested:
  """A value that JSON can hold, of at most so many parts and levels.

  Attributes:
    parts: most scalars, names and containers in it.
    levels: most containers within each other.
  """

  parts: int = 65_536
  levels: int = 8

  def accepts(self, value: Any) -> bool:
    """Whether it is a scalar, or a mapping or tuple of such values."""
    scalar, count = Scalars(), 0
    waiting = [(value, 0)]
    while waiting:
      item, level = waiting.pop()
      count += 1
      if count > self.parts or level > self.levels:
        return False
      if isinstance(item, Mapping):
        if not all(isinstance(name, str) for name in item):
          return False
        waiting += [(v, level + 1) for v in item.values()]
      elif isinstance(item, (tuple, list)):
        waiting += [(v, level + 1) for v in item]
      elif not scalar.accepts(item):
        return False
    return True

  @property
  def short(self) -> str:
    """For tables."""
    return "value, or a mapping or tuple of values"

  @property
  def expected(self) -> str:
    """For messages."""
    return (
      "text, a finite number, True, False, None, or a mapping by names or a "
      "tuple of these"
    )


Declaration = Range | Choice | Key | Keys | Text | Items | Scalars | Nested

# Declarations of several fields.
Fraction = Annotated[float, Range(0.0, 1.0)]
Rate = Annotated[float, Range(0.0, 0.99)]  # of dropout
Weight = Annotated[float, Range(0.0, 1e6)]
Width = Annotated[int, Range(1, 65_536, "channels")]
Depth = Annotated[int, Range(1, 1024, "layers")]
Heads = Annotated[int, Range(1, 1024)]
Steps = Annotated[int, Range(0, 10**9, "steps")]
Rows = Annotated[int, Range(1, 2**24, "rows")]
Count = Annotated[int, Range(0, 10**12)]
Frames = Annotated[int, Range(1, 1024, "frames")]
Kernel = Annotated[int, Range(1, 1024, "pixels")]
Tokens = Annotated[int, Range(1, 65_536, "tokens")]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Name = Annotated[str, Text(1, 256, "name")]
Label = Annotated[str, Text(0, 256, "name")]
Mode = Annotated[str, Text(0, 64, "mode of the modality")]
Path = Annotated[str, Text(what="path")]
Group = Annotated[str, Text(1, 16, "letters of modalities")]
Pattern = Annotated[str, Regex()]
Devices = Annotated[int, Range(1, 2**20, "devices")]
Names = Annotated[tuple[Name, ...], Items()]
Groups = Annotated[tuple[Group, ...], Items(0, 64)]
Patterns = Annotated[tuple[Pattern, ...], Items()]
# Options of an entry of a table, which declares them as a dataclass.
Options = Annotated[Mapping[Name, Annotated[Any, Nested()]], Items()]
NameMap = Annotated[Mapping[Name, Name], Items()]
