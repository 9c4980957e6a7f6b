"""Columns of tables: names, types, and what the training part holds of them.

They are stated once for a run, `data.columns.KEY`, since a column has one place
in a model, and are kept in its config. An entry is a tuple that begins with the
name of the column; then follow

- increasing numbers: quantiles of a numerical column, least to largest;
- texts: the categories of a categorical one;
- nothing: files may have the column, and it is not read.

`python -m mico_jax.data.columns FILE.csv` finds them. Imports no other part of
the package, so that exported folders read them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    name: in files, which have it in any place.
    knots: increasing numbers, of a numerical column; (): it is none.
    categories: of a categorical column, in the order of their rows in the
      model; (): it is none.
  """

  name: str
  knots: tuple[float, ...] = ()
  categories: tuple[str, ...] = ()


def as_columns(entries: Any) -> tuple[Column, ...]:
  """The columns that entries of a config, or of JSON, say.

  Args:
    entries: a tuple or list of entries, see above.

  Raises:
    ValueError: naming the first entry that is no column, and for two of the
      same name.
  """
  if not isinstance(entries, (list, tuple)):
    raise ValueError(f"columns {entries!r:.80}; expected a tuple of columns.")
  columns = tuple(map(_column, entries))
  names = [column.name for column in columns]
  if twice := [n for i, n in enumerate(names) if n in names[:i]]:
    raise ValueError(f"column {twice[0]!r} is there twice.")
  return columns


def _column(entry: Any) -> Column:
  expected = (
    "expected its name, and then two or more increasing numbers, two or more "
    "different texts, or nothing"
  )
  listed = isinstance(entry, (list, tuple)) and entry
  if not listed or not (isinstance(entry[0], str) and entry[0].strip()):
    raise ValueError(f"a column {entry!r:.80}; {expected}.")
  name, *values = entry
  if all(isinstance(v, str) for v in values) and (
    len(set(values)) == len(values) != 1
  ):
    return Column(name, categories=tuple(values))
  numbers = all(
    isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
  )
  if numbers and len(values) > 1:
    knots = tuple(map(float, values))
    if all(a < b for a, b in pairwise(knots)) and all(
      map(math.isfinite, knots)
    ):
      return Column(name, knots=knots)
  raise ValueError(f"column {name!r} with {values!r:.80}; {expected}.")
