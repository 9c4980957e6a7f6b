"""`mico-jax data build`: packs samples of a manifest into ArrayRecord files.

Media files are stored as they are (no re-encoding), in the order of the
manifest: sample i of the manifest is sample i of the result.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

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
    source: config of a source that reads the result back.
    kinds: number of skipped samples by the modality that could not be read
      ("record": the sample's entry).
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
    source: config of a source of kind "manifest".
    out: folder for files `<split>-00000-of-00001.array_record`, which must not
      exist yet.
    shards: number of files; each gets a contiguous range of the samples.
    strict: fail on the first unreadable sample instead of skipping it.
    progress: called with (samples done, samples in all).

  Raises:
    ConfigError: for another kind of source, an existing file, more shards than
      samples, or, if `strict`, a broken sample.
    DecodeError: if no sample could be read.
    TransientError: for storage that stays unreachable.
  """
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
  packer, files = _Packer(manifest, strict, progress), []
  for shard in range(shards):
    path = folder / f"{stem}-{shard:05d}-of-{shards:05d}.array_record"
    indices = range(shard * total // shards, (shard + 1) * total // shards)
    packer.write_shard(path, indices)
    files.append(str(path))
  if not packer.count:
    for file in files:
      os.remove(file)
    name, reason = packer.skipped[0]
    raise DecodeError(
      f"none of {total} samples could be read; the first: {name}: {reason}"
    )
  # Brackets and stars in the folder's name are no pattern.
  pattern = f"{stem}-*-of-{shards:05d}.array_record"
  return BuildReport(
    files=tuple(files),
    count=packer.count,
    skipped=tuple(packer.skipped),
    source=_built(source, os.path.join(glob.escape(str(folder)), pattern)),
    kinds=dict(packer.kinds),
  )


def _built(source: SourceConfig, path: str) -> SourceConfig:
  """Config of the source at `path` that was built from a manifest."""
  return SourceConfig(
    kind="array_record",
    path=path,
    split=source.split,
    captions=source.captions,
    depth_unit=source.depth_unit,
  )


class _Packer:
  """Writes samples of a manifest and counts those that cannot be read.

  Attributes:
    count, skipped, kinds: see `BuildReport`.
  """

  def __init__(
    self,
    manifest: ManifestSource,
    strict: bool,
    progress: Callable[[int, int], None] | None,
  ):
    self._manifest, self._strict, self._progress = manifest, strict, progress
    self.count = 0
    self.skipped: list[tuple[str, str]] = []
    self.kinds: Counter[str] = Counter()

  def write_shard(self, path: pathlib.Path, indices: Iterable[int]) -> None:
    """Writes one ArrayRecord file, which appears when it is complete."""
    from array_record.python import array_record_module

    if path.exists():
      raise ConfigError(f"{path} exists; name another folder or remove it.")
    part = path.with_suffix(".part")
    writer = array_record_module.ArrayRecordWriter(str(part), "group_size:1")
    try:
      for index in indices:
        blob = self._packed(index)
        if blob is not None:
          writer.write(blob)
          self.count += 1
        if self._progress is not None:
          self._progress(index + 1, len(self._manifest))
    except BaseException:
      writer.close()
      part.unlink(missing_ok=True)
      raise
    writer.close()
    os.replace(part, path)

  def _packed(self, index: int) -> bytes | None:
    """A sample as bytes; None if its entry or one of its files is broken."""
    name, kind, media = f"sample {index}", "record", {}
    try:
      record = self._manifest.record(index)
      name = record.id
      for kind, read in record.media.items():
        media[kind] = guarded(read, kind, reads=True)
      kind = "record"
      return guarded(lambda: pack(record.id, record.fields, media))
    except DecodeError as error:
      if self._strict:
        raise ConfigError(f"sample {name}: {error}") from error
      self.skipped.append((name, str(error)))
      self.kinds[kind] += 1
      return None
