"""Batches of a gallery: samples in order, without augmentation, padded."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from mico_jax.config import Config
from mico_jax.data.batches import empty_batch, fill_row, input_spec
from mico_jax.data.guard import Guard, StalledDecoder
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import Source, SourceKind, open_source
from mico_jax.data.stalled import EVALUATION, Stalled
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError

# The record and inputs, None of a broken sample; what could not be read -> why.
_Loaded = tuple[tuple[Record, dict[str, Any]] | None, dict[str, str]]
RECORD = "record"  # as a name of what could not be read
_AHEAD = 64  # samples of a store that are asked for before they are needed


@dataclasses.dataclass(frozen=True)
class _Loader:
  """Loads one sample of a gallery, within the time limit of a decoder.

  Attributes:
    config: of the run.
    source_name: of the source of the samples.
    keys: modalities to load.
    tokenizer: needed for subtitles.
    read: index -> record.
    stalled: quarantined samples; None: none, and a stall is an error.
  """

  config: Config
  source_name: str
  keys: Sequence[str]
  tokenizer: Tokenizer | None
  read: Callable[[int], Record]
  stalled: Stalled | None

  def __call__(self, index: int) -> _Loaded:
    """What could be read of a sample, and why not all."""
    stalled = self.stalled
    if stalled is not None and stalled.id(self.source_name, index) is not None:
      return None, {RECORD: "its decoder hung before"}
    guard = Guard(self.config.data.timeout)
    guard.at(self.source_name, index)
    try:
      return guard.run(lambda: self._load(index))
    except StalledDecoder as error:
      if stalled is None or not stalled.note(error, EVALUATION):
        raise
      return None, {RECORD: str(error)}

  def _load(self, index: int) -> _Loaded:
    broken: dict[str, str] = {}
    try:
      record = self.read(index)
      inputs = load_inputs(
        self.config,
        record,
        self.source_name,
        self.keys,
        self.tokenizer,
        broken=broken,
      )
    except DecodeError as error:
      return None, broken or {RECORD: str(error)}
    return (record, inputs), broken


@dataclasses.dataclass
class _Ahead:
  """Asks a source for the samples that come, as its bytes lie in a store.

  Attributes:
    source: of the samples.
    keys: modalities that will be read.
    indices: of all samples, in order.
    load: loads one of them.
    planned: places up to which the source was asked.
  """

  source: SourceKind
  keys: Sequence[str]
  indices: Sequence[int]
  load: Callable[[int], _Loaded]
  planned: int = 0
  _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def __call__(self, place: int) -> _Loaded:
    """Loads the sample at a place of `indices`."""
    with self._lock:
      end = min(place + _AHEAD, len(self.indices))
      ahead = range(max(self.planned, place), end)
      self.planned = max(self.planned, end)
    for later in ahead:
      owner = ("evaluation", later)
      self.source.plan(owner, int(self.indices[later]), self.keys)
    try:
      return self.load(int(self.indices[place]))
    finally:
      self.source.forget(("evaluation", place))


def _read_ahead(
  load: Callable[[int], _Loaded], count: int, threads: int, buffer: int
) -> Iterator[_Loaded]:
  """Loads the samples at `count` places in Grain's threads, `buffer` ahead."""
  yield from (
    grain.MapDataset.range(count)
    .map(lambda i: load(int(i)))
    .to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    )
  )


def evaluation_batches(
  config: Config,
  source_name: str,
  *,
  size: int = 0,
  batch_size: int = 64,
  keys: Sequence[str],
  tokenizer: Tokenizer | None = None,
  source: Source | None = None,
  indices: Sequence[int] | None = None,
  records: Sequence[Record] | None = None,
  stalled: Stalled | None = None,
  tell_broken: Callable[[int, Mapping[str, str]], None] | None = None,
) -> Iterator[tuple[dict[str, Any], list[Record | None]]]:
  """Batches of row, weight, inputs and present, in order, without augmentation.

  The last batch is padded to `batch_size` with weight 0. A broken sample keeps
  its row, with weight 0 and None as its record, so that coverage can be
  reported. Of a partly broken sample the broken modalities are not present.

  Args:
    config: of the run.
    source_name: a data source.
    size: number of samples; 0: all.
    batch_size: rows of each batch.
    keys: modalities to load.
    tokenizer: needed for subtitles.
    source: the source if it is open already.
    indices: samples to read instead of the first `size`.
    records: records to read instead of samples of the source.
    stalled: quarantined samples of the workdir, which count as broken.
    tell_broken: gets the place of a sample and modality -> why it cannot be
      read ("record": the sample itself); None: nobody wants to know.

  Raises:
    StalledDecoder: if a sample takes longer than `data.timeout`.
    TransientError: for storage or memory that stays short.
  """
  opened: Any = None
  if records is not None:
    indices, read, stalled = range(len(records)), records.__getitem__, None
  else:
    opened = open_source(config, source_name) if source is None else source
    if indices is None:
      indices = range(min(size or len(opened), len(opened)))
    read = opened.record
  load = _Loader(config, source_name, keys, tokenizer, read, stalled)
  at: Callable[[int], _Loaded] = lambda i: load(int(indices[i]))
  if records is None and getattr(opened, "remote", False):
    at = _Ahead(opened, keys, indices, load)
  threads = config.data.num_threads
  samples = _read_ahead(at, len(indices), threads, 2 * batch_size)
  pad = tokenizer.info.pad if tokenizer is not None else 0
  spec = input_spec(config, keys, batch_size, train=False)
  for start in range(0, len(indices), batch_size):
    batch = empty_batch(spec, pad)
    batch["row"][:] = np.arange(start, start + batch_size)
    rows: list[Record | None] = []
    for i in range(min(batch_size, len(indices) - start)):
      loaded, broken = next(samples)
      if broken and tell_broken is not None:
        tell_broken(start + i, broken)
      if loaded is None:
        rows.append(None)
        continue
      record, inputs = loaded
      rows.append(record)
      batch["weight"][i] = 1.0
      fill_row(batch, i, {"inputs": inputs})
    yield batch, rows
