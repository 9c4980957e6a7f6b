"""Validation of a manifest, which may come from an untrusted source.

The hash of a manifest reveals damage, but whoever alters the manifest can alter
the hash too. So its structure is checked before anything of it is used, and
files that it names must be inside the checkpoint's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from mico_jax.checkpoint import ranges

ARRAY_ITEMS = ("params", "opt_state", "ema")
_MOST_AXES = 32
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DTYPE = re.compile(r"[a-z]{1,16}[a-z0-9_]{0,16}")
_PART = re.compile(r"[\w+-][\w .+-]{0,254}", re.ASCII)


def is_plain(name: Any) -> bool:
  """Whether a name is a relative file name such as `tokenizer/x.model`.

  It has no empty parts, none that begins with a dot, and ASCII letters only.
  """
  return isinstance(name, str) and all(
    _PART.fullmatch(part) for part in name.split("/")
  )


def is_inside(path: epath.PathLike, folder: epath.PathLike) -> bool:
  """Whether a local path, with links resolved, is inside a folder."""
  if "://" in os.fspath(path):
    return True  # stores have no links
  real, root = os.path.realpath(path), os.path.realpath(folder)
  return real.startswith(root.rstrip(os.sep) + os.sep)


def _is_hash(value: Any) -> bool:
  return isinstance(value, str) and bool(_SHA256.fullmatch(value))


def _is_count(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**63


def _is_entry(value: Any) -> bool:
  """Whether an array's entry is valid; with a grid it has a hash per shard."""
  if not isinstance(value, Mapping):
    return False
  shape, dtype = value.get("shape"), value.get("dtype")
  if not isinstance(shape, list) or not _is_shape(shape):
    return False
  if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
    return False
  hashes = value.get("sha256")
  if "grid" not in value:
    return _is_hash(hashes)
  return (
    isinstance(hashes, list)
    and all(map(_is_hash, hashes))
    and _is_shape(value["grid"])
    and _number(shape, value["grid"]) == len(hashes)
  )


def _is_shape(value: Any) -> bool:
  return (
    isinstance(value, list)
    and len(value) <= _MOST_AXES
    and all(map(_is_count, value))
  )


def _number(shape: list[int], grid: list[int]) -> int:
  """Number of shards; -1: the grid does not divide the array."""
  try:
    return ranges.count(shape, grid)
  except ValueError:
    return -1


def _items_problems(items: Any) -> Iterator[str]:
  if not isinstance(items, Mapping) or "params" not in items:
    yield "items has no params"
    return
  for name, entries in items.items():
    if name not in ARRAY_ITEMS or not isinstance(entries, Mapping):
      yield f"items has {name!r:.80}, which is none of {', '.join(ARRAY_ITEMS)}"
      continue
    for path, entry in entries.items():
      if not _is_entry(entry):
        yield f"{name}: {path!r:.80} lacks a valid shape, dtype or sha256"


def _files_problems(files: Any) -> Iterator[str]:
  if not isinstance(files, Mapping):
    yield "files is no object"
    return
  for name, digest in files.items():
    if not is_plain(name):
      yield f"files has {name!r:.80}, expected plain names below manifest/"
    elif not _is_hash(digest):
      yield f"files has no SHA-256 of {name!r:.80}"


def _import_problems(about: Any) -> Iterator[str]:
  """Problems of the entry "import", which only imports have."""
  if about is None:
    return
  if not isinstance(about, Mapping) or not isinstance(about.get("format"), str):
    yield "import has no format"
    return
  if not isinstance(about.get("tied", {}), Mapping):
    yield "import: tied is no object"
  if not isinstance(about.get("new", []), list):
    yield "import: new is no list"
  extra = about.get("extra")
  if extra is not None and not (
    isinstance(extra, Mapping)
    and is_plain(extra.get("file"))
    and isinstance(extra.get("tensors"), Mapping)
  ):
    yield "import: extra names no plain file, or lists no tensors"


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
  "step": (_is_count, "a whole number"),
  "config_sha256": (_is_hash, "a SHA-256"),
  "data_sha256": (_is_hash, "a SHA-256"),
  "self_check_of": (lambda x: x in ARRAY_ITEMS, "params or ema"),
  **dict.fromkeys(
    ("tokenizer", "preprocessing", "versions", "topology", "metrics"),
    (lambda x: isinstance(x, Mapping), "an object"),
  ),
}


def problems(manifest: Mapping[str, Any]) -> Iterator[str]:
  """The problems of a parsed manifest, one line each."""
  for name, (accepts, expected) in _FIELDS.items():
    if name not in manifest:
      yield f"{name} is absent"
    elif not accepts(manifest[name]):
      yield f"{name}={manifest[name]!r:.80}, expected {expected}"
  yield from _items_problems(manifest.get("items"))
  yield from _files_problems(manifest.get("files"))
  yield from _import_problems(manifest.get("import"))
