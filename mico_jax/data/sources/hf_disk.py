"""Data source of a folder that Hugging Face datasets saved to disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe
from mico_jax.data.references import FileReader
from mico_jax.data.sources.arrow import ArrowSource, is_empty
from mico_jax.data.storage import Storage, is_remote
from mico_jax.modalities import DecodeError

_STATE, _DICT = "state.json", "dataset_dict.json"


class HfDiskSource(ArrowSource):
  """A folder that `save_to_disk` of Hugging Face datasets wrote.

  It holds one split or several. Its Arrow files are mapped into memory, and
  `datasets` is not needed. Columns are found as for kind "parquet".
  """

  kind: ClassVar = "hf_disk"
  reads: ClassVar = ("root",)

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Maps the files of the split.

    Raises:
      ConfigError: for another folder, or a split that it does not have.
    """
    self._name, self._config, self._lock = name, config, threading.RLock()
    self._storage = storage
    if is_remote(config.path):
      raise ConfigError(
        f"data.sources.{name}.path: {config.path}: Arrow files are mapped into "
        "memory; copy the folder to a local disk, or save it as Parquet."
      )
    folder = self._folder(config.path)
    state = self._json(os.path.join(folder, _STATE))
    self._check_state(state)
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    self._batches: list[Any] = []
    for entry in state["_data_files"]:
      path = os.path.join(folder, os.path.basename(str(entry["filename"])))
      self._map(path)
      digest.update(f"{os.path.getsize(path)} ".encode())
    sizes = [batch.num_rows for batch in self._batches]
    self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    digest.update(str(sizes).encode())
    self.sha256 = digest.hexdigest()
    self._valid: set[int] = set()
    self._files = FileReader(
      os.path.abspath(folder), config.root, storage, name
    )
    self._choose(int(self._starts[-1]), splits="split" in self._schema_names)
    if self._id_column:
      self._tell_repeated(self._ids)

  def _error(self, text: str) -> ConfigError:
    return ConfigError(f"data.sources.{self._name}.path: {text}")

  def _json(self, path: str) -> Any:
    try:
      return json.loads(self._storage.read(path, limited=False))
    except (DecodeError, ValueError, RecursionError) as error:
      raise self._error(
        f"{path}: {describe(error)}; expected a folder written by save_to_disk"
      ) from error

  def _folder(self, path: str) -> str:
    """The folder of the split."""
    if not os.path.exists(os.path.join(path, _DICT)):
      return path
    content = self._json(os.path.join(path, _DICT))
    splits = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(splits, list) or self._config.split not in splits:
      raise ConfigError(
        f"data.sources.{self._name}.split={self._config.split!r}: {path} has "
        f"the splits {splits!r:.200}."
      )
    return os.path.join(path, self._config.split)

  def _check_state(self, state: Any) -> None:
    files = state.get("_data_files") if isinstance(state, dict) else None
    if not isinstance(files, list) or not all(
      isinstance(f, dict) and f.get("filename") for f in files
    ):
      raise self._error(f"{_STATE} names no '_data_files'.")
    indices = state.get("_indices_data_files") or state.get("_indices_files")
    if indices:
      raise self._error(
        "its rows are a selection by a file of indices; write it again with "
        "dataset.flatten_indices().save_to_disk(...)."
      )
    stated, split = state.get("_split"), self._config.split
    stem = re.split(r"[\[+]", stated)[0] if isinstance(stated, str) else ""
    if split and stem and split != stem:
      raise ConfigError(
        f"data.sources.{self._name}.split={split!r}: {self._config.path} holds "
        f"the split {stated!r}; set split={stem!r}, or ''."
      )

  def _map(self, path: str) -> None:
    """Maps the record batches of a file."""
    import pyarrow as pa

    try:
      source = pa.memory_map(path)
      try:
        reader = pa.ipc.open_stream(source)
        batches = list(reader)
      except pa.ArrowInvalid:
        source.seek(0)
        reader = pa.ipc.open_file(source)
        batches = [
          reader.get_batch(i) for i in range(reader.num_record_batches)
        ]
    except Exception as error:
      raise self._error(
        f"{path}: not readable as Arrow: {describe(error)}"
      ) from error
    if not hasattr(self, "_schema_names"):
      self._take_schema(reader.schema)
    elif reader.schema.names != self._schema_names:
      raise self._error(f"{path}: other columns than the first file.")
    self._batches += batches

  def _batch(self, row: int) -> tuple[Any, int]:
    """The record batch of a row, checked once, and the row within it."""
    at = int(np.searchsorted(self._starts, row, side="right")) - 1
    batch = self._batches[at]
    with self._lock:
      if at not in self._valid:
        try:  # a broken offset would be read outside of the file
          batch.validate(full=True)
        except Exception as error:
          raise DecodeError(
            f"rows {self._starts[at]} to {self._starts[at + 1] - 1}: "
            f"{describe(error)}"
          ) from error
        self._valid.add(at)
    return batch, row - int(self._starts[at])

  def _ids(self) -> Iterator[Any]:
    """The id of every row; None for those that cannot be read."""
    at = self._schema_names.index(self._id_column)
    for batch in self._batches:
      column = batch.column(at)
      try:
        column.validate(full=True)
        ids = column.to_pylist()
      except Exception:  # reported when its rows are read
        ids = [None] * batch.num_rows
      yield from ids

  def _cells(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
    batch, at = self._batch(row)
    names = self._schema_names
    return {n: batch.column(names.index(n))[at].as_py() for n in columns}

  def _empty(self, row: int) -> set[str]:
    batch, at = self._batch(row)
    names = self._schema_names
    return {
      n
      for n in self._columns.values()
      if is_empty(batch.column(names.index(n))[at])
    }
