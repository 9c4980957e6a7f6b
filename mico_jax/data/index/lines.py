"""The lines of a manifest as columns, made in one pass over the file.

Columns, of each line that is not blank: `start` and `size` in bytes, `number`
(from 1), `id_hash`, `split` (of `meta["splits"]`; 0: none), `fields`: which
of `meta["fields"]` it has, one bit each, and `texts`: which of them are a text
or a list of texts. Of `fields`, bit 63 says that the line is broken, bit 62
that it has fields beyond those that have a bit, bit 61 that its record may be
broken or hold something else than the names of its fields say.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mico_jax.data.index.columns import Columns, Writer
from mico_jax.data.index.progress import Progress
from mico_jax.data.index.repeats import NO_ID, hash_of
from mico_jax.data.records import (
  id_of,
  negatives_of,
  parse_fields,
  questions_of,
)
from mico_jax.data.storage import Storage, is_remote, short
from mico_jax.modalities import DecodeError

DTYPES = {
  "start": "<i8",
  "size": "<u4",
  "number": "<i8",
  "id_hash": "<i8",
  "split": "<u2",
  "fields": "<u8",
  "texts": "<u8",
}
BROKEN = 1 << 63
MORE = 1 << 62
ODD = 1 << 61
_BITS = 61
_SPLITS = 60000
_PIECE = 4096  # lines that are added at a time
_READ = 1 << 22


def _lines(
  file: Any, take: Callable[[bytes], None]
) -> Iterator[tuple[int, int, bytes]]:
  """Number, offset and bytes of each line that is not blank."""
  start = 0
  for number, line in enumerate(file, 1):
    take(line)
    text = line.removesuffix(b"\n")
    if text.strip():
      yield number, start, text
    start += len(line)


class Form(NamedTuple):
  """How samples are written in a file, one JSON object each.

  Attributes:
    kind: of the index, with the version of what it holds.
    entries: gives number, offset and bytes of each; what it is called with is
      given all bytes of the file.
    fields: what the fields of a sample are made of those of its object.
  """

  kind: str
  entries: Callable[
    [Any, Callable[[bytes], None]], Iterator[tuple[int, int, bytes]]
  ]
  fields: Callable[[dict[str, Any]], dict[str, Any]]


LINES = Form("manifest.2", _lines, lambda fields: fields)


def build(
  path: str,
  storage: Storage,
  data: bytes | None = None,
  form: Form = LINES,
) -> tuple[Writer, dict[str, Any]]:
  """Reads a manifest.

  Args:
    path: local or remote.
    storage: reads it, and waits for it.
    data: its content, if at hand.
    form: how its samples are written.

  Returns:
    The columns, and their meta: `sha256` of the content, `samples`, `good`
    (lines that hold an object), `broken` (row of the first that does not; -1:
    none), `splits` and `fields`.

  Raises:
    DecodeError: if it cannot be read, or has a line of more than 4 GiB.
    TransientError: for storage that stays away.
  """
  if data is not None:
    return _scan(io.BytesIO(data), path, len(data), form)
  size = storage.stat(path).size
  if is_remote(path):
    with storage.scan(path) as file:
      return _scan(file, path, size, form)

  def scan() -> tuple[Writer, dict[str, Any]]:
    with open(path, "rb", buffering=_READ) as local:
      return _scan(local, path, size, form)

  return storage.patiently(scan, path)


def _scan(
  file: Any, path: str, size: int, form: Form
) -> tuple[Writer, dict[str, Any]]:
  writer = Writer(**DTYPES)
  splits: dict[str | None, int] = {None: 0}
  bits: dict[str, int] = {}
  rows: dict[str, list[int]] = {name: [] for name in DTYPES}
  digest = hashlib.sha256()
  good = count = 0
  broken = -1
  with Progress(size, f"indexing {short(path)} (MB)", 10**6) as progress:
    for number, start, text in form.entries(file, digest.update):
      fields, split, mask, texts = _line(text, number, splits, bits, form)
      good += not mask & BROKEN
      if mask & BROKEN and broken < 0:
        broken = count
      _check_length(text, number, path)
      named = fields.get("id")
      rows["start"].append(start)
      rows["size"].append(len(text))
      rows["number"].append(number)
      rows["id_hash"].append(NO_ID if named is None else hash_of(str(named)))
      rows["split"].append(split)
      rows["fields"].append(mask)
      rows["texts"].append(texts)
      count += 1
      if len(rows["start"]) >= _PIECE:
        writer.add(**rows)
        rows = {name: [] for name in DTYPES}
        progress.update(start)
  writer.add(**rows)
  return writer, {
    "sha256": digest.hexdigest(),
    "samples": count,
    "good": good,
    "broken": broken,
    "splits": list(splits),
    "fields": list(bits),
  }


def _check_length(text: bytes, number: int, path: str) -> None:
  if len(text) >= 1 << 32:
    raise DecodeError(f"{short(path)}, line {number}: longer than 4 GiB.")


def _line(
  text: bytes,
  number: int,
  splits: dict[str | None, int],
  bits: dict[str, int],
  form: Form,
) -> tuple[Mapping[str, Any], int, int, int]:
  """Fields, number of the split, and bits of fields and texts of a line."""
  mask = texts = 0
  try:
    try:
      line = text.decode()
    except UnicodeDecodeError:
      # They make a bad sample, not a bad manifest.
      line, mask = text.decode("utf-8", "replace"), ODD
    fields = form.fields(parse_fields(line, f"line {number}"))
  except DecodeError:
    return {}, 0, BROKEN, 0
  if _is_odd(fields):
    mask |= ODD
  for name, value in _named(fields):
    bit = bits.setdefault(name, len(bits)) if len(bits) < _BITS else None
    bit = bits.get(name) if bit is None else bit
    if bit is None:
      mask |= MORE
      continue
    mask |= 1 << bit
    if _are_texts(value):
      texts |= 1 << bit
  split = fields.get("split")
  if not isinstance(split, str):  # of every split, or named as broken
    return fields, 0, mask, texts
  if split not in splits and len(splits) >= _SPLITS:
    raise DecodeError(f"line {number}: more than {_SPLITS} different splits.")
  return fields, splits.setdefault(split, len(splits)), mask, texts


def _named(fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """The fields that are not null; of `captions` by kind, each of its kinds."""
  for name, value in fields.items():
    if value is None:
      continue
    if name == "captions" and isinstance(value, Mapping):
      yield from ((f"captions.{kind}", texts) for kind, texts in value.items())
    else:
      yield name, value


def _are_texts(value: Any) -> bool:
  """Whether a value is a text, or a list of some."""
  if isinstance(value, list):
    return bool(value) and all(isinstance(item, str) for item in value)
  return isinstance(value, str)


def _is_odd(fields: Mapping[str, Any]) -> bool:
  """Whether the record may be broken, whichever fields are read."""
  split = fields.get("split")
  if split is not None and not isinstance(split, str):
    return True
  try:
    id_of(fields, "")
    negatives_of(fields)
    questions_of(fields)
  except (DecodeError, TypeError, ValueError):
    return True
  # Would be taken for a kind of the field `captions`.
  return any(name.startswith("captions.") for name in fields)


def presence(columns: Columns) -> dict[str, dict[str, int]]:
  """How many lines have each field, and are of each split ("": of all)."""
  splits, names = columns.meta["splits"], columns.meta["fields"]
  per_split = np.zeros(len(splits), np.int64)
  per_field = [0] * len(names)
  for start in range(0, columns.meta["samples"], _PIECE * 256):
    part = slice(start, start + _PIECE * 256)
    counts = np.bincount(columns["split"][part], minlength=len(splits))
    per_split += counts
    masks = columns["fields"][part]
    for bit in range(len(names)):
      there = (masks >> np.uint64(bit)) & np.uint64(1)
      per_field[bit] += int(np.count_nonzero(there))
  return {
    "fields": dict(zip(names, per_field, strict=True)),
    "splits": {
      s or "": n for s, n in zip(splits, per_split.tolist(), strict=True) if n
    },
  }
