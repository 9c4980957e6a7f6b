"""Reading of tables: .csv with a header, and JSON objects of one row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mico_jax.modalities.base import DecodeError


@dataclass(frozen=True)
class Rows:
  """A table as a file holds it: names of columns, and cells of each row."""

  names: tuple[str, ...]
  cells: Sequence[Sequence[Any]]


def read_rows(raw: Any) -> Rows:
  """A table out of the content of a file, or names and values of a row.

  Args:
    raw: bytes of a .csv, whose first line names the columns, bytes of a JSON
      object, or a mapping.

  Raises:
    DecodeError: for anything else, and for tables without rows.
  """
  if isinstance(raw, bytes) and raw.lstrip().startswith(b"{"):
    try:
      raw = json.loads(raw)
    except (ValueError, RecursionError) as error:
      text = " ".join(str(error).split())[:200]
      raise DecodeError(f"not a readable JSON object: {text}") from error
  if isinstance(raw, Mapping):
    names = tuple(map(str, raw))
    return Rows(names, [list(raw.values())])
  if not isinstance(raw, bytes):
    raise DecodeError(
      "expected the file of a table, a mapping of names to values or an array "
      f"[fields], got {type(raw).__name__}."
    )
  return _csv(raw)


def _csv(data: bytes) -> Rows:
  try:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
  except (UnicodeDecodeError, csv.Error) as error:
    raise DecodeError(f"not a readable table (.csv, JSON): {error}") from error
  rows = [row for row in rows if row]
  if len(rows) < 2:
    raise DecodeError(
      f"a table of {len(rows)} lines; expected a header and one row at least."
    )
  head = tuple(name.strip() for name in rows[0])
  if len(set(head)) < len(head):
    raise DecodeError(f"columns of the same name: {', '.join(head)[:80]}.")
  for number, row in enumerate(rows[1:], 2):
    if len(row) != len(head):
      raise DecodeError(
        f"line {number} has {len(row)} cells; the header has {len(head)}."
      )
  return Rows(head, rows[1:])
