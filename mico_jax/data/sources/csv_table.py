"""Data source of a CSV or TSV table, with files beside it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import re
import string
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.config.fields import Choice, NameMap
from mico_jax.data.records import media_fields
from mico_jax.data.references import FileReader, parent
from mico_jax.data.sources.rows import Media, RowSource, joined, present
from mico_jax.data.sources.templates import check_templates, fill
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError

_LABEL = "label"
_DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclasses.dataclass(frozen=True)
class CsvOptions:
  """How the table is written, and how files are named by its columns."""

  # between the cells; "auto": tab for .tsv, else comma
  delimiter: Annotated[str, Choice("auto", *_DELIMITERS)] = "auto"
  # modality -> name of its file, such as "audio/{youtube_id}.wav"
  files: NameMap = dataclasses.field(default_factory=dict)
  # names of the columns, for a table without a header, separated by commas
  columns: str = ""


class CsvSource(RowSource):
  """A .csv or .tsv file with a header: one row per sample or caption.

  `fields` names columns that hold paths; `options.files` makes paths of cells
  (AudioCaps: `{"audio": "{youtube_id}.wav"}`). Rows that name the same file
  are one sample, whose differing cells (captions) become lists, and whose id is
  that of its first row. Empty cells are missing fields; others are texts,
  except a whole number in the column `label`. A start time is a field like any
  other: the file is used from its beginning.
  """

  kind: ClassVar = "csv"
  reads: ClassVar = ("root",)
  held: ClassVar = 860
  Options: ClassVar = CsvOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the table.

    Raises:
      ConfigError: if it is missing or no table, or names no files.
    """
    self._name, self._config = name, config
    options = self.options(name, config)
    check_templates(options.files, name)
    self._templates = dict(options.files)
    try:
      data = storage.read(config.path, limited=False)
      rows = self._parse(data, options)
    except (DecodeError, UnicodeDecodeError, csv.Error) as error:
      raise ConfigError(f"data.sources.{name}.path: {error}") from error
    self._files = FileReader(parent(config.path), config.root, storage, name)
    self.sha256 = hashlib.sha256(data).hexdigest()
    self._fields_of, count = joined(map(self._with_names, rows), _FILES)
    if count:
      self._note(
        f"{count + len(self._fields_of)} rows are {len(self._fields_of)} "
        "samples, as rows that name the same file are one."
      )
    for row in self._fields_of:
      row.pop(_FILES, None)
      if isinstance(row.get("id"), list):  # of rows, such as one for a caption
        row["id"] = row["id"][0]
    self._choose(len(self._fields_of))
    self._tell_repeated(lambda: (row.get("id") for row in self._fields_of))

  def _parse(self, data: bytes, options: CsvOptions) -> list[dict[str, Any]]:
    delimiter = _DELIMITERS.get(options.delimiter)
    if delimiter is None:
      delimiter = "\t" if self._config.path.endswith(".tsv") else ","
    text = io.StringIO(data.decode("utf-8-sig"), newline="")
    names = [n.strip() for n in options.columns.split(",") if n.strip()]
    reader = csv.DictReader(
      text, delimiter=delimiter, fieldnames=names or None, strict=True
    )
    header = [n.strip() for n in reader.fieldnames or ()]
    if len(set(header)) < len(header) or not all(header):
      raise DecodeError(
        f"{self._config.path}: the header {','.join(header)!r:.200} repeats a "
        "name or lacks one; give options={'columns': 'a,b,...'}."
      )
    reader.fieldnames = header
    self._check_columns(header)
    rows = []
    for row in reader:
      if None in row:
        raise DecodeError(
          f"{self._config.path}, line {reader.line_num}: more cells than the "
          f"{len(header)} of the header; quote cells that hold the delimiter."
        )
      rows.append(_with_label(present(row)))
    return rows

  def _check_columns(self, header: list[str]) -> None:
    """Refuses names of columns that the table does not have."""
    config = self._config
    for what, names in (
      ("fields", list(config.fields.values())),
      ("captions", list(config.captions.values())),
      (
        "options.files",
        [
          field
          for template in self._templates.values()
          for _, field, _, _ in string.Formatter().parse(template)
          if field is not None
        ],
      ),
    ):
      for column in names:
        if column not in header:
          raise ConfigError(
            f"data.sources.{self._name}.{what} names the column {column!r}; "
            f"{config.path} has {', '.join(header)}."
          )
    known = set(media_fields(config).values())
    if not self._templates and not known & set(header):
      raise ConfigError(
        f"data.sources.{self._name}: no column of {config.path} is known to "
        f"name files; its columns: {', '.join(header)}. Set fields="
        "{'image': COLUMN}, or options={'files': {'audio': '{COLUMN}.wav'}}."
      )

  def _with_names(self, row: dict[str, Any]) -> dict[str, Any]:
    """A row with the names of its files, by which rows are joined."""
    try:
      names = self._references(row)
    except DecodeError:
      return row  # reported when the sample is read
    return {**row, _FILES: repr(sorted(names.items()))} if names else row

  def _references(self, fields: Mapping[str, Any]) -> dict[str, str]:
    """Modality -> file."""
    names = {
      key: fields[column]
      for key, column in media_fields(self._config).items()
      if fields.get(column) is not None
    }
    for key, template in self._templates.items():
      name = fill(template, fields)
      if name is not None:
        names[key] = name
    return names

  def _fields(self, row: int) -> dict[str, Any]:
    return self._fields_of[row]

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    return {
      key: lambda name=name: self._files.read(name)
      for key, name in self._references(self._fields_of[row]).items()
    }


def _with_label(row: dict[str, Any]) -> dict[str, Any]:
  label = row.get(_LABEL)
  if isinstance(label, str) and re.fullmatch(r"[+-]?\d{1,18}", label.strip()):
    row[_LABEL] = int(label)
  return row


_FILES = "\0files"  # field by which rows are joined; no column has this name
