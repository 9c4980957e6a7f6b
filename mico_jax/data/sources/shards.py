"""Files of a source's `path`, which may hold patterns and several names.

A pattern is that of a shell: stars, brackets, and braces with a range or
several texts, "shard-{00000..00099}.tar", "{cats,dogs}.tar".
"""

from __future__ import annotations

import glob
import math
import os
import re

from mico_jax.config import ConfigError
from mico_jax.data.storage import is_remote, short

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_TEXTS = re.compile(r"\{([^{}]*,[^{}]*)\}")
_COMMA = re.compile(r",(?![^{}]*\})")  # outside of braces
_MOST = 1_000_000  # files of a pattern
_COMMAS = 16  # most commas in a name
# Tar files without random access.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def expand(pattern: str, name: str) -> list[str]:
  """Files of comma-separated paths and patterns, which can be read at random.

  The name of an existing file is no pattern, even with brackets, stars or
  commas in it.

  Args:
    pattern: `path` of a source.
    name: of the source, for error messages.

  Returns:
    Paths in the order of the patterns, sorted within each.

  Raises:
    ConfigError: if a pattern matches no file, or one is compressed.
  """
  files = files_of(pattern, name)
  for file in files:
    if file.lower().endswith(COMPRESSED):
      raise ConfigError(
        f"data.sources.{name}.path: {short(file)} is compressed, so that its "
        "members cannot be read at random; unpack it, or write shards: "
        f"mico-jax data convert --from webdataset --path {pattern!r} --out DIR."
      )
  return files


def files_of(pattern: str, name: str) -> list[str]:
  """Files of comma-separated paths and patterns, of any type; see `expand`.

  Raises:
    ConfigError: if a pattern matches no file.
  """
  pieces, files, start = _COMMA.split(pattern), [], 0
  while start < len(pieces):
    if not pieces[start].strip():
      start += 1
      continue
    # The longest run of pieces that names something: names may hold commas.
    last = min(len(pieces), start + 1 + _COMMAS)
    for end in range(last, start, -1):
      part = ",".join(pieces[start:end]).strip()
      matches = _files_of(part, braces=end == start + 1)
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


def _files_of(part: str, *, braces: bool = True) -> list[str]:
  """The file of a name, or the files of a pattern; empty if there are none."""
  if not is_remote(part) and os.path.lexists(part):
    return [part]
  if braces and "{" in part:
    names = _braces(part)
    if len(names) > 1:
      return [file for n in names for file in _named(n, part)]
  if not is_remote(part):
    return sorted(glob.glob(part))
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


def _named(name: str, pattern: str) -> list[str]:
  """The files of one name of a pattern with braces.

  Raises:
    ConfigError: if there is none, as a set with a gap is not the set meant.
  """
  files = _files_of(name)
  if not files:
    raise ConfigError(
      f"{short(name)} does not exist, which {pattern!r:.100} names."
    )
  return files


def _braces(part: str) -> list[str]:
  """The names that a pattern with braces stands for, in its order.

  Raises:
    ConfigError: for too many.
  """
  count = math.prod(
    abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(part)
  ) * math.prod(text.count(",") + 1 for text in _TEXTS.findall(part))
  if count > _MOST:
    raise ConfigError(f"{part!r:.100} names more than {_MOST} files.")
  matches = [m for m in (_RANGE.search(part), _TEXTS.search(part)) if m]
  if not matches:
    return [part]
  match = min(matches, key=lambda m: m.start())
  texts = match[1].split(",")
  if match.re is _RANGE:
    first, last = match[1], match[2]
    padded = first.startswith("0") or len(first) == len(last)
    width = len(first) if padded else 0
    low, high = int(first), int(last)
    step = 1 if low <= high else -1
    texts = [str(n).zfill(width) for n in range(low, high + step, step)]
  head, tail = part[: match.start()], part[match.end() :]
  return [n for text in texts for n in _braces(f"{head}{text}{tail}")]
