"""Files of a source's `path`, which may hold patterns and several names."""

from __future__ import annotations

import glob
import os

from mico_jax.config import ConfigError
from mico_jax.data.storage import is_remote


def expand(pattern: str, name: str) -> list[str]:
  """Files of comma-separated paths and glob patterns.

  The name of an existing file is no pattern, even with brackets, stars or
  commas in it.

  Args:
    pattern: `path` of a source.
    name: of the source, for error messages.

  Returns:
    Paths in the order of the patterns, sorted within each.

  Raises:
    ConfigError: if a pattern matches no file.
  """
  pieces, files, start = pattern.split(","), [], 0
  while start < len(pieces):
    if not pieces[start].strip():
      start += 1
      continue
    # The longest run of pieces that names something: names may hold commas.
    for end in range(len(pieces), start, -1):
      part = ",".join(pieces[start:end]).strip()
      matches = _files_of(part)
      if matches:
        break
    else:
      raise ConfigError(
        f"data.sources.{name}.path: no file matches {pieces[start].strip()!r}."
      )
    files.extend(matches)
    start = end
  if not files:
    raise ConfigError(f"data.sources.{name}.path is empty; name the files.")
  return files


def _files_of(part: str) -> list[str]:
  """The file of a name, or the files of a pattern; empty if there are none."""
  if not is_remote(part):
    return [part] if os.path.lexists(part) else sorted(glob.glob(part))
  if "," in part and part.count("://") > 1:
    return []  # several
  if not glob.has_magic(part):
    return [part]
  import fsspec

  fs, inner = fsspec.core.url_to_fs(part)
  if fs.exists(inner):
    return [part]
  scheme = part.split("://")[0]
  return [f"{scheme}://{p.lstrip('/')}" for p in sorted(fs.glob(inner))]
