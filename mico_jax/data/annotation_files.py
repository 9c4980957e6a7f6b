"""Rows of the files in which benchmarks publish their annotations.

JSON and jsonl (rows by a path, `mico_jax.data.field_paths`), csv and tsv, texts
of one entry a line, lists in .npy and .mat files, and folders (a row per file).
"""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import hashlib
import io
import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np

from mico_jax import json_text
from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice
from mico_jax.data.faults import describe
from mico_jax.data.field_paths import ROW, VALUE, rows
from mico_jax.data.identity import tell
from mico_jax.data.references import FileReader
from mico_jax.modalities import DecodeError

_LARGE = 20_000_000  # bytes; parsing more takes seconds
FORMATS = ("json", "jsonl", "csv", "tsv", "txt", "npy", "mat", "folder")


@dataclasses.dataclass(frozen=True)
class Table:
  """Where rows of annotations are, and how they are written."""

  # names the file can have, relative to the folder; the first that is there
  # counts. Of format "folder": a pattern such as "val/*/*".
  file: tuple[str, ...] = ()
  # "auto": by the ending of the name
  format: Annotated[str, Choice("auto", *FORMATS)] = "auto"
  # path to the rows of a JSON file, such as "images[]"; "": all of it. Of a
  # .mat file: the name of the list.
  rows: str = ""
  # names of the columns, separated by commas, of a table without a header; of
  # txt: the line is split at blanks, and the last name takes the rest
  columns: str = ""
  # lines that begin with this are left out
  comment: str = ""
  # of format "folder": read the file (a short text) into the field `text`
  read: bool = False
  # beginning that is taken off each `value`
  strip: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
  """A table that was read.

  Attributes:
    path: of the file, relative to the folder.
    rows: in the order of the file, each with its number as `row`.
    sha256: of the content; of a folder: of the names.
    md5: of the content, as some sets publish it; "" of a folder.
  """

  path: str
  rows: list[dict[str, Any]]
  sha256: str
  md5: str = ""


def read_table(
  table: Table, files: FileReader, names: Callable[[], Sequence[str]]
) -> Found:
  """Reads the rows of a table.

  Args:
    table: says where they are.
    files: reads below the folder.
    names: gives the names of all files below the folder, sorted.

  Raises:
    ConfigError: if no file is there, or it cannot be read as said.
  """
  if table.format == "folder":
    return _folder(table, files, names())
  there = set(names())
  path = next((name for name in table.file if name in there), "")
  if not path:
    raise ConfigError(
      f"there is none of these files: {', '.join(table.file) or 'none named'}."
    )
  form = table.format
  if form == "auto":
    form = posixpath.splitext(path)[1].removeprefix(".").lower()
  if form not in FORMATS:
    raise ConfigError(f"{path}: give its format; known: {', '.join(FORMATS)}.")
  try:
    data = files.read(path)
    if len(data) > _LARGE:
      tell(f"reading {path} ({len(data) / 1e6:.0f} MB) ...")
    found = list(_READERS[form](data, table))
  except (DecodeError, ConfigError) as error:
    raise ConfigError(f"{path}: {error}") from error
  except Exception as error:  # the libraries of these formats raise many kinds
    raise ConfigError(
      f"{path}: not readable as {form}: {describe(error)}"
    ) from error
  return Found(
    path,
    [{ROW: i, **_stripped(row, table.strip)} for i, row in enumerate(found)],
    hashlib.sha256(data).hexdigest(),
    hashlib.md5(data, usedforsecurity=False).hexdigest(),
  )


def _stripped(row: dict[str, Any], start: str) -> dict[str, Any]:
  if start and isinstance(row.get(VALUE), str):
    return {**row, VALUE: row[VALUE].removeprefix(start)}
  return row


def _text(data: bytes) -> str:
  return data.decode("utf-8-sig")


def _json(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  content = json.loads(_text(data), object_pairs_hook=json_text.unique)
  yield from rows(content, table.rows)


def _jsonl(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  for line in _lines(data, table):
    yield from rows([json.loads(line)], "[]")


def _lines(data: bytes, table: Table) -> Iterator[str]:
  for line in _text(data).split("\n"):
    line = line.rstrip("\r")
    if line.strip() and not (table.comment and line.startswith(table.comment)):
      yield line


def _csv(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  # Quoted cells may go over several lines, so only those in front are comments.
  text = _text(data)
  while table.comment and text.startswith(table.comment):
    text = text.partition("\n")[2]
  reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
  yield from _cells(reader, table)


def _tsv(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  # Quotes are signs like others: sentences in these files leave some open.
  lines = (line.split("\t") for line in _lines(data, table))
  yield from _cells(lines, table)


def _cells(
  lines: Iterator[list[str]], table: Table
) -> Iterator[dict[str, Any]]:
  """Rows of a table with a header, or with the columns that are named."""
  header = [name.strip() for name in table.columns.split(",") if name.strip()]
  for number, cells in enumerate(lines, start=1):
    if not cells:
      continue
    if not header:
      header = [name.strip() for name in cells]
      if len(set(header)) < len(header):
        raise DecodeError(f"the header {header!r:.200} repeats a name.")
      continue
    if len(cells) != len(header):
      raise DecodeError(
        f"row {number} has {len(cells)} cells; expected {len(header)}: "
        f"{', '.join(header)}."
      )
    filled = zip(header, cells, strict=True)
    yield {name: cell for name, cell in filled if cell.strip()}


def _txt(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  names = [name.strip() for name in table.columns.split(",") if name.strip()]
  for line in _lines(data, table):
    if not names:
      yield {VALUE: line.strip()}
      continue
    cells = line.split(None, len(names) - 1)
    if len(cells) != len(names):
      raise DecodeError(f"{line!r:.80}: expected {', '.join(names)}.")
    yield dict(zip(names, map(str.strip, cells), strict=True))


def _npy(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  del table
  array = np.load(io.BytesIO(data), allow_pickle=False)
  yield from ({VALUE: value} for value in array.reshape(-1).tolist())


def _mat(data: bytes, table: Table) -> Iterator[dict[str, Any]]:
  from scipy import io as scipy_io

  content = scipy_io.loadmat(io.BytesIO(data))
  if table.rows not in content:
    known = [name for name in content if not name.startswith("__")]
    raise DecodeError(f"has no list {table.rows!r}, but {', '.join(known)}.")
  for value in content[table.rows].reshape(-1):
    while isinstance(value, np.ndarray) and value.size == 1:
      value = value.reshape(-1)[0]  # cells hold arrays of one text
    yield {VALUE: value.item() if isinstance(value, np.generic) else value}


_READERS: dict[str, Callable[[bytes, Table], Iterator[dict[str, Any]]]] = {
  "json": _json,
  "jsonl": _jsonl,
  "csv": _csv,
  "tsv": _tsv,
  "txt": _txt,
  "npy": _npy,
  "mat": _mat,
}


def _folder(table: Table, files: FileReader, names: Sequence[str]) -> Found:
  """A row for each file that matches a pattern, level by level."""
  patterns = [pattern.split("/") for pattern in table.file]

  def fits(name: str) -> bool:
    parts = name.split("/")
    alike = [p for p in patterns if len(p) == len(parts)]
    return any(all(map(fnmatch.fnmatchcase, parts, p)) for p in alike)

  found = []
  for name in filter(fits, names):
    folder, base = posixpath.split(name)
    row = {
      ROW: len(found),
      "path": name,
      "folder": folder,
      "parent": posixpath.basename(folder),
      "stem": posixpath.splitext(base)[0],
    }
    if table.read:
      row["text"] = _text(files.read(name)).strip()
    found.append(row)
  if not found:
    raise ConfigError(f"no file matches {' or '.join(table.file)}.")
  digest = hashlib.sha256("\n".join(r["path"] for r in found).encode())
  return Found(table.file[0], found, digest.hexdigest())
