"""The status table of a unit: one row per sample, failed ones with reasons.

It is written after the shard, so a unit whose table is there is done.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

from mico_jax import extras
from mico_jax.config import ConfigError

_META = "mico_jax.build"  # key of the summary in a file


@dataclasses.dataclass(frozen=True)
class Status:
  """What became of a row.

  Attributes:
    id: of the sample.
    file: raw file that it was cut from; "": none.
    start: of its part, in s from the first frame; None: the whole.
    end: of its part.
    index: of the sample in its shard; -1: it failed.
    bytes: of its media.
    lacks: "modality: why", one a line.
    stage: that it failed in; "": it has not.
    reason: why.
  """

  id: str
  file: str
  start: float | None
  end: float | None
  index: int
  bytes: int
  lacks: str
  stage: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a unit's files hold.

  Attributes:
    samples: written.
    failed: rows.
    size: of the shard in bytes; 0: there is none, since nothing was written.
    sha256: of the shard.
    captions: kinds that samples have.
    suffixes: see `shard_writers.suffix_of`.
    lacks: modality -> samples without it.
  """

  samples: int
  failed: int
  size: int
  sha256: str
  captions: tuple[str, ...]
  suffixes: tuple[str, ...]
  lacks: dict[str, int]


class StatusFile(abc.ABC):
  """A format of status tables.

  Attributes:
    kind: key in the table, and ending of the file's name.
  """

  kind: ClassVar[str]

  @classmethod  # noqa: B027 (one needs nothing)
  def check(cls) -> None:
    """Raises ConfigError where a package is missing."""

  @classmethod
  @abc.abstractmethod
  def write(
    cls, path: pathlib.Path, rows: Sequence[Status], summary: Summary
  ) -> None:
    """Writes a file; equal rows give equal bytes."""

  @classmethod
  @abc.abstractmethod
  def summary(cls, path: pathlib.Path) -> Summary:
    """The summary in a file; ValueError if it cannot be read."""

  @classmethod
  @abc.abstractmethod
  def rows(cls, path: pathlib.Path) -> list[Status]:
    """All rows of a file."""


class Parquet(StatusFile):
  """A table that every data tool opens; needs pyarrow (extra `eval`)."""

  kind: ClassVar[str] = "parquet"

  @classmethod
  def check(cls) -> None:
    """See `StatusFile`."""
    try:
      import pyarrow.parquet  # noqa: F401
    except ImportError as error:
      raise ConfigError(
        f"the status tables are parquet: {error}; "
        f"{extras.install('eval')}, or say --status jsonl."
      ) from error

  @classmethod
  def write(
    cls, path: pathlib.Path, rows: Sequence[Status], summary: Summary
  ) -> None:
    """See `StatusFile`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"start": pa.float64(), "end": pa.float64()}
    types |= {"index": pa.int64(), "bytes": pa.int64()}
    schema = pa.schema(
      [
        (field.name, types.get(field.name, pa.string()))
        for field in dataclasses.fields(Status)
      ],
      metadata={_META: _dump(summary)},
    )
    values = [_clean(dataclasses.asdict(row)) for row in rows]
    pq.write_table(pa.Table.from_pylist(values, schema=schema), path)

  @classmethod
  def summary(cls, path: pathlib.Path) -> Summary:
    """See `StatusFile`."""
    import pyarrow.parquet as pq

    try:
      texts = pq.read_schema(path).metadata or {}
      return _load(texts[_META.encode()])
    except (KeyError, OSError) as error:
      raise ValueError(f"{path.name} is no status table.") from error

  @classmethod
  def rows(cls, path: pathlib.Path) -> list[Status]:
    """See `StatusFile`."""
    import pyarrow.parquet as pq

    return [Status(**row) for row in pq.read_table(path).to_pylist()]


class Jsonl(StatusFile):
  """JSON lines, the first being the summary; needs nothing."""

  kind: ClassVar[str] = "jsonl"

  @classmethod
  def write(
    cls, path: pathlib.Path, rows: Sequence[Status], summary: Summary
  ) -> None:
    """See `StatusFile`."""
    lines = [json.dumps({_META: json.loads(_dump(summary))})]
    lines += [json.dumps(dataclasses.asdict(row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")

  @classmethod
  def summary(cls, path: pathlib.Path) -> Summary:
    """See `StatusFile`."""
    with open(path, encoding="utf-8") as file:
      first = json.loads(file.readline())
    if not isinstance(first, dict) or _META not in first:
      raise ValueError(f"{path.name} is no status table.")
    return _load(json.dumps(first[_META]))

  @classmethod
  def rows(cls, path: pathlib.Path) -> list[Status]:
    """See `StatusFile`."""
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return [Status(**json.loads(line)) for line in lines if line]


def _dump(summary: Summary) -> str:
  return json.dumps(dataclasses.asdict(summary), sort_keys=True)


def _load(text: str | bytes) -> Summary:
  values = json.loads(text)
  for name in ("captions", "suffixes"):
    values[name] = tuple(values[name])
  return Summary(**values)


def _clean(row: dict[str, Any]) -> dict[str, Any]:
  """Texts that UTF-8 can hold."""
  return {
    name: value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, str)
    else value
    for name, value in row.items()
  }


STATUSES: dict[str, type[StatusFile]] = {s.kind: s for s in (Parquet, Jsonl)}
