"""Table of the data sources, and opening those of a config.

To add a format, write `mico_jax/data/sources/<name>.py` with a subclass of
`SourceKind` and add its line to `SOURCES`. Configs, error messages, `mico-jax
data --help` and the reference pages use this table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.presence import Having
from mico_jax.data.sources.annotations import AnnotationsSource
from mico_jax.data.sources.array_record import ArrayRecordSource
from mico_jax.data.sources.base import First, Source, SourceKind
from mico_jax.data.sources.coco import CocoSource
from mico_jax.data.sources.csv_table import CsvSource
from mico_jax.data.sources.energon import EnergonSource
from mico_jax.data.sources.grouped_files import GroupedFilesSource
from mico_jax.data.sources.hf_disk import HfDiskSource
from mico_jax.data.sources.imagefolder import ImageFolderSource
from mico_jax.data.sources.manifest import ManifestSource
from mico_jax.data.sources.mds import MdsSource
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.data.sources.parquet import ParquetSource
from mico_jax.data.sources.stated_fields import check_statements
from mico_jax.data.sources.tfds import TfdsSource
from mico_jax.data.sources.vast import VastSource
from mico_jax.data.sources.webdataset import WebDatasetSource
from mico_jax.data.subset import Subset
from mico_jax.modalities import MODALITIES
from mico_jax.printing import known_names

__all__ = [
  "SOURCES",
  "First",
  "ManifestSource",
  "Source",
  "SourceKind",
  "is_pinned",
  "open_source",
  "open_sources",
  "pin_sources",
]

SOURCES: dict[str, type[SourceKind]] = {
  "omniworld": OmniWorldSource,
  "manifest": ManifestSource,
  "webdataset": WebDatasetSource,
  "array_record": ArrayRecordSource,
  "tfds": TfdsSource,
  "imagefolder": ImageFolderSource,
  "files": GroupedFilesSource,
  "csv": CsvSource,
  "coco": CocoSource,
  "vast": VastSource,
  "parquet": ParquetSource,
  "hf_disk": HfDiskSource,
  "energon": EnergonSource,
  "mds": MdsSource,
  "annotations": AnnotationsSource,
}

_DEFAULTS = {f.name: f.default for f in dataclasses.fields(SourceConfig)}


def check_source(name: str, spec: SourceConfig) -> None:
  """Checks the kind of a source, and that it reads every field that is set.

  Args:
    name: of the source in the config.
    spec: its fields.

  Raises:
    ConfigError: for an unknown kind, a field that only other kinds read, or
      wrong options.
  """
  if spec.kind not in SOURCES:
    raise ConfigError(
      f"data.sources.{name}.kind={spec.kind!r} is unknown; known: "
      f"{', '.join(SOURCES)}."
    )
  kind = SOURCES[spec.kind]
  for other in SOURCES.values():
    for field in other.reads:
      value = getattr(spec, field)
      if field not in kind.reads and value != _DEFAULTS[field]:
        readers = [k for k, v in SOURCES.items() if field in v.reads]
        raise ConfigError(
          f"data.sources.{name}.{field}={value!r}: only kind="
          f"{' or '.join(map(repr, readers))} reads it, and this source is of "
          f"kind {spec.kind!r}; remove it."
        )
  known = [k for k, m in MODALITIES.items() if m.embedding != "text"]
  for key in spec.fields:
    if key not in known:
      words = key in MODALITIES
      raise ConfigError(
        f"data.sources.{name}.fields names {key!r}; {known_names(key, known)} "
        f"{'Its texts are' if words else 'A kind of caption is'} named in "
        f"data.sources.{name}.captions, a label in evaluation.label."
      )
  check_statements(name, spec, kind)
  kind.options(name, spec)


def open_source(config: Config, name: str) -> Source:
  """Opens a source of a config.

  Args:
    config: of the run.
    name: of the source.

  Raises:
    ConfigError: for an unknown name or kind, data that cannot be opened, or
      data that changed since the sources were pinned.
  """
  data = config.data
  if name not in data.sources:
    raise ConfigError(
      f"no data source {name!r}; {known_names(name, sorted(data.sources))}"
    )
  spec = data.sources[name]
  check_source(name, spec)
  source: Source = SOURCES[spec.kind].open(name, spec, config)
  if spec.require:
    source = Having(source, name, spec)
  if 0 < spec.size < len(source):
    source = First(source, spec.size)
  if spec.take or spec.skip:
    source = Subset(source, name, spec)
  for what, old, new in (
    ("samples", spec.count, len(source)),
    ("index SHA-256", spec.sha256, source.sha256),
  ):
    if old and old != new and not is_pinned(source, str(old)):
      raise ConfigError(
        f"data source {name!r} changed: {what} was {old}, is now {new}. "
        f"Restore the data, or start a new run (path {spec.path!r})."
      )
  return source


def is_pinned(source: Source, sha256: str) -> bool:
  """Whether a SHA-256 is that of a source, in its present or a former form."""
  former = getattr(source, "former_sha256", str)
  return sha256 == source.sha256 or (bool(sha256) and sha256 == former())


def open_sources(config: Config) -> dict[str, Source]:
  """Opens every source of a config."""
  return {name: open_source(config, name) for name in config.data.sources}


def pin_sources(
  config: Config, sources: Mapping[str, Source] | None = None
) -> Config:
  """The config with the sample count and SHA-256 of each source.

  Pinned when a run starts, so that `open_source` refuses changed data later.

  Args:
    config: of the run.
    sources: its sources if they are open already.
  """
  if sources is None:
    sources = open_sources(config)
  pinned = {
    name: dataclasses.replace(
      spec, count=len(sources[name]), sha256=sources[name].sha256
    )
    for name, spec in config.data.sources.items()
  }
  return dataclasses.replace(
    config, data=dataclasses.replace(config.data, sources=pinned)
  )
