"""Reading of series: arrays, .npy, .npz, .csv and EDF, as columns over time.

What a file says of itself (unit, rate, names of its channels) must agree with
what is stated of it. Nothing is unpickled.

- .npz: an array `values`, and if known `rate` (Hz), `unit`, `channels` (texts)
  and `times` (s, or datetime64) beside it.
- .csv: a header with the names of the columns; the column `time`, `timestamp`,
  `datetime` or `date` holds seconds or ISO 8601 dates. An empty cell is a
  missing value.
- EDF and BDF, by the package `edfio` (extra `medical`): labels, physical units
  and rates are those of the file; signals of several rates are refused.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import io
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from mico_jax.modalities.arrays import is_npy, read_npy
from mico_jax.modalities.base import DecodeError

MAX_BYTES = 2**31  # of an array in a .npz, unpacked
_TIMES = ("time", "timestamp", "datetime", "date")
_MISSING = ("", "nan", "na", "null", "none")
_LINES = 2**15  # lines of tables whose values are kept: windows overlap


@dataclasses.dataclass(frozen=True)
class Columns:
  """A series as a file or array holds it.

  Attributes:
    values: samples and channels, [S, C], or [S] of one channel; NaN: missing.
    rate: in Hz; 0: unknown.
    unit: of the values; "": unknown.
    channels: names of the columns; (): unknown.
    times: of the samples, in s since 1970 or since any moment; None: unknown.
    dated: whether `times` are those of a calendar.
  """

  values: Shaped[np.ndarray, "S ..."]
  rate: float = 0.0
  unit: str = ""
  channels: tuple[str, ...] = ()
  times: Float[np.ndarray, " S"] | None = None
  dated: bool = False


def read_columns(raw: Any) -> Columns:
  """A series out of the content of a file, an array, or (array, rate in Hz).

  Raises:
    DecodeError: for anything else, and for unreadable files.
  """
  if isinstance(raw, tuple) and len(raw) == 2:
    return Columns(np.asarray(raw[0]), rate=_rate(raw[1]))
  if isinstance(raw, np.ndarray):
    return Columns(raw)
  if not isinstance(raw, bytes):
    raise DecodeError(
      f"expected the file of a series, an array or (array, rate in Hz), got "
      f"{type(raw).__name__}."
    )
  if not raw:
    raise DecodeError("the file is empty (0 bytes).")
  if is_npy(raw):
    return Columns(read_npy(raw))
  if raw.startswith(b"PK"):
    return _npz(raw)
  if raw.startswith((b"0       ", b"\xffBIOSEMI")):
    return _edf(raw)
  return _csv(raw)


def _rate(value: Any) -> float:
  try:
    rate = float(value)
  except (TypeError, ValueError):
    rate = 0.0
  if not 0 < rate < 1e9:
    raise DecodeError(f"a rate of {value!r:.40}; expected Hz above 0.")
  return rate


def _npz(data: bytes) -> Columns:
  """See above."""
  try:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
      sizes = {i.filename: i.file_size for i in archive.infolist()}
    if max(sizes.values(), default=0) > MAX_BYTES:
      raise DecodeError(f".npz with an array of over {MAX_BYTES} bytes.")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
      found = {k: arrays[k] for k in arrays.files}
  except (DecodeError, MemoryError):
    raise
  except Exception as error:  # zipfile, zlib and NumPy raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable .npz of numbers: {text}") from error
  if "values" not in found:
    names = ", ".join(found) or "none"
    raise DecodeError(
      f".npz without an array 'values'; it has {names}. Name one in a manifest "
      "by 'file.npz:name' or 'file.npz:name[7]'."
    )
  times, dated = None, False
  if "times" in found:
    times, dated = _as_seconds(found["times"])
  return Columns(
    found["values"],
    rate=_rate(found["rate"][()]) if "rate" in found else 0.0,
    unit=str(found.get("unit", np.array(""))[()]),
    channels=tuple(map(str, np.atleast_1d(found.get("channels", [])))),
    times=times,
    dated=dated,
  )


def _as_seconds(
  times: Shaped[np.ndarray, " S"],
) -> tuple[Float[np.ndarray, " S"], bool]:
  """Times in s, and whether they are dates."""
  if times.dtype.kind == "M":
    if np.isnat(times).any():
      raise DecodeError("times hold NaT.")
    return times.astype("datetime64[us]").astype(np.float64) / 1e6, True
  return times.astype(np.float64), False


def _csv(data: bytes) -> Columns:
  """See above."""
  try:
    text = data.decode("utf-8-sig")
    lines = io.StringIO(text, newline="")
    # Without quotes a line is a row, and one of many windows is parsed once.
    rows = list(csv.reader(lines)) if '"' in text else map(_cells, lines)
    rows = [tuple(row) for row in rows if row]
  except (UnicodeDecodeError, csv.Error) as error:
    raise DecodeError(
      f"not a readable series (.npy, .npz, .csv, EDF): {error}"
    ) from error
  if len(rows) < 2:
    raise DecodeError(f"a table of {len(rows)} lines; expected a header first.")
  head = tuple(name.strip() for name in rows[0])
  if all(_is_number(name) for name in head):
    raise DecodeError("a table without a header; name its columns in line 1.")
  if len(set(head)) < len(head):
    raise DecodeError(f"columns of the same name: {', '.join(head)[:80]}.")
  for number, row in enumerate(rows[1:], 2):
    if len(row) != len(head):
      raise DecodeError(
        f"line {number} has {len(row)} cells; the header has {len(head)}."
      )
  at = next((i for i, n in enumerate(head) if n.lower() in _TIMES), None)
  names = [name for i, name in enumerate(head) if i != at]
  values = np.array([_values(row, head, at) for row in rows[1:]], np.float64)
  times, dated = None, False
  if at is not None:
    times, dated = _csv_times([row[at] for row in rows[1:]], head[at])
  return Columns(
    values.reshape(len(rows) - 1, len(names)),
    channels=tuple(names),
    times=times,
    dated=dated,
  )


@functools.lru_cache(_LINES)
def _cells(line: str) -> tuple[str, ...]:
  """The cells of a line without quotes."""
  return tuple(next(csv.reader([line]), ()))


@functools.lru_cache(_LINES)
def _values(
  row: tuple[str, ...], head: tuple[str, ...], at: int | None
) -> tuple[float, ...]:
  """The numbers of a row; `at` is the column of its time."""
  return tuple(
    _cell(text, name)
    for i, (text, name) in enumerate(zip(row, head, strict=True))
    if i != at
  )


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _cell(text: str, name: str) -> float:
  text = text.strip()
  if text.lower() in _MISSING:
    return np.nan
  if not _is_number(text):
    raise DecodeError(f"column {name!r}: {text[:40]!r} is no number.")
  return float(text)


def _csv_times(
  texts: list[str], name: str
) -> tuple[Float[np.ndarray, " S"], bool]:
  """Times of a column in s, and whether they are dates."""
  if all(_is_number(text) for text in texts):
    return np.array([float(text) for text in texts]), False
  try:
    moments = [_moment(text) for text in texts]
  except ValueError as error:
    raise DecodeError(
      f"column {name!r}: neither seconds nor dates by ISO 8601 ({error})."
    ) from error
  seconds, zones = zip(*moments, strict=True)
  if len(set(zones)) > 1:
    raise DecodeError(f"column {name!r}: some dates have a time zone.")
  return np.array(seconds), True


@functools.lru_cache(_LINES)
def _moment(text: str) -> tuple[float, bool]:
  """Seconds since 1970 by the clock as written, and whether it has a zone.

  The hour of a day is local, so the zone itself does not count.
  """
  moment = datetime.datetime.fromisoformat(text.strip())
  utc = datetime.UTC
  return moment.replace(tzinfo=utc).timestamp(), moment.tzinfo is not None


def _edf(data: bytes) -> Columns:
  """See above."""
  import edfio

  try:
    read = edfio.read_bdf if data[:1] == b"\xff" else edfio.read_edf
    signals = read(io.BytesIO(data)).signals
    rates = {float(s.sampling_frequency) for s in signals}
    units = {s.physical_dimension for s in signals}
    names = tuple(s.label for s in signals)
    rows = [np.asarray(s.data, np.float64) for s in signals]
  except MemoryError:
    raise
  except Exception as error:  # a broken header can raise many kinds
    text = " ".join(str(error).split())[:200]
    raise DecodeError(f"not a readable EDF file: {text}") from error
  if not signals:
    raise DecodeError("an EDF file without signals.")
  if len(rates) > 1 or len(units) > 1:
    raise DecodeError(
      f"EDF signals of several rates {sorted(rates)} or units {sorted(units)}; "
      "keep those of one."
    )
  return Columns(
    np.stack(rows, axis=1), rate=rates.pop(), unit=units.pop(), channels=names
  )
