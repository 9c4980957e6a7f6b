"""`mico-jax data build`: raw material to shards that sources read.

A manifest is packed as it is, a folder of videos or tar shards goes through
stages (`mico_jax.data.build.stages`): shots, clips, frames, sound, subtitles,
captions, depth, normals. See `mico_jax/docs/data.md`.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.build.engines import ENGINES
from mico_jax.data.build.inputs import ManifestInput
from mico_jax.data.build.job import NOTE, Job, claim
from mico_jax.data.build.rows import Unit
from mico_jax.data.build.stages import Stage
from mico_jax.data.build.status import STATUSES, Summary
from mico_jax.data.build.unit import PART, Names
from mico_jax.data.shard_writers import WRITERS
from mico_jax.modalities import DecodeError
from mico_jax.printing import known_names

__all__ = ["BuildReport", "Job", "build", "run"]

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class BuildReport:
  """What a build wrote.

  Attributes:
    files: paths of the shards that there are.
    count: samples written.
    skipped: (id, reason) of samples that could not be read or made.
    kinds: how many were skipped in each stage or for each modality ("record":
      the entry).
    source: config that reads the result back.
    lacks: modality -> samples written without it.
    units: of the whole build.
    left: of them, yet to be built (by other parts of an array of jobs).
  """

  files: tuple[str, ...]
  count: int
  skipped: tuple[tuple[str, str], ...]
  source: SourceConfig
  kinds: Mapping[str, int] = dataclasses.field(default_factory=dict)
  lacks: Mapping[str, int] = dataclasses.field(default_factory=dict)
  units: int = 1
  left: int = 0


def build(
  source: SourceConfig,
  out: str | pathlib.Path,
  *,
  shards: int = 1,
  strict: bool = False,
  drop: tuple[str, ...] = (),
  progress: Progress | None = None,
) -> BuildReport:
  """Packs the samples of a manifest (after `split` and `where`) as they are.

  Args:
    source: a source of kind "manifest".
    out: folder for `<split>-00000-of-00001.array_record` files. Where a build
      of the same was interrupted, it goes on.
    shards: number of files; samples are dealt in contiguous runs.
    strict: fail on the first unreadable sample instead of skipping it.
    drop: fields that hold files which are left out.
    progress: called with (done, total).

  Raises:
    ConfigError: for another kind, another result in the folder, more shards
      than samples, fields with files of no modality, or, if `strict`, a broken
      sample.
    DecodeError: if not one sample could be read.
    TransientError: for storage that stays away.
  """
  job = Job(
    ManifestInput(source, drop=drop), str(out), shards=shards, strict=strict
  )
  return run(job, progress=progress)


def run(
  job: Job,
  *,
  engine: str = "local",
  workers: int = 0,
  part: tuple[int, int] = (0, 1),
  progress: Progress | None = None,
) -> BuildReport:
  """Builds what is not done yet of a job, or of one part of it.

  Args:
    job: what to build.
    engine: key of `mico_jax.data.build.engines.ENGINES`.
    workers: processes at a time, which are watched (`Job.timeout`); 0: this
      process builds, and is not (Ray: one).
    part: (i, n): every n-th unit from i on, for arrays of jobs.
    progress: called with (raw items done, all of them).

  Raises:
    ConfigError, DecodeError, TransientError: as `build`.
  """
  if engine not in ENGINES:
    raise ConfigError(f"engine={engine!r}; {known_names(engine, ENGINES)}")
  i, n = part
  if not 0 <= i < n:
    raise ConfigError(f"shard {i}/{n}: expected i/n with i from 0 to n - 1.")
  stages = job.check()
  units = job.input.units(job.shards)
  new = claim(job)
  mine = [unit for unit in units if unit.index % n == i]
  total, done = sum(unit.size for unit in mine), 0

  def tick(items: int) -> None:
    nonlocal done
    done += items
    if progress is not None and items:
      progress(done, total)

  try:
    ENGINES[engine](job, mine, len(units), workers, tick)
  except ConfigError:
    if new:
      _leave(job, units)
    raise
  return _report(job, units, stages)


def _leave(job: Job, units: list[Unit]) -> None:
  """Removes the note of a build that has found nothing out."""
  names = [Names.of(job, unit.index, len(units)) for unit in units]
  if not any(n.status.exists() or n.tries.exists() for n in names):
    pathlib.Path(job.out, f"{job.stem}.{NOTE}").unlink(missing_ok=True)


def _report(job: Job, units: list[Unit], stages: list[Stage]) -> BuildReport:
  """What the folder holds now."""
  names = [Names.of(job, unit.index, len(units)) for unit in units]
  summaries: list[Summary] = []
  skipped, files = [], []
  kinds: Counter[str] = Counter()
  for name in names:
    summary = name.done(job)
    if summary is None:
      continue
    summaries.append(summary)
    if summary.size:
      files.append(str(name.shard))
    if summary.failed:
      for row in STATUSES[job.status].rows(name.status):
        if row.reason:
          skipped.append((row.id, row.reason))
          kinds[row.stage] += 1
  left = len(units) - len(summaries)
  count = sum(summary.samples for summary in summaries)
  if not left:
    for rest in pathlib.Path(job.out).glob(f"{glob.escape(job.stem)}.*{PART}"):
      rest.unlink(missing_ok=True)
  if not count and not left:
    for name in names:
      name.status.unlink(missing_ok=True)
    pathlib.Path(job.out, f"{job.stem}.{NOTE}").unlink(missing_ok=True)
    first, reason = skipped[0]
    raise DecodeError(
      f"none of {len(skipped)} samples could be read; the first: {first}: "
      f"{reason}"
    )
  lacks: Counter[str] = Counter()
  for summary in summaries:
    lacks.update(summary.lacks)
  return BuildReport(
    tuple(files),
    count,
    tuple(skipped),
    _source(job, stages, summaries, len(units)),
    dict(kinds),
    lacks=dict(sorted(lacks.items())),
    units=len(units),
    left=left,
  )


def _source(
  job: Job, stages: list[Stage], summaries: list[Summary], count: int
) -> SourceConfig:
  """The config that reads the result back."""
  writer = WRITERS[job.format]
  # What the folder is called is no pattern.
  name = f"{job.stem}-*-of-{count:05d}.{writer.ending}"
  suffixes = {suffix for s in summaries for suffix in s.suffixes}
  values: dict[str, Any] = {
    "captions": {
      kind: f"{kind}_caption"
      for kind in sorted({k for s in summaries for k in s.captions})
    },
    **job.input.source(),
  }
  for stage in stages:
    values |= stage.source()
  return SourceConfig(
    kind=writer.kind,
    path=os.path.join(glob.escape(job.out), name),
    split=job.input.split,
    fields=writer.fields(suffixes),
    **values,
  )
