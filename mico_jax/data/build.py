"""`mico-jax data build`: a manifest to ArrayRecord files, one sample each.

Files are stored as they are (no re-encoding), in the order of the manifest, so
sample i of the manifest is sample i of the result.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.packed import pack
from mico_jax.data.sources import ManifestSource
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError


@dataclasses.dataclass(frozen=True)
class BuildReport:
  """What a build wrote.

  Attributes:
    files: paths of the shards.
    count: samples written.
    skipped: (id, reason) of samples that could not be read in whole.
    kinds: how many were skipped for each modality ("record": the entry).
    source: config that reads the result back.
  """

  files: tuple[str, ...]
  count: int
  skipped: tuple[tuple[str, str], ...]
  source: SourceConfig
  kinds: Mapping[str, int] = dataclasses.field(default_factory=dict)


def build(
  source: SourceConfig,
  out: str | pathlib.Path,
  *,
  shards: int = 1,
  strict: bool = False,
  progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
  """Packs the samples of a manifest (after `split` and `where`).

  Args:
    source: a source of kind "manifest".
    out: folder for `<split>-00000-of-00001.array_record` files; not
      overwritten.
    shards: number of files; samples are dealt in contiguous runs.
    strict: fail on the first unreadable sample instead of skipping it.
    progress: called with (done, total).

  Raises:
    ConfigError: for another kind, an existing result, more shards than
      samples, or, if `strict`, a broken sample.
    DecodeError: if not one sample could be read.
    TransientError: for storage that stays away.
  """
  from array_record.python import array_record_module

  if source.kind != "manifest":
    raise ConfigError(
      f"data build packs manifests; the source is of kind {source.kind!r}."
    )
  manifest = ManifestSource("build", source, Storage())
  if not 1 <= shards <= len(manifest):
    raise ConfigError(
      f"{shards=} must be from 1 to the number of samples, {len(manifest)}."
    )
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  total = len(manifest)
  stem = source.split or "all"
  files, skipped, count = [], [], 0
  kinds: Counter[str] = Counter()
  for shard in range(shards):
    path = folder / f"{stem}-{shard:05d}-of-{shards:05d}.array_record"
    if path.exists():
      raise ConfigError(f"{path} exists; name another folder or remove it.")
    part = path.with_suffix(".part")
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    try:
      for i in range(shard * total // shards, (shard + 1) * total // shards):
        at = _Place(f"sample {i}")
        try:
          blob = _packed(manifest, i, at)
        except DecodeError as error:
          if strict:
            raise ConfigError(f"sample {at.id}: {error}") from error
          skipped.append((at.id, str(error)))
          kinds[at.kind] += 1
        else:
          writer.write(blob)
          count += 1
        if progress is not None:
          progress(i + 1, total)
    except BaseException:
      writer.close()
      part.unlink(missing_ok=True)
      raise
    writer.close()
    os.replace(part, path)
    files.append(str(path))
  if not count:
    for file in files:
      os.remove(file)
    name, reason = skipped[0]
    raise DecodeError(
      f"none of {total} samples could be read; the first: {name}: {reason}"
    )
  # What the folder is called is no pattern.
  name = f"{stem}-*-of-{shards:05d}.array_record"
  pattern = os.path.join(glob.escape(str(folder)), name)
  result = SourceConfig(
    kind="array_record",
    path=pattern,
    split=source.split,
    captions=source.captions,
    depth_unit=source.depth_unit,
  )
  return BuildReport(tuple(files), count, tuple(skipped), result, dict(kinds))


@dataclasses.dataclass
class _Place:
  """Where the reading of a sample is."""

  id: str
  kind: str = "record"


def _packed(manifest: ManifestSource, index: int, at: _Place) -> bytes:
  """A sample as bytes; `at` says what was read last.

  Raises:
    DecodeError: if its entry or one of its files cannot be read.
  """
  record = manifest.record(index)
  at.id, media = record.id, {}
  for key, read in record.media.items():
    at.kind = key
    media[key] = guarded(read, key, reads=True)
  at.kind = "record"
  return guarded(lambda: pack(record.id, record.fields, media))
