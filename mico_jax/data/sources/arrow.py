"""Base class of sources whose rows are those of Arrow tables.

A medium is a column of bytes, of Hugging Face's structs of bytes and path, of
paths, or of lists of these (frames). A modality's column is that of
`config.fields`, else one of its name, else the only one of Hugging Face's
feature type (`Image`) or named by a file type (`jpg`).
"""

from __future__ import annotations

import abc
import datetime
import decimal
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.data.records import id_of
from mico_jax.data.sources.rows import Media, RowSource, present, some
from mico_jax.modalities import MODALITIES, DecodeError, by_extension

_IDS = ("id", "key", "__key__")  # columns of ids; the first present counts
STATUS, SUCCESS = "status", "success"
_OF_IMG2DATASET = frozenset(("url", "key", STATUS, "error_message"))


class ArrowSource(RowSource):
  """Rows of Arrow tables; a subclass says how a row is found."""

  @abc.abstractmethod
  def _cells(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
    """Values of some columns of a row, as Python objects.

    Raises:
      DecodeError: if they cannot be read.
    """

  def _take_schema(self, schema: Any) -> None:
    """Finds the columns of media, fields and ids.

    Args:
      schema: a pyarrow.Schema.

    Raises:
      ConfigError: for columns that do not exist or hold no media.
    """
    self._schema_names = list(schema.names)
    holds = {f.name: _holds(f.type) for f in schema}
    types = {f.name: f.type for f in schema}
    self._take_columns(holds, _features(schema), types)

  def _take_columns(
    self,
    holds: Mapping[str, str],
    features: Mapping[str, Any],
    types: Mapping[str, Any],
  ) -> None:
    """See `_take_schema`.

    Args:
      holds: column -> "bytes" or "paths", what it can hold of media, or "".
      features: column -> Hugging Face's description, if there is one.
      types: column -> its type, for messages.
    """
    config = self._config
    for what, names in (
      ("fields", config.fields.values()),
      ("captions", config.captions.values()),
      ("where", config.where),
    ):
      for name in names:
        if name not in holds:
          raise ConfigError(
            f"data.sources.{self._name}.{what} names the column {name!r}; "
            f"{config.path} has {', '.join(map(str, holds))}."
          )
    self._columns = {
      key: name
      for key, name in config.fields.items()
      if key in MODALITIES and MODALITIES[key].embedding != "text"
    }
    for key, name in self._columns.items():
      if not holds[name]:
        raise ConfigError(
          f"data.sources.{self._name}.fields.{key}: the column {name!r} is "
          f"{types[name]}; expected bytes, structs of bytes and "
          "path, or paths."
        )
    self._columns |= self._usual(holds, features)
    media = set(self._columns.values())
    self.unmapped = [
      n for n, kind in holds.items() if kind == "bytes" and n not in media
    ]
    if self.unmapped:
      self._note(
        f"columns of bytes that no modality is mapped to: "
        f"{some(self.unmapped)}; set fields={{MODALITY: COLUMN}} to use them."
      )
    skip = {*media, *self.unmapped}
    self._field_columns = [n for n in holds if n not in skip]
    self._id_column = next((n for n in _IDS if n in self._field_columns), "")
    self._classes = _class_names(features)
    self._has_status = set(holds) >= _OF_IMG2DATASET

  def _usual(
    self, holds: Mapping[str, str], features: Mapping[str, Any]
  ) -> dict[str, str]:
    """The columns of modalities that the config does not name."""
    columns: dict[str, str] = {}
    rivals: dict[str, list[str]] = {}
    for name, kind in holds.items():
      key = str((features.get(name) or {}).get("_type", "")).lower()
      modality = by_extension(f".{name}")
      if name in MODALITIES and kind:
        columns[name] = name
      elif kind == "bytes" and key in MODALITIES:
        rivals.setdefault(key, []).append(name)
      elif kind == "bytes" and modality is not None:
        rivals.setdefault(modality.key, []).append(name)
    for key, names in rivals.items():
      if key in self._columns or key in columns:
        continue
      if len(names) > 1:
        raise ConfigError(
          f"data.sources.{self._name}: the columns {', '.join(names)} may all "
          f"be the {key}; name one: fields={{{key!r}: COLUMN}}."
        )
      columns[key] = names[0]
    named = {k: v for k, v in columns.items() if k not in self._columns}
    return {k: v for k, v in named.items() if MODALITIES[k].embedding != "text"}

  # ------------------------------------------------------------------- samples
  def _fields(self, row: int) -> dict[str, Any]:
    cells = self._cells(row, self._field_columns)
    fields = present({n: _plain(v) for n, v in cells.items()})
    for name, names in self._classes.items():
      number = fields.get(name)
      if number == -1:  # Hugging Face's missing label
        del fields[name]
      elif isinstance(number, int) and 0 <= number < len(names):
        fields.setdefault(f"{name}_name", names[number])
    return fields

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    empty = self._empty(row)
    return {
      key: self._reader(row, column)
      for key, column in self._columns.items()
      if column not in empty
    }

  @abc.abstractmethod
  def _empty(self, row: int) -> set[str]:
    """The columns of media that are null in a row; reads no media."""

  def _reader(self, row: int, column: str) -> Callable[[], Any]:
    return lambda: self._content(self._cells(row, [column])[column])

  def _content(self, value: Any) -> Any:
    """The bytes, or list of bytes, of a cell."""
    if isinstance(value, list):
      return [self._content(item) for item in value]
    if isinstance(value, Mapping):
      data = value.get("bytes")
      value = data if data is not None else value.get("path")
    if isinstance(value, bytes):
      return value
    if isinstance(value, str):
      return self._files.read(value)
    raise DecodeError(f"expected bytes or a path, got {value!r:.60}.")

  def _id(self, row: int, fields: Mapping[str, Any]) -> str:
    value = fields.get(self._id_column)
    return id_of({"id": value}, f"row{row}")


def _holds(kind: Any) -> str:
  """What a column can hold: "bytes", "paths" or nothing ("") of media."""
  from pyarrow import types

  if types.is_list(kind) or types.is_large_list(kind):
    return _holds(kind.value_type)
  if types.is_binary(kind) or types.is_large_binary(kind):
    return "bytes"
  if types.is_struct(kind):
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return "bytes" if names == {"bytes", "path"} else ""
  return "paths" if types.is_string(kind) or types.is_large_string(kind) else ""


def _features(schema: Any) -> dict[str, Any]:
  """Hugging Face's description of the columns, if the schema has one."""
  text = (schema.metadata or {}).get(b"huggingface")
  try:
    features = json.loads(text)["info"]["features"] if text else {}
  except (ValueError, KeyError, TypeError, RecursionError):
    return {}
  return features if isinstance(features, dict) else {}


def _class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
  """Column -> names of its classes."""
  return {
    name: [str(n) for n in feature["names"]]
    for name, feature in features.items()
    if isinstance(feature, dict)
    if feature.get("_type") == "ClassLabel"
    if isinstance(feature.get("names"), list)
  }


def _plain(value: Any) -> Any:
  """A value of a cell as JSON can hold it; bytes are left out (None)."""
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
    return value.isoformat()
  if isinstance(value, datetime.timedelta):
    return value.total_seconds()
  if isinstance(value, decimal.Decimal):
    return float(value)
  return None if isinstance(value, bytes) else value


def is_empty(scalar: Any) -> bool:
  """Whether a cell is null, an empty list, or a struct of nulls."""
  import pyarrow as pa

  if not scalar.is_valid:
    return True
  if isinstance(scalar, pa.StructScalar):
    return not any(value.is_valid for value in scalar.values())
  if isinstance(scalar, (pa.ListScalar, pa.LargeListScalar)):
    return not len(scalar)
  return False
