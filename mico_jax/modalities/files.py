"""Parsing of files named on the command line: "photo.jpg", "depth:mm:d.png"."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from mico_jax.modalities.base import Modality

DEPTH_UNITS = {
  "m": "metre",
  "metre": "metre",
  "mm": "millimetre",
  "millimetre": "millimetre",
  "relative": "relative",
}


@dataclass(frozen=True)
class FileSpec:
  """A file, its modality and, of depth maps, its unit."""

  key: str
  path: str
  depth_unit: str = ""


def parse_file(text: str, table: Mapping[str, Modality]) -> FileSpec:
  """See `mico_jax.modalities.file_spec`; `table` holds the modalities."""
  head, sep, rest = text.partition(":")
  if sep and head in table:
    if head != "depth":
      return FileSpec(head, rest)
    unit, sep, path = rest.partition(":")
    if not sep or unit not in DEPTH_UNITS:
      raise ValueError(
        f"{text!r}: depth needs its unit: depth:mm:FILE, depth:m:FILE or "
        "depth:relative:FILE."
      )
    return FileSpec("depth", path, DEPTH_UNITS[unit])
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
