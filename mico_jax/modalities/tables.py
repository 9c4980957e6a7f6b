"""Rows of tables: numerical and categorical fields, missing ones too.

A decoded table is float32 [rows, fields, 2 + bins], a field for each column
that is read, in the order of `data.columns`: its state (0 none, 1 a number, 2 a
category, 3 missing), the row of its category, and its number. What is sent is
[T, fields, 2 + bins]; a row is a frame, and a field a token. The last row is
repeated where there are fewer than frames; more are an error.

Rules, so that a cell has one meaning only:

- Columns are found by their names. One that `data.columns` names and the table
  lacks is an error, and so is one that it does not name: an entry of the name
  alone says that a column is known and not read.
- A number is written by its place between the quantiles of the training part:
  1 for each interval below it, its share of its own, and 0 above. Beyond the
  ends it goes on, up to `MOST` intervals.
- A category that is not listed is an error.
- Empty cells, and "?", "NA", "NaN", "null" and "None" unless they are
  categories, are missing. A row without any value is an error.
- An array holds numbers of the fields in their order: values, and of categories
  their places in the list, from 0; NaN is missing. Where `data.columns` says
  nothing of the modality, all fields are numbers in standard deviations.

Source: numbers as arXiv:2203.05556, section 3.2 (piecewise linear, quantiles);
  a token for each field as FT-Transformer, arXiv:2106.11959, section 3.3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
)
from mico_jax.modalities.columns import Column
from mico_jax.modalities.spatial import modes
from mico_jax.modalities.tables_file import read_rows

NONE, NUMBER, CATEGORY, MISSING = range(4)  # states of a field
MOST = 20.0  # intervals
MISSING_CELLS = ("", "?", "na", "nan", "null", "none")
_HIDDEN = 0.1  # share of values that `hide` hides
_DEVIATIONS = tuple(np.linspace(-2, 2, 9).tolist())


def valid_fields(frames: Any, *, xp: Any) -> Any:
  """Fields that there are, missing values too, bool [B, fields]."""
  del xp
  return frames[:, :, 0] > 0.5


@dataclasses.dataclass(frozen=True)
class Tables:
  """What a record says of its tables.

  Attributes:
    key: of the modality, for messages.
    slots: most fields.
    bins: most intervals of a number.
    rows: most categories of all fields together.
  """

  key: str
  slots: int = 64
  bins: int = 16
  rows: int = 1024

  @property
  def spec(self) -> ArraySpec:
    """The array that is sent."""
    most = float(max(MOST, self.rows))
    unit = "state, category, intervals of quantiles"
    return ArraySpec(("T", "F", "C"), "float32", unit, (-MOST, most))

  @property
  def embedding(self) -> CustomEmbedding:
    """Tokens of fields, see `mico_jax.layers.field_embed`."""
    return CustomEmbedding(
      "mico_jax.layers.field_embed:FieldEmbed",
      frame=(self.slots, 2 + self.bins),
      tokens=self.slots,
      torch="mico_jax.interop.torch_template.field_embed:FieldEmbed",
      options={"rows": self.rows},
      valid=valid_fields,
    )

  def check(self, columns: tuple[Column, ...]) -> None:
    """Checks that a model has room for the columns of a config.

    Raises:
      ValueError: naming what there is too much of.
    """
    fields = _read(columns)
    rows = sum(len(c.categories) for c in fields)
    beyond = rows > self.rows or len(fields) > self.slots
    if beyond or (columns and not fields):
      raise ValueError(
        f"{len(fields)} columns to read, with {rows} categories; expected 1 to "
        f"{self.slots} and at most {self.rows}."
      )
    for column in fields:
      if len(column.knots) > self.bins + 1:
        raise ValueError(
          f"column {column.name!r} with {len(column.knots)} numbers; expected "
          f"at most {self.bins + 1}."
        )

  def decode(self, raw: Any, geometry: Geometry) -> Float[np.ndarray, "R F C"]:
    """Rows of a table.

    Args:
      raw: content of a file, names and values of a row, or an array [fields] or
        [rows, fields].
      geometry: with the columns.

    Raises:
      DecodeError: for what cannot be read, or is not as the columns say.
    """
    fields = _read(geometry.columns)
    if isinstance(raw, np.ndarray):
      return self._of_numbers(raw, fields)
    rows = read_rows(raw)
    if not fields:
      raise DecodeError(
        f"{self.key} with columns {', '.join(rows.names)[:200]}, of which "
        f"nothing is known; state data.columns.{self.key} "
        "(python -m mico_jax.data.columns FILE.csv finds them)."
      )
    known = [column.name for column in geometry.columns]
    missing = [c.name for c in fields if c.name not in rows.names]
    new = [name for name in rows.names if name not in known]
    if missing or new:
      what = f"no column {missing[0]!r}" if missing else f"a column {new[0]!r}"
      raise DecodeError(
        f"this table has {what}, unlike data.columns.{self.key}; it has "
        f"{', '.join(rows.names)[:200]}."
      )
    out = np.zeros((len(rows.cells), self.slots, 2 + self.bins))
    first = 1
    for i, column in enumerate(fields):
      at = rows.names.index(column.name)
      for r, cells in enumerate(rows.cells):
        out[r, i] = self._field(column, first, _cell(column, cells[at]))
      first += len(column.categories)
    return self._checked(out)

  def _of_numbers(
    self, array: Shaped[np.ndarray, "..."], fields: tuple[Column, ...]
  ) -> Float[np.ndarray, "R F C"]:
    """Rows of an array, see above."""
    count, shape = len(fields), list(array.shape)
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
      raise DecodeError(
        f"a table {shape} of {array.dtype}; expected numbers, [fields] or "
        "[rows, fields]."
      )
    if not array.size or shape[-1] > self.slots or count not in (0, shape[-1]):
      raise DecodeError(
        f"a table of shape {shape}; expected "
        f"{count or f'1 to {self.slots}'} fields."
      )
    fields = fields or (Column("", knots=_DEVIATIONS),) * shape[-1]
    values = np.atleast_2d(array).astype(np.float64)
    out = np.zeros((len(values), self.slots, 2 + self.bins))
    first = 1
    for i, column in enumerate(fields):
      for r, value in enumerate(values[:, i]):
        out[r, i] = self._field(column, first, _code(column, float(value)))
      first += len(column.categories)
    return self._checked(out)

  def _field(
    self, column: Column, first: int, value: float | None
  ) -> Float[np.ndarray, " C"]:
    """A field: a number, the place of a category, or None.

    Args:
      column: of the field.
      first: row of its first category; row 0 is of no category.
      value: of the field.
    """
    out = np.zeros(2 + self.bins)
    if value is None:
      out[0] = MISSING
    elif column.categories:
      out[:2] = CATEGORY, first + value
    else:
      knots = np.asarray(column.knots)
      share = (value - knots[:-1]) / np.diff(knots)
      low, high = np.zeros(len(share)), np.ones(len(share))
      low[0], high[-1] = -MOST, MOST
      out[0], out[2 : 2 + len(share)] = NUMBER, np.clip(share, low, high)
    return out

  def _checked(
    self, x: Float[np.ndarray, "R F C"]
  ) -> Float[np.ndarray, "R F C"]:
    """Rows that all have a value."""
    there = (x[..., 0] != NONE) & (x[..., 0] != MISSING)
    if not there.any(axis=1).all():
      at = int(np.argmin(there.any(axis=1))) + 1
      raise DecodeError(f"row {at} of this {self.key} has no value.")
    return x.astype(np.float32)

  def example(self, geometry: Geometry, seed: int) -> Shaped[np.ndarray, "R F"]:
    """A row of zeros and ones, which any column can hold."""
    rng = np.random.default_rng(seed)
    count = len(_read(geometry.columns)) or 5
    return rng.integers(0, 2, (1, count))

  def modes(self) -> dict[str, Mode]:
    """The modes that every table has."""
    hidden = f"plain, with {_HIDDEN:.0%} of the values as missing ones"
    return modes(
      self._mode("plain", "all values"),
      self._mode("hide", hidden, eval_mode="plain"),
    )

  def _mode(self, name: str, about: str, *, eval_mode: str = "") -> Mode:
    def host(
      x: Shaped[np.ndarray, "..."],
      geometry: Geometry,
      rng: np.random.Generator | None = None,
    ) -> Float[np.ndarray, "T F C"]:
      if x.ndim < 3:  # an example
        x = self.decode(x, geometry)
      if len(x) > geometry.frames:
        raise DecodeError(
          f"{len(x)} rows, but a sample has data.inputs.{self.key}.frames="
          f"{geometry.frames}; name one by FILE.csv:rows[5:6], or give a list."
        )
      frames = x[np.minimum(np.arange(geometry.frames), len(x) - 1)]
      if eval_mode and rng is not None:
        some = rng.random(frames.shape[:2]) < _HIDDEN
        some &= frames[..., 0] != NONE
        frames[some] = 0
        frames[some, 0] = MISSING
      return frames

    def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
      del geometry
      return array.astype(xp.float32)

    return Mode(name, host, to_pixels, eval_mode, about)

  def draw(self, frame: Float[np.ndarray, "F C"]) -> np.ndarray:
    """A picture: a column for each field, its state, category and number."""
    frame = frame[frame[:, 0] != NONE]
    parts = [frame[:, :1] / MISSING, frame[:, 1:2] / self.rows, frame[:, 2:]]
    return np.repeat(np.clip(np.concatenate(parts, axis=1).T, -1, 2), 3, 1)


def _read(columns: tuple[Column, ...]) -> tuple[Column, ...]:
  """The columns that are read."""
  return tuple(c for c in columns if c.knots or c.categories)


def _cell(column: Column, cell: Any) -> float | None:
  """Number, or place of the category, of a cell; None: it is missing."""
  if isinstance(cell, (bool, list, dict)):
    raise DecodeError(f"column {column.name!r}: {cell!r:.40} is no value.")
  text = "" if cell is None else str(cell).strip()
  if text in column.categories:
    return float(column.categories.index(text))
  if text.lower() in MISSING_CELLS:
    return None
  if column.categories:
    raise DecodeError(
      f"column {column.name!r}: unknown category {text[:40]!r}; known: "
      f"{', '.join(column.categories)[:200]}."
    )
  try:
    value = float(text)
  except ValueError as error:
    raise DecodeError(
      f"column {column.name!r}: {text[:40]!r} is no number."
    ) from error
  return _code(column, value)


def _code(column: Column, value: float) -> float | None:
  """A number of an array or cell, checked; None: it is missing."""
  if np.isnan(value):
    return None
  count = len(column.categories)
  if np.isinf(value) or (count and value not in range(count)):
    allowed = (
      f"a whole number from 0 to {count - 1}" if count else "finite ones"
    )
    raise DecodeError(f"column {column.name!r}: {value:g}; expected {allowed}.")
  return value
