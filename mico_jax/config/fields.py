"""What a config field may hold, said beside it and checked in `convert`.

A field is `name: Annotated[int, Range(1, 8192, "pixels")] = 224`; entries of
tuples and mappings are declared the same way. `docs/config.md` shows these
declarations, so they are the only place where a range stands.
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
  """A number from `low` to `high`, both allowed; both integers: an integer.

  Attributes:
    low: the least value.
    high: the greatest one, far beyond what makes sense but harmless.
    unit: for people.
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
    """Takes the names."""
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
  """A key of a table of the package, which others may extend.

  Here only its form is checked, as the tables lie in rooms below; their keys
  are compared by `mico_jax.run.checks.check_values`, before a device is used.

  Attributes:
    table: where it is, such as "mico_jax.models.ENCODERS".
    also: names that are allowed beside.
  """

  table: str
  also: tuple[str, ...] = ()

  def accepts(self, value: Any) -> bool:
    """Whether it looks like a key."""
    return value in self.also or bool(re.fullmatch(r"[\w.+-]{1,64}", value))

  @property
  def short(self) -> str:
    """For tables."""
    beside = "".join(f', or "{name}"' for name in self.also)
    return f"key of `{self.table}`{beside}"

  @property
  def expected(self) -> str:
    """For messages."""
    return f"a {self.short}"


@dataclass(frozen=True)
class Keys:
  """Keys of tables of the package: a text with commas, or a tuple of texts.

  Attributes:
    tables: where they are; compared like that of `Key`.
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
  """The keys that a value of `Keys` holds, in their order."""
  return [
    k.strip() for k in (value.split(",") if isinstance(value, str) else value)
  ]


@dataclass(frozen=True)
class Text:
  """Characters that can be printed and written.

  Attributes:
    low: fewest characters.
    high: most characters.
    what: it is, for people.
  """

  low: int = 0
  high: int = 4096
  what: str = "text"

  def accepts(self, value: Any) -> bool:
    """Neither too short nor too long, without control characters."""
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
  """How many entries a tuple or mapping has.

  Attributes:
    low: fewest.
    high: most.
    only: if not empty, the only counts allowed.
  """

  low: int = 0
  high: int = 1024
  only: tuple[int, ...] = ()

  def accepts(self, value: Any) -> bool:
    """Whether there are neither too few nor too many."""
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
  """A plain value, or several, that a record's field is compared with."""

  def accepts(self, value: Any) -> bool:
    """Text, numbers, booleans, None, or a tuple of them."""
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


Declaration = Range | Choice | Key | Keys | Text | Items | Scalars

# Declarations of several fields.
Fraction = Annotated[float, Range(0.0, 1.0)]
Rate = Annotated[float, Range(0.0, 0.99)]  # of dropout: something is left
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
# Of an entry of a table that declares them itself.
Options = Annotated[Mapping[Name, Annotated[Any, Scalars()]], Items()]
NameMap = Annotated[Mapping[Name, Name], Items()]
