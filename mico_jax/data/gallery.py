"""Batches for evaluation: in order, without augmentation, padded."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from mico_jax.config import Config
from mico_jax.data.batches import empty_batch, fill_row
from mico_jax.data.guard import Guard, StalledDecoder
from mico_jax.data.records import Record
from mico_jax.data.samples import ArrayShape, input_shape, load_inputs
from mico_jax.data.sources import Source, open_source
from mico_jax.data.stalled import EVALUATION, Stalled
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError

_AHEAD = 64  # samples that are asked for before they are needed


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
) -> Iterator[tuple[dict[str, Any], list[Record | None]]]:
  """Batches of row, weight, inputs and present, in order, without augmentation.

  The last batch is padded to `batch_size` with weight 0. A broken sample keeps
  its row with weight 0 and None for its record, so coverage can be reported;
  of a sample that is broken in part, the broken modalities are not present.

  Args:
    config: of the run.
    source_name: a data source.
    size: samples; 0: all.
    batch_size: rows of each batch.
    keys: modalities to load.
    tokenizer: needed for subtitles.
    source: the open source, if at hand.
    indices: samples instead of the first `size`.
    records: records instead of a source's samples.
    stalled: of the workdir, if there is one; a sample that it quarantines
      counts as broken.

  Raises:
    StalledDecoder: if a sample takes longer than `data.timeout`.
    TransientError: for storage or memory that stays short.
  """
  remote: Any = None  # a source whose bytes come from a store
  if records is not None:
    pick, total = records.__getitem__, len(records)
  else:
    opened = open_source(config, source_name) if source is None else source
    if indices is None:
      indices = range(min(size or len(opened), len(opened)))
    wanted, total = indices, len(indices)
    pick = lambda i: opened.record(wanted[i])
    remote = opened if getattr(opened, "remote", False) else None

  planning, planned = threading.Lock(), [0]

  def load(i: int) -> tuple[Record, dict[str, Any]] | None:
    index = i if indices is None else int(indices[i])
    if remote:
      with planning:
        ahead = range(max(planned[0], i), min(i + _AHEAD, total))
        planned[0] = max(planned[0], ahead.stop)
      for later in ahead:
        remote.plan(("evaluation", later), int(wanted[later]), keys)
    try:
      return watched(i, index)
    finally:
      if remote:
        remote.forget(("evaluation", i))

  def watched(i: int, index: int) -> tuple[Record, dict[str, Any]] | None:
    known = stalled if records is None else None
    if known is not None and known.id(source_name, index) is not None:
      return None
    guard = Guard(config.data.timeout)
    guard.at(source_name, index)
    try:
      return guard.run(lambda: read(i))
    except StalledDecoder as error:
      if known is None or not known.note(error, EVALUATION):
        raise
      return None

  def read(i: int) -> tuple[Record, dict[str, Any]] | None:
    try:
      record = pick(i)
      inputs = load_inputs(
        config, record, source_name, keys, tokenizer, broken={}
      )
    except DecodeError:
      return None
    return record, inputs

  reading = grain.ReadOptions(
    num_threads=config.data.num_threads, prefetch_buffer_size=2 * batch_size
  )
  # Grain drops elements that are None, hence the tuple.
  samples = iter(
    grain.MapDataset.range(total)
    .map(lambda i: (load(int(i)),))
    .to_iter_dataset(reading)
  )
  pad = tokenizer.info.pad if tokenizer is not None else 0
  shapes = {key: input_shape(config, key, train=False) for key in keys}
  for start in range(0, total, batch_size):
    spec = {
      "row": ArrayShape((batch_size,), "int32"),
      "weight": ArrayShape((batch_size,), "float32"),
      "inputs": {
        k: ArrayShape((batch_size, *s.shape), s.dtype)
        for k, s in shapes.items()
      },
      "present": {k: ArrayShape((batch_size,), "bool") for k in keys},
    }
    batch = empty_batch(spec, pad)
    batch["row"][:] = np.arange(start, start + batch_size)
    found: list[Record | None] = []
    for i in range(min(batch_size, total - start)):
      (loaded,) = next(samples)
      found.append(None if loaded is None else loaded[0])
      if loaded is not None:
        batch["weight"][i] = 1.0
        fill_row(batch, i, {"inputs": loaded[1]})
    yield batch, found
