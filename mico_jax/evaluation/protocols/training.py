"""What a run that fine-tunes on a protocol's set reads, from the same copy.

The copy is the folder of the official files, or one with a folder of shards for
each part, named like it: `mico-jax data build --protocol NAME --split PART
--from COPY --out SHARDS/PART`. Nothing is listed or counted here, so that a
config is quickly made; sources that are opened do that.
"""

from __future__ import annotations

import dataclasses
import os

from mico_jax import files
from mico_jax.config import ConfigError, DataConfig, SourceConfig
from mico_jax.data import field_paths
from mico_jax.data.annotation_files import Table, read_table
from mico_jax.data.build.sets.base import expected
from mico_jax.data.references import FileReader
from mico_jax.data.samples import keys_of
from mico_jax.data.storage import Storage
from mico_jax.evaluation.protocols import load_protocol
from mico_jax.evaluation.protocols.schema import BenchmarkProtocol
from mico_jax.evaluation.protocols.user_copy import (
  SHARDS,
  read_shards_note,
  source_config,
)

TEST = "test"  # name of the source of the split that is measured


def training_sources(name: str, folder: str) -> dict[str, SourceConfig]:
  """Sources of the parts to train on, by their names, and of the split.

  Samples to train on that lack their file are left out.

  Args:
    name: of a protocol with parts to train on.
    folder: see above.

  Raises:
    ConfigError: for a protocol without such parts, and shards of another one.
  """
  protocol = load_protocol(name)
  if not protocol.train:
    raise ConfigError(f"the protocol {name} has no part to train on.")
  found = {}
  for part in protocol.train:
    spec = _source(protocol.of_part(part.name), name, folder)
    needed = keys_of((protocol.context,))
    found[part.name] = dataclasses.replace(spec, require=tuple(needed))
  return {**found, TEST: _source(protocol, name, folder)}


def _shards(folder: str, part: str) -> str:
  """The folder of the shards of a part; "" if there is none."""
  path = os.path.join(folder, part)
  return path if files.exists(os.path.join(path, SHARDS)) else ""


def _source(
  protocol: BenchmarkProtocol, name: str, folder: str
) -> SourceConfig:
  shards = _shards(folder, protocol.split.name)
  if shards:
    return read_shards_note(protocol, name, shards).spec
  return source_config(protocol, folder)


def training_classes(name: str, folder: str) -> tuple[str, ...]:
  """The classes as the annotations name them, in the order of the protocol.

  Raises:
    ConfigError: if a file that names them is missing, with the layout.
  """
  protocol = load_protocol(name)
  shards = _shards(folder, protocol.split.name)
  if shards:
    return read_shards_note(protocol, name, shards).labels
  classes = protocol.classes
  if classes.names:
    return classes.labels or classes.names
  table = classes.table if classes.table.file else protocol.annotations.table
  label = classes.label or protocol.annotations.label
  found = [
    field_paths.fill(label, row) for row in _rows(protocol, folder, table)
  ]
  if classes.table.file:
    return tuple(x for x in found if x)
  return tuple(sorted({x for x in found if x}))


def _rows(
  protocol: BenchmarkProtocol, folder: str, table: Table
) -> list[dict[str, object]]:
  """Rows of a table of the copy, whose other files are not listed."""
  storage = Storage.of(DataConfig())
  reader = FileReader(os.path.abspath(folder), "/", storage, protocol.title)
  there = [x for x in table.file if os.path.isfile(os.path.join(folder, x))]
  try:
    return read_table(table, reader, lambda: there).rows
  except ConfigError as error:
    raise ConfigError(
      f"{folder}: {error} {expected(protocol.copy.layout)}"
    ) from error
