"""Columns of a table for `data.columns`, found in its training part.

    python -m mico_jax.data.columns train.csv --unread income

prints the entries; a config file may call `columns_of` instead. They stand in
the config, and so in checkpoints: quantiles and categories are never found
again from other data.
"""

from __future__ import annotations

import argparse
import pathlib
import pprint
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from mico_jax.modalities.tables import MISSING_CELLS
from mico_jax.modalities.tables_file import read_rows

Entry = tuple[str | float, ...]


def columns_of(
  path: str | pathlib.Path,
  *,
  unread: Collection[str] = (),
  categorical: Collection[str] = (),
  bins: int = 16,
) -> tuple[Entry, ...]:
  """Entries of `data.columns` for the columns of a .csv file, in its order.

  A column is numerical if all its cells that are not missing are numbers and it
  is not named in `categorical`. Its quantiles are those of equal shares of the
  rows, where a value that more rows than a share have is one of them, and the
  others share what is left: zeros, of which some columns are full, leave places
  for the values that differ from them.

  Args:
    path: of the training part alone, with a header.
    unread: columns that are known and not read, such as the target.
    categorical: columns whose numbers are names.
    bins: most intervals of a numerical column.

  Raises:
    ValueError: for names that are no columns, and for constant columns.
  """
  rows = read_rows(pathlib.Path(path).read_bytes())
  if other := {*unread, *categorical} - {*rows.names}:
    raise ValueError(
      f"{path} has no column {', '.join(sorted(other))}; it has "
      f"{', '.join(rows.names)}."
    )
  entries = []
  for i, name in enumerate(rows.names):
    cells = [row[i].strip() for row in rows.cells]
    values = [cell for cell in cells if cell.lower() not in MISSING_CELLS]
    found: Entry = ()
    if name not in unread:
      found = _values(values, name in categorical, bins)
      if len(found) < 2:
        raise ValueError(
          f"{path}: column {name!r} has one value only; leave it unread."
        )
    entries.append((name, *found))
  return tuple(entries)


def _values(cells: Sequence[str], categorical: bool, bins: int) -> Entry:
  """Quantiles of numbers, or the different texts in order."""
  try:
    numbers = [] if categorical else [float(cell) for cell in cells]
  except ValueError:
    numbers = []
  if not numbers:
    return tuple(sorted(set(cells)))
  return tuple(_quantiles(np.asarray(numbers), bins).tolist())


def _quantiles(
  numbers: Float[np.ndarray, " N"], bins: int
) -> Float[np.ndarray, " K"]:
  """At most `bins` + 1 increasing numbers, the least and the largest too."""
  values, counts = np.unique(numbers, return_counts=True)
  knots, left = {values[0], values[-1]}, bins - 1
  while left > 0 and len(values):
    often = counts > counts.sum() / (left + 1)
    if len({*values} - knots) <= left:
      often[:] = True
    if not often.any():
      rest = np.repeat(values, counts)
      knots.update(np.quantile(rest, np.linspace(0, 1, left + 2)[1:-1]))
      break
    left -= len({*values[often]} - knots)
    knots.update(values[often])
    values, counts = values[~often], counts[~often]
  return np.array(sorted(knots))


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the entries of a file's columns."""
  parser = argparse.ArgumentParser(
    prog="python -m mico_jax.data.columns",
    description="Prints the columns of a table as data.columns states them.",
  )
  parser.add_argument("file", help=".csv file of the training part")
  for flag, text in (
    ("--unread", "column that is not read, such as the target"),
    ("--categorical", "column whose numbers are names"),
  ):
    parser.add_argument(
      flag, action="append", default=[], metavar="NAME",
      help=f"{text}; may be repeated",
    )  # fmt: skip
  args = parser.parse_args(argv)
  try:
    found = columns_of(
      args.file, unread=args.unread, categorical=args.categorical
    )
  except (OSError, ValueError) as error:
    parser.error(str(error))
  pprint.pprint(found, width=80, compact=True)


if __name__ == "__main__":
  main()
