"""One unit: its rows through the stages into a shard and a status table.

Both are written aside, brought to the disk and renamed, the table last: a unit
is done or has never been. What it writes follows from the job and its number
alone, so who builds it, when, and how often it was interrupted leave no trace.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import math
import os
import pathlib
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.build import pulse, watch
from mico_jax.data.build.job import Job
from mico_jax.data.build.rows import Row, Unit
from mico_jax.data.build.stages import Stage
from mico_jax.data.build.status import STATUSES, Status, Summary
from mico_jax.data.faults import guarded
from mico_jax.data.records import captions_of
from mico_jax.data.shard_writers import WRITERS, ShardWriter, suffix_of, sync
from mico_jax.modalities import DecodeError

CHUNK = 8  # raw files that go through the stages together
CHUNK_BYTES = 512 << 20  # of raw files held at once, or one that is larger
PART = ".part"

Tick = Callable[[int], Any]  # told how many raw items are done


@dataclasses.dataclass(frozen=True)
class Names:
  """The files of a unit."""

  shard: pathlib.Path
  status: pathlib.Path

  @classmethod
  def of(cls, job: Job, index: int, count: int) -> Names:
    """Those of unit `index` of `count`."""
    stem = f"{job.stem}-{index:05d}-of-{count:05d}"
    folder = pathlib.Path(job.out)
    return cls(
      folder / f"{stem}.{WRITERS[job.format].ending}",
      folder / f"{stem}.status.{job.status}",
    )

  @property
  def tries(self) -> pathlib.Path:
    """Notes of what hung or crashed, until the unit is done."""
    return self.status.with_name(f"{self.status.name}.tries{PART}")

  def done(self, job: Job) -> Summary | None:
    """What the unit holds; None if it is yet to be built."""
    try:
      summary = STATUSES[job.status].summary(self.status)
      size = self.shard.stat().st_size if summary.size else 0
    except (OSError, ValueError):
      return None
    return summary if size == summary.size else None


def run_unit(
  job: Job, unit: Unit, count: int, tick: Tick = lambda items: None
) -> Summary:
  """Builds a unit, unless it is done.

  Args:
    job: of the build.
    unit: one of `job.input.units`.
    count: of all units.
    tick: told of progress.

  Raises:
    ConfigError: if `job.strict` and a row fails.
    TransientError: for storage that stays away.
  """
  names = Names.of(job, unit.index, count)
  if (summary := names.done(job)) is not None:
    tick(unit.size)
    return summary
  watch.begin(watch.Tries(names.tries))
  mark = f".{socket.gethostname()}-{os.getpid()}{PART}"
  shard = names.shard.with_name(names.shard.name + mark)
  status = names.status.with_name(names.status.name + mark)
  try:
    silent: Tick = lambda items: None
    rows, summary = _write(
      job, unit, shard, silent if job.input.whole else tick
    )
    watch.at("writing the shard")
    STATUSES[job.status].write(status, rows, summary)
    sync(str(status))
    _rename(shard if summary.size else None, names.shard)
    _rename(status, names.status)
    sync(job.out)
  finally:
    shard.unlink(missing_ok=True)
    status.unlink(missing_ok=True)
  # What was killed in this unit left its parts behind.
  for name in (names.shard, names.status):
    for part in name.parent.glob(f"{glob.escape(name.name)}.*{PART}"):
      part.unlink(missing_ok=True)
  if job.input.whole:
    tick(unit.size)
  return summary


def _rename(part: pathlib.Path | None, path: pathlib.Path) -> None:
  """Puts a part in its place; another process of the same unit may have."""
  if part is None:
    path.unlink(missing_ok=True)
    return
  try:
    os.replace(part, path)
  except FileNotFoundError:
    if not path.exists():
      raise


def _write(
  job: Job, unit: Unit, path: pathlib.Path, tick: Tick
) -> tuple[list[Status], Summary]:
  """Writes the shard aside, if there is a sample for it."""
  stages, table = job.make_stages(), []
  made = {key for stage in stages for key in stage.makes}
  writer: ShardWriter | None = None
  captions: Counter[str] = Counter()
  suffixes: set[str] = set()
  lacks: Counter[str] = Counter()
  count = 0
  try:
    for chunk in _chunks(job, unit, tick):
      for row in _through(stages, chunk):
        index = -1
        _finish(job, row, made)
        if not row.reason:
          writer = writer or WRITERS[job.format](str(path))
          index = count = _put(writer, row, count)
        if row.reason and job.strict:
          raise ConfigError(f"sample {row.id}: {row.reason}")
        if not row.reason:
          suffixes |= {suffix_of(k, v) for k, v in row.media.items()}
          captions.update(_kinds(row))
          lacks.update(row.lacks.keys())
          count += 1
        table.append(_status(row, -1 if row.reason else index))
        row.media = {}
  finally:
    if writer is not None:
      writer.close()
  size, digest = 0, ""
  watch.at("writing the shard")
  if writer is not None and count:
    sync(str(path))
    size, digest = path.stat().st_size, _sha256(path)
  return table, Summary(
    samples=count,
    failed=len(table) - count,
    size=size,
    sha256=digest,
    captions=tuple(sorted(captions)),
    suffixes=tuple(sorted(suffixes)),
    lacks=dict(sorted(lacks.items())),
  )


def _put(writer: ShardWriter, row: Row, index: int) -> int:
  """Writes a row, which may fail; returns the index that it got."""
  try:
    watch.at("record", [row])
    guarded(lambda: writer.write(row.id, row.fields, row.media))
  except DecodeError as error:
    row.fail("record", str(error))
  return index


def _chunks(job: Job, unit: Unit, tick: Tick) -> Iterator[list[Row]]:
  """Rows of a few raw files at a time, whose memory is given back."""
  chunk: list[Row] = []
  held = items = 0
  watch.at("input")
  for size, rows in job.input.rows(unit):
    if chunk and (items == CHUNK or held + size > CHUNK_BYTES):
      yield chunk
      _release(chunk)
      tick(items)
      chunk, held, items = [], 0, 0
    chunk += rows
    held, items = held + size, items + 1
    watch.at("input")
  if chunk:
    yield chunk
    _release(chunk)
  tick(items)


def _release(rows: Sequence[Row]) -> None:
  for row in rows:
    if row.raw is not None:
      row.raw.release()


def _through(stages: Sequence[Stage], rows: list[Row]) -> list[Row]:
  for stage in stages:
    rows = stage(rows)
  return rows


def _finish(job: Job, row: Row, made: Collection[str]) -> None:
  """Last checks of a row.

  A file that no stage cuts is stored as it is, unless stages store what it is
  (`made`: keys of modalities).
  """
  if row.reason:
    return
  raw = row.raw
  if raw is not None and row.span is None:
    try:
      watch.at("record", [row])
      if guarded(lambda: raw.stored_as) not in made:
        row.media[raw.stored_as] = raw.data
    except DecodeError as error:
      row.fail("record", str(error))
      return
  if row.span is not None:
    row.fields["span"] = list(row.span)
  if (raw is not None or job.stages) and not row.media:
    why = "; ".join(f"{k}: {v}" for k, v in row.lacks.items())
    row.fail("record", f"nothing is left of it ({why or 'no media'}).")
    return
  present = set(_kinds(row)) | set(row.media)
  for name in job.require:
    if name not in present:
      why = row.lacks.get(name, "")
      row.fail("require", f"it has no {name}{f': {why}' if why else ''}.")
      return


def _kinds(row: Row) -> list[str]:
  """Kinds of captions of a row."""
  try:
    return list(captions_of(row.fields, SourceConfig()))
  except DecodeError:
    return []


def _status(row: Row, index: int) -> Status:
  raw = row.raw
  start, end = row.span or (None, None)
  sizes = [
    getattr(x, "nbytes", None) or len(x)
    for value in row.media.values()
    for x in (value if isinstance(value, list) else [value])
  ]
  return Status(
    id=row.id,
    file=raw.name if raw is not None else str(row.fields.get("file", "")),
    start=start,
    end=None if end is None or math.isinf(end) else end,
    index=index,
    bytes=sum(sizes),
    lacks="\n".join(f"{key}: {why}" for key, why in sorted(row.lacks.items())),
    stage=row.stage,
    reason=row.reason,
  )


def _sha256(path: pathlib.Path) -> str:
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(1 << 20):
      pulse.beat()
      digest.update(block)
  return digest.hexdigest()
