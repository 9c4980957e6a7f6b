"""The samples of a WebDataset shard: its members, grouped by their names.

To the columns of `tars` it adds, per sample in the order of first members:
`key_end` and `key` (keys, one after another), `id_hash`, `pattern` (which
endings it has, in `meta["patterns"]`) and `first`, where its members begin in
`member` (rows of the members, in the order of the pattern).
"""

from __future__ import annotations

import posixpath
from typing import Any

import numpy as np

from mico_jax.data.index import tars
from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.repeats import hash_of
from mico_jax.data.storage import Storage, short
from mico_jax.modalities import DecodeError

DTYPES = {
  "key_end": "<i8",
  "key": "u1",
  "id_hash": "<i8",
  "pattern": "<u4",
  "first": "<i8",
  "member": "<u4",
}
_NAMED = 4  # names that are kept of what is no part of a sample


def kind_of(key_dot: str) -> str:
  """The kind of index for keys that end at the "first" or "last" dot."""
  return f"webdataset.{key_dot}.1"


def build(
  path: str, storage: Storage, key_dot: str
) -> tuple[Writer, dict[str, Any]]:
  """Reads the headers of a shard and groups its members.

  Returns:
    The columns, and the meta of `tars.build` with `patterns` (endings, in the
    order of the members), `examples` (a member of each ending of a pattern),
    `counts` (samples of each pattern), `left_out` (names of what is no part of
    a sample) and `leaves_out` (how many).

  Raises:
    DecodeError: as `tars.build`, and for endings that differ in case only.
    TransientError: for storage that stays away.
  """
  writer, meta = tars.build(path, storage, **DTYPES)
  members = writer.columns(meta)
  groups, left_out = _grouped(path, members, key_dot)
  patterns: dict[tuple[str, ...], int] = {}
  examples: list[list[str]] = []
  counts: list[int] = []
  key_end = first = 0
  for key, own in groups.items():
    pattern = tuple(own)
    if pattern not in patterns:
      patterns[pattern] = len(patterns)
      rows = own.values()
      names = [tars.normal_name(tars.name_at(members, r)) for r in rows]
      examples.append(names)
      counts.append(0)
    counts[patterns[pattern]] += 1
    data = key.encode("utf-8", "surrogateescape")
    key_end += len(data)
    writer.add(
      key_end=key_end,
      key=np.frombuffer(data, np.uint8),
      id_hash=hash_of(id_of_key(key)),
      pattern=patterns[pattern],
      first=first,
      member=list(own.values()),
    )
    first += len(own)
  return writer, {
    **meta,
    "samples": len(groups),
    "patterns": [list(p) for p in patterns],
    "examples": examples,
    "counts": counts,
    "left_out": [*meta["dangling"], *left_out][:_NAMED],
    "leaves_out": meta["dangles"] + len(left_out),
  }


def _grouped(
  path: str, members: Columns, key_dot: str
) -> tuple[dict[str, dict[str, int]], list[str]]:
  """Key -> ending -> row; and names of what is no part of a sample."""
  groups: dict[str, dict[str, int]] = {}
  left_out: list[str] = []
  for row in range(len(members["offset"])):
    member = tars.normal_name(tars.name_at(members, row))
    folder, base = posixpath.split(member)
    if base.startswith(".") or "__MACOSX" in folder.split("/"):
      left_out.append(member)
      continue
    if key_dot == "last":
      stem, dot, suffix = base.rpartition(".")
      stem, suffix = (stem, suffix) if dot else (base, "")
    else:
      stem, _, suffix = base.partition(".")
    own = groups.setdefault(posixpath.join(folder, stem), {})
    other = own.get(suffix.lower())
    if other is not None:
      name = tars.normal_name(tars.name_at(members, other))
      if name != member:
        raise DecodeError(
          f"{short(path)}: {short(name)!r} and {short(member)!r} differ in "
          "case only, and would be one member."
        )
    own[suffix.lower()] = row
  return groups, left_out


def counts_of(columns: Columns) -> list[int]:
  """How many samples have each pattern."""
  counts = columns.meta.get("counts")  # not in indexes of earlier versions
  if counts is None:
    number = len(columns.meta["patterns"])
    counts = np.bincount(columns["pattern"], minlength=number).tolist()
  return counts


def key_at(columns: Columns, sample: int) -> str:
  """The key of a sample."""
  start = int(columns["key_end"][sample - 1]) if sample else 0
  data = columns["key"][start : int(columns["key_end"][sample])].tobytes()
  return data.decode("utf-8", "surrogateescape")


def id_of_key(key: str) -> str:
  """A key as an id, which any file can hold."""
  return key.encode("utf-8", "backslashreplace").decode()


def members_of(columns: Columns, sample: int) -> dict[str, int]:
  """Ending -> row of the member."""
  pattern = columns.meta["patterns"][int(columns["pattern"][sample])]
  start = int(columns["first"][sample])
  rows = columns["member"][start : start + len(pattern)].tolist()
  return dict(zip(pattern, rows, strict=True))
