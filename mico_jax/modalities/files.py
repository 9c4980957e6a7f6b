"""Parsing of files named on the command line: "photo.jpg", "depth:mm:d.png".

What a file does not say of itself is written before it: "KEY:STATEMENT:FILE",
where a statement is "UNIT", "UNIT@RATE" or "UNIT@RATE@CHANNEL,CHANNEL" ("@RATE"
without a unit; rates in Hz).
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from mico_jax.modalities.base import Modality, Stated


@dataclass(frozen=True)
class FileSpec:
  """A file, its modality, and what its name states of it (see `Stated`)."""

  key: str
  path: str
  unit: str = ""
  rate: float = 0.0
  channels: tuple[str, ...] = ()


def parse_statement(text: str, modality: Modality) -> Stated | None:
  """What "UNIT@RATE@CHANNELS" states; None: it is no statement.

  Raises:
    ValueError: for a rate that is none.
  """
  name, *more = text.split("@")
  unit = modality.unit_of(name)
  if len(more) > 2 or bool(name) != bool(unit) or not (name or more):
    return None
  try:
    rate = float(more[0]) if more and more[0] else 0.0
  except ValueError:
    rate = -1.0
  if not 0 <= rate < math.inf:
    raise ValueError(
      f"{text!r}: the rate {more[0]!r} is no number of Hz above 0."
    )
  channels = more[1].split(",") if len(more) > 1 and more[1] else ()
  return Stated(unit, rate, tuple(channels))


def written(modality: Modality) -> str:
  """How a file of a modality is named with its unit: "m:FILE, mm:FILE or"..."""
  *first, last = (f"{name}:FILE" for name in modality.statements)
  return f"{', '.join(first)} or {last}" if first else last


def _stated_file(text: str, modality: Modality, rest: str) -> FileSpec:
  """A file of a modality of which something may be stated."""
  head, sep, path = rest.partition(":")
  stated = parse_statement(head, modality) if sep else None
  if stated is not None:
    return FileSpec(
      modality.key, path, stated.unit, stated.rate, stated.channels
    )
  a_path = not sep or path.startswith("//") or any(c in head for c in "/\\.")
  if (modality.units and not modality.in_file) or not a_path:
    known = ", ".join(f"{modality.key}:{s}:FILE" for s in modality.statements)
    raise ValueError(
      f"{text!r}: {modality.key} needs its unit: {known or 'none is known'}."
    )
  return FileSpec(modality.key, rest)


def parse_file(text: str, table: Mapping[str, Modality]) -> FileSpec:
  """See `mico_jax.modalities.file_spec`; `table` holds the modalities."""
  head, sep, rest = text.partition(":")
  if sep and head in table:
    if not table[head].stated:
      return FileSpec(head, rest)
    return _stated_file(text, table[head], rest)
  suffix = pathlib.PurePosixPath(text).suffix.lower()
  for key, modality in table.items():
    if suffix in modality.extensions:
      return FileSpec(key, text)
  known = "; ".join(
    f"{k}: {' '.join(m.extensions)}" for k, m in table.items() if m.extensions
  )
  raise ValueError(
    f"{text!r}: unknown file type {suffix!r}. Known: {known}. For others, "
    "write the modality first: image:FILE, normal:FILE, depth:mm:FILE."
  )
