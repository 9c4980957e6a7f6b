"""Lists of videos and clips: csv, tsv, json, jsonl, parquet, in any columns.

A column has a role, said by `--column role=name` or by a layout: `id` of the
sample; `stem` (a file's name without ending) or `file` (a file's path); `span`
(a pair) or `start` and `end`, in seconds or as hh:mm:ss.mmm; any other role is
the kind of a caption (a text, or a list of texts). Columns without a role are
kept in the record under "metadata".
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mico_jax import extras, json_text
from mico_jax.config import ConfigError
from mico_jax.data.build.rows import Entry, Span
from mico_jax.data.records import as_texts
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Storage, short
from mico_jax.modalities import DecodeError
from mico_jax.printing import known_names

# Layout -> role -> column.
LAYOUTS: dict[str, dict[str, str]] = {
  "columns": {},
  # One line per video, its clips in a list "clip".
  "hdvila": {"id": "clip_id", "stem": "video_id", "span": "span"},
  # One line per clip; the video's id is the clip's up to its last dot.
  "vast": {
    "id": "clip_id",
    "span": "clip_span",
    "vision": "vision_cap",
    "audio": "audio_cap",
    "omni": "vast_cap",
    "subtitle": "subtitle",
  },
}
PLACES = ("id", "stem", "file", "span", "start", "end")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


def read_metadata(
  pattern: str, layout: str, columns: Mapping[str, str]
) -> list[tuple[str, str, Entry]]:
  """(stem, file, entry) of each clip, in order; one of the first two is "".

  Args:
    pattern: files, as a source's path.
    layout: key of `LAYOUTS`.
    columns: role -> column, beside and before those of the layout.

  Raises:
    ConfigError: for files that are no such list, or columns that none has.
  """
  if layout not in LAYOUTS:
    raise ConfigError(f"layout={layout!r}; {known_names(layout, LAYOUTS)}")
  roles = LAYOUTS[layout] | dict(columns)
  if not {"stem", "file"} & roles.keys() and layout != "vast":
    raise ConfigError(
      "metadata: say which column names the file: --column stem=NAME (its "
      "name without ending) or --column file=NAME (its path in the folder)."
    )
  lines = [
    line for path in expand(pattern, "metadata") for line in _lines(path)
  ]
  if layout == "hdvila":
    lines = [clip for line in lines for clip in _clips(line)]
  seen = {name for line in lines for name in line}
  if unknown := [f"{r}={c}" for r, c in columns.items() if c not in seen]:
    raise ConfigError(
      f"metadata: no line has the column of {unknown[0]}; columns: "
      f"{', '.join(sorted(map(str, seen))[:20])}."
    )
  if not lines:
    raise ConfigError(f"metadata: {pattern} lists nothing.")
  return [_entry(line, roles, number) for number, line in enumerate(lines, 1)]


def _lines(path: str) -> Iterator[dict[str, Any]]:
  """The rows of a file, each a mapping."""
  try:
    data = Storage().read(path, limited=False)
    ending = path.rsplit(".", 1)[-1].lower()
    if ending == "parquet":
      import pyarrow.parquet

      yield from pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
      return
    text = data.decode("utf-8-sig")
    if ending in ("csv", "tsv"):
      delimiter = "," if ending == "csv" else "\t"
      reader = csv.DictReader(io.StringIO(text, ""), delimiter=delimiter)
      for row in reader:
        if None in row or None in row.values():
          raise ValueError(f"line {reader.line_num}: cells are not columns")
        yield {str(k): v for k, v in row.items() if v != ""}
      return
    if ending == "json":
      rows = json.loads(text, object_pairs_hook=json_text.unique)
    elif ending == "jsonl":
      rows = [
        json.loads(line, object_pairs_hook=json_text.unique)
        for line in text.split("\n")
        if line.strip()
      ]
    else:
      raise ValueError("expected .csv, .tsv, .json, .jsonl or .parquet")
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
      raise ValueError("expected a list of JSON objects")
    yield from rows
  except ImportError as error:
    raise ConfigError(
      f"{short(path)}: {error}; {extras.install('eval')}."
    ) from error
  except (DecodeError, ValueError, csv.Error, RecursionError) as error:
    text = " ".join(str(error).split())[:200]
    raise ConfigError(f"{short(path)}: {text}") from error


def _clips(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """The clips of a line of HD-VILA, with what is said of the whole video."""
  clips = line.get("clip")
  if not isinstance(clips, list) or not all(isinstance(c, dict) for c in clips):
    raise ConfigError(
      f"metadata: layout hdvila expects a list 'clip' of objects, got "
      f"{clips!r:.80}."
    )
  rest = {name: value for name, value in line.items() if name != "clip"}
  yield from ({**rest, **clip} for clip in clips)


def _entry(
  line: dict[str, Any], roles: Mapping[str, str], number: int
) -> tuple[str, str, Entry]:
  """What one line says; what is wrong with it becomes its reason."""
  get = lambda role: line.get(roles[role]) if role in roles else None
  stem, file = (str(get(role) or "") for role in ("stem", "file"))
  name = str(get("id") or "")
  if "stem" not in roles and "file" not in roles:
    stem = name.rpartition(".")[0]  # layout vast
  if roles.get("id") == "clip_id":
    name = name.removesuffix(".mp4")
  span, texts, reason = None, {}, ""
  try:
    if not (stem or file):
      raise DecodeError(f"entry {number} names no file.")
    span = _span(get("span"), get("start"), get("end"))
    texts = {
      kind: as_texts(line.get(column))
      for kind, column in roles.items()
      if kind not in PLACES
    }
  except DecodeError as error:
    reason = str(error)
  used = set(roles.values())
  fields = {k: v for k, v in line.items() if k not in used and _plain(v)}
  texts = {kind: some for kind, some in texts.items() if some}
  return stem, file, Entry(name, span, texts, fields, reason)


def _plain(value: Any) -> bool:
  """Whether JSON can hold a value."""
  try:
    json.dumps(value, allow_nan=False)
  except (TypeError, ValueError, RecursionError):
    return False
  return True


def _span(pair: Any, start: Any, end: Any) -> Span | None:
  """A part in s; None: the whole file.

  Raises:
    DecodeError: for what is no pair of times.
  """
  if pair is None:
    if start is None and end is None:
      return None
    pair = (start, end)
  if isinstance(pair, str):
    try:
      pair = json.loads(pair)
    except ValueError:
      pair = re.split(r"\s*[,;]\s*|\s+-\s+", pair.strip())
  if not isinstance(pair, (list, tuple)) or len(pair) != 2:
    raise DecodeError(f"expected a span of two times, got {pair!r:.60}.")
  first, last = (seconds(x) for x in pair)
  if not 0 <= first < last:
    raise DecodeError(f"the span [{first:g}, {last:g}] s is none.")
  return first, last


def seconds(value: Any) -> float:
  """A time: a number of seconds, also as text, or hh:mm:ss.mmm.

  Raises:
    DecodeError: for anything else.
  """
  if isinstance(value, str):
    if match := _CLOCK.fullmatch(value.strip()):
      hours, minutes, rest = match.groups()
      return 3600 * int(hours or 0) + 60 * int(minutes) + float(rest)
    try:
      value = float(value)
    except ValueError:
      value = None
  good = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not good or not math.isfinite(value):
    raise DecodeError(
      f"expected a time in s or as hh:mm:ss.mmm, got {value!r:.40}."
    )
  return float(value)
