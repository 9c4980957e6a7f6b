"""Making and changing an index of embeddings; see `mico_jax.inference.index`.

New files are embedded by the job of `embed` into a part of their own, so a
killed command run again goes on. `index.json` is replaced last: until then the
index is what it was. A row is known by modality, path, source and index; a file
whose size, time of change or statement (unit, rate, channels) differs from its
row's is embedded again. Paths of local files are absolute.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mico_jax.checkpoint.named import is_name
from mico_jax.config import ConfigError
from mico_jax.inference.index import (
  COLUMNS,
  FORMAT,
  NOTE,
  array_path,
  read_note,
  read_tables,
  table_path,
)
from mico_jax.inference.omni_model import OmniModel
from mico_jax.run.commands.embed import embed_files
from mico_jax.run.commands.entries import EmbedItem

_STATE = ("stated", "size", "modified")  # columns that tell whether it changed
Row = dict[str, Any]


@dataclass(frozen=True)
class IndexReport:
  """What changed.

  Attributes:
    out: folder of the index.
    items: in it now.
    added: of these, new.
    updated: embedded again.
    removed: rows that are gone.
    unchanged: files that were given and whose rows were kept.
    failed: files that could not be used.
    errors: file that lists these; "" if there are none.
  """

  out: str
  items: int
  added: int = 0
  updated: int = 0
  removed: int = 0
  unchanged: int = 0
  failed: int = 0
  errors: str = ""


def update_index(
  model: OmniModel,
  entries: Sequence[EmbedItem],
  out: str | os.PathLike[str],
  *,
  checkpoint: str,
  shard_size: int = 256,
  progress: Callable[[int, int, int], None] | None = None,
) -> IndexReport:
  """Adds items to an index, new or there, and embeds changed files again.

  Args:
    model: of the checkpoint that made the index, if it is there.
    entries: what to add; each item once.
    out: folder of the index.
    checkpoint: path of the model's, to be noted.
    shard_size: files per shard: what a kill can cost.
    progress: called with (done, total, embedded since the last call).

  Raises:
    ConfigError: for an index of another checkpoint, or a folder with other
      files.
    DecodeError: if there are new files, and not one could be read.
  """
  folder = pathlib.Path(out)
  note = _open_or_new(folder, model, checkpoint)
  known = {_key(row): row for row in _rows(folder, note)}
  wanted: dict[Any, tuple[EmbedItem, Row]] = {}
  for entry, row in map(_described, entries):
    other = wanted.setdefault(_key(row), (entry, row))[1]
    if other["stated"] != row["stated"]:
      raise ConfigError(
        f"{row['path']} is given twice, as {other['stated']} and "
        f"{row['stated']}; give it once."
      )
  changed = [
    key
    for key, (_, row) in wanted.items()
    if key in known and any(row[c] != known[key][c] for c in _STATE)
  ]
  todo = [
    wanted[key] for key in wanted if key not in known or key in set(changed)
  ]
  report = IndexReport(
    str(folder), len(known), unchanged=len(wanted) - len(todo)
  )
  if not todo:
    _write_note(folder, note)
    return report
  new = folder / "new.npy"
  done = embed_files(
    *(model, [entry for entry, _ in todo], new),
    fingerprint=model.fingerprint,
    shard_size=shard_size,
    overwrite=True,
    progress=progress,
  )
  vectors = np.load(new, allow_pickle=False)
  listed = new.with_suffix(".jsonl").read_text().splitlines()
  state = {_key(row): row for _, row in todo}
  rows = [state[_key(json.loads(line))] for line in listed]
  note = _without(folder, note, set(changed))
  note = _with_part(folder, note, rows, vectors)
  _write_note(folder, note)
  _clean(folder, note)
  found = {_key(row) for row in rows}
  return IndexReport(
    str(folder),
    items=sum(part["rows"] for part in note["parts"]),
    added=len(found - set(changed)),
    updated=len(found & set(changed)),
    removed=len(set(changed) - found),
    unchanged=report.unchanged,
    failed=done.failed,
    errors=done.errors,
  )


def remove_from_index(
  out: str | os.PathLike[str],
  paths: Sequence[str] = (),
  *,
  missing: bool = False,
) -> IndexReport:
  """Removes rows by the path of their file, or those whose file is gone.

  Args:
    out: folder of the index.
    paths: of files.
    missing: whether to remove rows of local files that are not there any more.

  Raises:
    ConfigError: if there is no index, or no row of one of the paths.
  """
  folder = pathlib.Path(out)
  note = read_note(folder)
  rows = _rows(folder, note)
  wanted = {_absolute(path) for path in paths}
  unknown = wanted - {row["path"] for row in rows}
  if unknown:
    raise ConfigError(
      f"{folder}: no row of {', '.join(map(repr, sorted(unknown)[:5]))}."
    )
  gone = {
    _key(row)
    for row in rows
    if row["path"] in wanted
    or (missing and row["size"] >= 0 and not os.path.exists(row["path"]))
  }
  note = _without(folder, note, gone)
  _write_note(folder, note)
  _clean(folder, note)
  return IndexReport(str(folder), len(rows) - len(gone), removed=len(gone))


def _key(row: Row) -> tuple[str, str, str, int]:
  """What an item is known by; a file, wherever it stood in a command."""
  place = row["index"] if row["source"] else -1
  return row["modality"], row["path"], row["source"], place


def _described(entry: EmbedItem) -> tuple[EmbedItem, Row]:
  """An entry with its row, the state of its file included.

  The paths of local files are made absolute: a row means one file, from
  whatever folder and by whatever name a command is given.
  """
  size, modified = -1, -1
  if not entry.source:
    entry = dataclasses.replace(entry, path=_absolute(entry.path))
    try:
      found = os.stat(entry.path)
      size, modified = found.st_size, found.st_mtime_ns
    except (OSError, ValueError):  # not a local file, or it cannot be read
      pass
  stated = json.dumps(entry.statement(), sort_keys=True)
  state = {"stated": stated, "size": size, "modified": modified}
  return entry, {**entry.describe(), **state}


def _absolute(path: str) -> str:
  """The absolute path of a local file; others stay as they are.

  So does the name of packaged weights, which is no path.
  """
  keep = "://" in path or is_name(path)
  return path if keep else os.path.abspath(path)


def _open_or_new(
  folder: pathlib.Path, model: OmniModel, checkpoint: str
) -> dict[str, Any]:
  if (folder / NOTE).exists():
    note = read_note(folder)
    if note["fingerprint"] != model.fingerprint:
      raise ConfigError(
        f"{folder} was made by another checkpoint ({note['checkpoint']}); give "
        "that one, or another --out."
      )
    return note
  if folder.exists() and any(
    not entry.name.startswith("new.npy") for entry in folder.iterdir()
  ):
    raise ConfigError(f"{folder} holds other files; give another --out.")
  folder.mkdir(parents=True, exist_ok=True)
  return {
    "format": FORMAT,
    "checkpoint": _absolute(checkpoint),
    "fingerprint": model.fingerprint,
    "width": model.embed_dim,
    "next": 0,
    "parts": [],
  }


def _rows(folder: pathlib.Path, note: dict[str, Any]) -> list[Row]:
  names = (*COLUMNS, *_STATE)
  return [
    dict(zip(names, values, strict=True))
    for table in read_tables(folder, note, names)
    for values in zip(*(table[name] for name in names), strict=True)
  ]


def _with_part(
  folder: pathlib.Path,
  note: dict[str, Any],
  rows: Sequence[Row],
  vectors: np.ndarray,
) -> dict[str, Any]:
  """Writes a part; returns the note that lists it."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  number = note["next"]
  array, table = array_path(folder, number), table_path(folder, number)
  for path in (array, table):
    path.parent.mkdir(exist_ok=True)
  np.save(array, np.ascontiguousarray(vectors, np.float32))
  columns = {name: [row[name] for row in rows] for name in (*COLUMNS, *_STATE)}
  pq.write_table(pa.table(columns), table)
  part = {"number": number, "rows": len(rows)}
  return {**note, "next": number + 1, "parts": [*note["parts"], part]}


def _without(
  folder: pathlib.Path, note: dict[str, Any], gone: set[tuple[Any, ...]]
) -> dict[str, Any]:
  """Writes parts without some rows anew; returns the note that lists them."""
  if not gone:
    return note
  names = (*COLUMNS, *_STATE)
  parts = note["parts"]
  tables = read_tables(folder, note, names)
  note = {**note, "parts": []}
  for part, table in zip(parts, tables, strict=True):
    columns = zip(*(table[name] for name in names), strict=True)
    rows = [dict(zip(names, values, strict=True)) for values in columns]
    kept = [i for i, row in enumerate(rows) if _key(row) not in gone]
    if len(kept) == len(rows):
      note = {**note, "parts": [*note["parts"], part]}
    elif kept:
      path = array_path(folder, part["number"])
      vectors = np.load(path, mmap_mode="r", allow_pickle=False)[kept]
      note = _with_part(folder, note, [rows[i] for i in kept], vectors)
  return note


def _write_note(folder: pathlib.Path, note: dict[str, Any]) -> None:
  part = folder / f"{NOTE}.tmp"
  part.write_text(json.dumps(note, indent=1) + "\n")
  os.replace(part, folder / NOTE)


def _clean(folder: pathlib.Path, note: dict[str, Any]) -> None:
  """Removes the files of parts that the note no longer lists."""
  kept = {part["number"] for part in note["parts"]}
  for number in range(note["next"]):
    if number not in kept:
      array_path(folder, number).unlink(missing_ok=True)
      table_path(folder, number).unlink(missing_ok=True)
  for name in ("new.npy", "new.jsonl"):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / "new.npy.parts", ignore_errors=True)
