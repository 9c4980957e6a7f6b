"""Media of a source that its config maps to no modality."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mico_jax.config import SourceConfig
from mico_jax.data.records import Record, media_fields
from mico_jax.data.sources import Source
from mico_jax.data.sources.shards import expand
from mico_jax.data.sources.webdataset import TEXTS
from mico_jax.modalities import by_extension

_MEMBER = re.compile(r".+\.(tar|npz):.+")
_SUFFIX = re.compile(r".+(\.[A-Za-z0-9]{1,8})")
_ARRAYS = (".npy", ".npz", ".exr", ".tif", ".tiff", ".gif")


def names_medium(value: Any) -> bool:
  """Whether a field seems to name a file of media."""
  if isinstance(value, (list, tuple)):
    return bool(value) and all(map(names_medium, value))
  if not isinstance(value, str) or len(value) > 1000 or "\n" in value:
    return False
  if _MEMBER.fullmatch(value):
    return True
  match = _SUFFIX.fullmatch(value)
  if match is None or "://" in value or " " in match[1]:
    return False
  modality = by_extension(match[1])
  known = modality is not None and modality.embedding != "text"
  return known or match[1].lower() in _ARRAYS


def unmapped_media(record: Record, spec: SourceConfig) -> Iterator[str]:
  """Fields of a record that seem to name media of no modality.

  Args:
    record: of the source.
    spec: config of the source.
  """
  mapped = {
    name for key, name in media_fields(spec).items() if key in record.media
  }
  # What a medium of the record was read from may stand in any field.
  templates = str(dict(spec.options))
  for name, value in record.fields.items():
    if name in mapped or name in ("id", "captions", *spec.captions.values()):
      continue
    if name in ("file_name", "filename", "key") or f"{{{name}}}" in templates:
      continue
    if names_medium(value):
      yield name


def unmapped_columns(source: Source) -> dict[str, int]:
  """Columns of bytes of a table that no modality uses -> number of rows."""
  columns = getattr(source, "unmapped", ())
  return dict.fromkeys(columns, len(source))


def unmapped_members(spec: SourceConfig, name: str) -> dict[str, int]:
  """Endings of the members of WebDataset shards that no modality uses.

  Args:
    spec: config of a source of kind "webdataset".
    name: of the source.

  Returns:
    Ending -> number of members.
  """
  used = {*spec.fields.values(), *spec.captions.values(), *TEXTS}
  endings: Counter[str] = Counter()
  for path in expand(spec.path, name):
    with tarfile.open(path, "r:") as tar:
      for info in tar:
        base = info.name.rpartition("/")[2]
        if not info.isfile() or base.startswith("."):
          continue
        cut = base.rpartition if spec.key_dot == "last" else base.partition
        endings[cut(".")[2].lower()] += 1
  counts = {}
  for ending, count in endings.items():
    modality = by_extension(f".{ending.rpartition('.')[2]}")
    taken = modality is not None and modality.key not in spec.fields
    if ending not in used and not taken:
      counts[f"*.{ending}"] = count
  return counts
