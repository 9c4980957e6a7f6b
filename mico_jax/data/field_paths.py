"""Paths to values inside rows of annotations, and texts made of such values.

A path names fields, one inside the other: `image.id`. `[]` behind a name takes
every item of its list, `[2]` one of them, `*` in place of a name every value of
a mapping: `sentences[].raw`, `database.*.annotations[]`.
"""

from __future__ import annotations

import functools
import posixpath
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.modalities import DecodeError

KEY = "key"  # field that gets the name under which a row stands in a mapping
VALUE = "value"  # field that gets a row that is no mapping
ROW = "row"  # field that gets the number of a row, from 0

_STEP = re.compile(r"(?P<name>[^\[\].]*)(\[(?P<item>\d{0,9})\])?")


@functools.lru_cache(1024)
def steps(path: str) -> tuple[tuple[str, str | None], ...]:
  """(name, item) of each part of a path; item: None, "" for all, or a number.

  Raises:
    ConfigError: for a text that is no path.
  """
  found = []
  for part in path.split("."):
    match = _STEP.fullmatch(part)
    if match is None or not part:
      raise ConfigError(
        f"{path!r} is no path of fields; write NAME, NAME.NAME, NAME[] or "
        "NAME[0]."
      )
    found.append((match["name"], match["item"]))
  return tuple(found)


def _items(value: Any, item: str | None, path: str) -> Sequence[Any]:
  """What `[]` and `[n]` take of a value."""
  if item is None:
    return (value,)
  if not isinstance(value, (list, tuple)):
    raise DecodeError(f"{path!r}: expected a list, got {value!r:.60}.")
  if not item:
    return value
  if int(item) >= len(value):
    raise DecodeError(
      f"{path!r}: the list has {len(value)} items, counted from 0."
    )
  return (value[int(item)],)


def values(row: Any, path: str) -> list[Any]:
  """All values that a path leads to; those that are missing are left out.

  Raises:
    ConfigError: for a text that is no path.
    DecodeError: for a value that is no list where the path takes items of one.
  """
  found = [row]
  for name, item in steps(path):
    following: list[Any] = []
    for value in found:
      if name == "*" and isinstance(value, Mapping):
        parts: Sequence[Any] = list(value.values())
      elif name:
        there = value.get(name) if isinstance(value, Mapping) else None
        parts = () if there is None else (there,)
      else:
        parts = (value,)
      for part in parts:
        following += _items(part, item, path)
    found = [value for value in following if value is not None]
  return found


def rows(data: Any, path: str) -> Iterator[dict[str, Any]]:
  """The rows that a path leads to, with the plain values of what holds them.

  A row that is no mapping has the field `value`; one of a mapping has its name
  there as the field `key`. Fields of the row come before those of its holders.

  Args:
    data: content of a JSON file.
    path: to the rows; "" for a file that is a list or mapping of rows.

  Raises:
    DecodeError: if the path leads nowhere.
  """
  if not path:
    path = "*" if isinstance(data, Mapping) else "[]"
  yield from _rows(data, steps(path), {}, path)


def _rows(
  data: Any,
  rest: Sequence[tuple[str, str | None]],
  held: Mapping[str, Any],
  path: str,
) -> Iterator[dict[str, Any]]:
  if not rest:
    own = data if isinstance(data, Mapping) else {VALUE: data}
    yield {**held, **own}
    return
  (name, item), *later = rest
  if isinstance(data, Mapping):
    held = {**held, **_plain(data)}
  if name == "*":
    if not isinstance(data, Mapping):
      raise DecodeError(f"{path!r}: expected a mapping, got {data!r:.60}.")
    named: Any = [(k, v) for k, v in data.items()]
  elif name:
    if not isinstance(data, Mapping) or name not in data:
      raise DecodeError(f"{path!r}: there is no {name!r} in the file.")
    named = [(None, data[name])]
  else:
    named = [(None, data)]
  for key, value in named:
    more = held if key is None else {**held, KEY: key}
    for part in _items(value, item, path):
      yield from _rows(part, later, more, path)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a row that are texts or numbers."""
  return {
    k: v for k, v in row.items() if isinstance(v, (str, int, float, bool))
  }


# ------------------------------------------------------------------- templates
def check_template(template: str, where: str) -> None:
  """Checks a text with paths in braces, `{a.b}`, `{a:012}` or `{a:stem}`.

  Raises:
    ConfigError: for another text, naming `where` it stands.
  """
  try:
    parts = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ConfigError(f"{where}={template!r}: {error}.") from error
  for _, path, form, conversion in parts:
    if path is None:
      continue
    if conversion or (form and not re.fullmatch(r"0\d{1,2}|stem", form)):
      raise ConfigError(
        f"{where}={template!r}: write fields as {{name}}, {{name:012}} for a "
        "number with leading zeros, or {name:stem} for a file without its "
        "ending."
      )
    try:
      steps(path)
    except ConfigError as error:
      raise ConfigError(f"{where}={template!r}: {error}") from error


def paths_in(template: str) -> list[str]:
  """The paths in the braces of a template."""
  parts = string.Formatter().parse(template)
  return [path for _, path, _, _ in parts if path is not None]


def fill(template: str, row: Mapping[str, Any]) -> str | None:
  """A template with the values of a row; None if one is missing.

  Raises:
    DecodeError: for a value that is no text or number, several values, or a
      text where a number is to have leading zeros.
  """
  out = []
  for text, path, form, _ in string.Formatter().parse(template):
    out.append(text)
    if path is None:
      continue
    found = values(row, path)
    if not found:
      return None
    value = found[0]
    if len(found) > 1 or isinstance(value, bool):
      raise DecodeError(
        f"{path!r} in {template!r}: expected one text, got {found!r:.60}."
      )
    if isinstance(value, float) and value.is_integer():
      value = int(value)
    if not isinstance(value, (str, int)):
      raise DecodeError(
        f"{path!r} in {template!r}: expected text, got {value!r:.60}."
      )
    out.append(_written(value, form or "", template))
  return "".join(out)


def _written(value: str | int, form: str, template: str) -> str:
  if not form:
    return str(value)
  if form == "stem":
    return posixpath.splitext(str(value))[0]
  try:
    return format(int(value), form)
  except ValueError as error:
    raise DecodeError(
      f"{template!r}: {value!r:.60} is no whole number."
    ) from error
