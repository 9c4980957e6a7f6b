"""`mico-jax data convert`: writes the samples of any source as shards.

Media are stored as they are, without re-encoding, in the order of the source.
Texts are stored by kind, as the source's config maps them, so that the shards
need no such mapping. Each shard appears when it is complete, with a status file
in `OUT/STEM.convert/`; run again, a conversion goes on behind the last of them
and ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mico_jax import files
from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.plain_fields import fields_of, storable
from mico_jax.data.records import Record
from mico_jax.data.shard_writers import WRITERS, ShardWriter, suffix_of, sync
from mico_jax.data.sources import SOURCES, Source
from mico_jax.data.unmapped import (
  unmapped_columns,
  unmapped_media,
  unmapped_members,
)
from mico_jax.modalities import DecodeError
from mico_jax.printing import known_names

_NAMED = 1000  # most skipped samples kept by name for each shard


@dataclasses.dataclass(frozen=True)
class ConvertReport:
  """What a conversion wrote, all starts together.

  Attributes:
    files: paths of the shards.
    samples: written.
    skipped: samples that are not, as nothing of them could be read.
    reasons: modality, or "record" (the sample's entry) -> number of samples in
      which it could not be read; those with other media are written without.
    bare: samples written that have texts only.
    unmapped: field or ending -> number of samples in which it seems to hold a
      medium that no modality is mapped to; it is not written.
    lost: field -> number of samples in which JSON cannot hold it.
    resumed: shards that an earlier start had written.
    errors: (id, modality, reason) of the first samples with errors.
    source: config of a source that reads the shards.
  """

  files: tuple[str, ...]
  samples: int
  skipped: int
  reasons: Mapping[str, int]
  bare: int
  unmapped: Mapping[str, int]
  lost: Mapping[str, int]
  resumed: int
  errors: tuple[tuple[str, str, str], ...]
  source: SourceConfig


def convert(
  source: Source,
  spec: SourceConfig,
  out: str | pathlib.Path,
  *,
  to: str = "array_record",
  shard_samples: int = 1000,
  strict: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
  """Writes the samples of a source as shards.

  Args:
    source: to read.
    spec: its config.
    out: folder for files `<split>-00000-of-00010.<type>`.
    to: "array_record" or "webdataset".
    shard_samples: samples of the source that make a shard.
    strict: fail at the first medium or entry that cannot be read.
    progress: called with (samples done, samples in all).

  Raises:
    ConfigError: for a folder with another conversion, or a medium that the
      format cannot hold; if `strict`, for a broken sample.
    DecodeError: if no sample could be read.
    TransientError: for storage that stays unreachable.
  """
  if to not in WRITERS:
    raise ConfigError(f"to={to!r}; {known_names(to, WRITERS)}")
  job = _Job(source, spec, pathlib.Path(out), to, shard_samples, strict)
  with job.locked():
    return job.run(progress)


def stem_of(spec: SourceConfig) -> str:
  """Begins the names of the shards: the split as a name of a file, or "all"."""
  letters = [c if c.isalnum() or c in "-_" else "_" for c in spec.split]
  return "".join(letters) or "all"


class _Job:
  """One conversion."""

  def __init__(
    self,
    source: Source,
    spec: SourceConfig,
    out: pathlib.Path,
    to: str,
    shard_samples: int,
    strict: bool,
  ):
    self._source, self._spec, self._out = source, spec, out
    self._to, self._size, self._strict = to, shard_samples, strict
    self._count = -(-len(source) // shard_samples)
    self._stem = stem_of(spec)
    self._folder = out / f"{self._stem}.convert"

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Keeps a second process from writing the same files."""
    import fcntl

    self._folder.mkdir(parents=True, exist_ok=True)
    with open(self._folder / "lock", "w") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise ConfigError(
          f"{self._folder}: another process converts into it."
        ) from error
      yield

  def _check_plan(self) -> None:
    """Refuses a folder in which something else was begun."""
    plan = {
      "sha256": self._source.sha256,
      "samples": len(self._source),
      "shard_samples": self._size,
      "to": self._to,
      "source": _identity(self._spec),
    }
    plan = json.loads(json.dumps(plan, sort_keys=True))
    path = self._folder / "plan.json"
    if path.exists():
      old = json.loads(path.read_text())
      changed = [k for k in plan if old.get(k) != plan[k]]
      if changed:
        raise ConfigError(
          f"{self._out} holds shards {self._stem!r} of another conversion (its "
          f"{', '.join(changed)} differ); name another --out, or remove it."
        )
      return
    taken = glob.glob(str(glob.escape(str(self._out / self._stem)) + "-*-of-*"))
    if taken:
      raise ConfigError(f"{taken[0]} exists; name another --out or remove it.")
    files.write_text(path, json.dumps(plan, sort_keys=True))

  def _path(self, shard: int) -> pathlib.Path:
    ending = WRITERS[self._to].ending
    name = f"{self._stem}-{shard:05d}-of-{self._count:05d}.{ending}"
    return self._out / name

  def run(self, progress: Callable[[int, int], None] | None) -> ConvertReport:
    """Writes the shards that are missing."""
    self._check_plan()
    statuses, resumed = [], 0
    for shard in range(self._count):
      status = self._folder / f"{shard:05d}.json"
      if status.exists() and self._path(shard).exists():
        resumed += 1
      else:
        result = self._write(shard, progress)
        files.write_text(status, json.dumps(result, sort_keys=True))
      statuses.append(json.loads(status.read_text()))
      self._fields(statuses)  # refuses what one source cannot read
      if progress is not None:
        done = min((shard + 1) * self._size, len(self._source))
        progress(done, len(self._source))
    report = self._report(statuses, resumed)
    if not report.samples:
      name, kind, reason = report.errors[0]
      raise DecodeError(
        f"none of {len(self._source)} samples could be read; the first: "
        f"{name}: {kind}: {reason}"
      )
    return report

  def _write(
    self, shard: int, progress: Callable[[int, int], None] | None
  ) -> dict[str, Any]:
    """Writes a shard; what its status file says."""
    path, total = self._path(shard), len(self._source)
    part = path.with_name(f".{path.name}.part")
    tally = _Tally()
    writer = WRITERS[self._to](str(part))
    try:
      first = shard * self._size
      for index in range(first, min(first + self._size, total)):
        sample = self._read(index, tally)
        if sample is not None:
          self._put(writer, tally, *sample)
        if progress is not None:
          progress(index + 1, total)
      writer.close()
    except BaseException:
      with contextlib.suppress(Exception):
        writer.close()
      part.unlink(missing_ok=True)
      raise
    sync(str(part))
    os.replace(part, path)
    return dataclasses.asdict(tally)

  def _put(
    self,
    writer: ShardWriter,
    tally: _Tally,
    record: Record,
    fields: dict[str, Any],
    media: dict[str, Any],
  ) -> None:
    """Writes a sample."""
    for key, medium in media.items():
      if isinstance(medium, bytes) or writer.lists:
        continue
      many = isinstance(medium, list)
      what = "frames in several files" if many else "an array"
      raise ConfigError(
        f"sample {record.id}: its {key} is {what}, which a {self._to} cannot "
        "hold; convert with --to array_record."
      )
    try:
      guarded(lambda: writer.write(record.id, fields, media))
    except DecodeError as error:
      self._broken(tally, record.id, "record", error)
      tally.skipped += 1
      return
    tally.samples += 1
    tally.bare += not media
    for suffix in sorted({suffix_of(k, v) for k, v in media.items()}):
      if suffix not in tally.suffixes:
        tally.suffixes.append(suffix)

  def _fields(self, statuses: list[dict[str, Any]]) -> dict[str, str]:
    """`fields` of the source of the shards."""
    suffixes = {suffix for s in statuses for suffix in s["suffixes"]}
    return WRITERS[self._to].fields(suffixes)

  def _read(
    self, index: int, tally: _Tally
  ) -> tuple[Record, dict[str, Any], dict[str, Any]] | None:
    """A record, its fields and its media; None if nothing could be read."""
    name = f"sample {index}"
    try:
      record = self._source.record(index)
      name = record.id
      fields, lost = fields_of(record)
    except DecodeError as error:
      self._broken(tally, name, "record", error)
      tally.skipped += 1
      return None
    for field in lost:
      tally.lost[field] = tally.lost.get(field, 0) + 1
    for field in unmapped_media(record, self._spec):
      tally.unmapped[field] = tally.unmapped.get(field, 0) + 1
    media, failed = {}, False
    for key, read in record.media.items():
      try:
        media[key] = guarded(lambda r=read: storable(r()), reads=True)
      except DecodeError as error:
        self._broken(tally, name, key, error)
        failed = True
    if failed and not media:
      tally.skipped += 1
      return None
    return record, fields, media

  def _broken(
    self, tally: _Tally, name: str, kind: str, error: DecodeError
  ) -> None:
    if self._strict:
      raise ConfigError(f"sample {name}: {kind}: {error}") from error
    tally.reasons[kind] = tally.reasons.get(kind, 0) + 1
    if len(tally.errors) < _NAMED:
      tally.errors.append((name, kind, str(error)))

  def _report(
    self, statuses: list[dict[str, Any]], resumed: int
  ) -> ConvertReport:
    def total(name: str) -> dict[str, int]:
      counts: Counter[str] = Counter()
      for status in statuses:
        counts.update(status[name])
      return dict(sorted(counts.items()))

    unmapped = total("unmapped") | unmapped_columns(self._source)
    if self._spec.kind == "webdataset":
      unmapped |= unmapped_members(self._spec, "source")
    return ConvertReport(
      files=tuple(str(self._path(i)) for i in range(self._count)),
      samples=sum(s["samples"] for s in statuses),
      skipped=sum(s["skipped"] for s in statuses),
      reasons=total("reasons"),
      bare=sum(s["bare"] for s in statuses),
      unmapped=unmapped,
      lost=total("lost"),
      resumed=resumed,
      errors=tuple(tuple(e) for s in statuses for e in s["errors"]),
      source=self._result(self._fields(statuses)),
    )

  def _result(self, fields: Mapping[str, str]) -> SourceConfig:
    """Config of the source of the shards."""
    pattern = f"{self._stem}-*-of-{self._count:05d}.{WRITERS[self._to].ending}"
    folder = glob.escape(str(self._out))
    return SourceConfig(
      kind=self._to,
      path=os.path.join(folder, pattern),
      split=self._spec.split,
      fields=dict(fields),
      depth_unit=self._spec.depth_unit or SOURCES[self._spec.kind].depth_unit,
      units=self._spec.units,
      rates=self._spec.rates,
      channels=self._spec.channels,
      frame_rate=self._spec.frame_rate,
    )


@dataclasses.dataclass
class _Tally:
  """Counts of a shard, see `ConvertReport`; `suffix_of` its media."""

  samples: int = 0
  skipped: int = 0
  bare: int = 0
  reasons: dict[str, int] = dataclasses.field(default_factory=dict)
  unmapped: dict[str, int] = dataclasses.field(default_factory=dict)
  lost: dict[str, int] = dataclasses.field(default_factory=dict)
  errors: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
  suffixes: list[str] = dataclasses.field(default_factory=list)


def _identity(spec: SourceConfig) -> dict[str, Any]:
  """The fields of a source's config that change what is written."""
  names = ("kind", "split", "where", "fields", "captions", "options", "size")
  # Left out where they are not set, as plans that lie on disks do.
  more = {n: getattr(spec, n) for n in ("root", "key_dot", "require")}
  unset = SourceConfig()
  return {name: getattr(spec, name) for name in names} | {
    name: value for name, value in more.items() if value != getattr(unset, name)
  }
