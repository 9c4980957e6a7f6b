"""Batches of training, read ahead by Grain's threads or processes.

`Pipeline` yields (step, task, batch), see `mico_jax.aliases`, for the rows of
the global batch that this process reads. A sample is identified by its source
and its index there. A partly broken sample is used without its broken
modalities if a group of the task can use the rest; otherwise a deterministic
substitute is read. Both cases are logged (`bad_samples`). A decoder that does
not return ends the run with an error; if the same sample stalls again after a
restart, it is replaced as well (`stalled`). Unreachable storage is waited for.
"""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grain

from mico_jax.config import Config, ConfigError
from mico_jax.data.bad_samples import BadSamples
from mico_jax.data.batches import batch_spec, empty_batch, fill_row
from mico_jax.data.cache import DecodedCache
from mico_jax.data.faults import guarded
from mico_jax.data.gallery import evaluation_batches
from mico_jax.data.guard import Guard, StalledDecoder, name_of
from mico_jax.data.order import SUBSTITUTES, Order, Row
from mico_jax.data.sample_trace import TraceRow, sample_name, trace
from mico_jax.data.samples import (
  TextSlots,
  check_inputs,
  check_unit,
  check_usable,
  groups_of,
  keys_of,
  load_inputs,
  load_texts,
)
from mico_jax.data.sources import Source, open_source, open_sources
from mico_jax.data.stalled import REASON, Stalled
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import MODALITIES, DecodeError

__all__ = [
  "Pipeline",
  "StalledDecoder",
  "TraceRow",
  "batch_spec",
  "empty_batch",
  "evaluation_batches",
  "trace",
]


@dataclass
class _StepBatch:
  """A batch of a step, and the log entries of its broken samples."""

  step: int
  task: str
  batch: dict[str, Any]
  bad: list[dict[str, Any]]


class _BatchMaker:
  """step -> batch. Pickled for worker processes, which open the files anew."""

  def __init__(
    self,
    config: Config,
    tokenizer: Tokenizer,
    sizes: Mapping[str, int],
    rows: Mapping[str, tuple[int, ...]],
    stalled: Stalled,
  ):
    self._stalled = stalled
    self._config, self._tokenizer = config, tokenizer
    self._sizes, self._rows = dict(sizes), dict(rows)
    self._sources: dict[str, Source] | None = None
    self._cache = DecodedCache(config.data.cache_mib)
    self._prepare()

  def _prepare(self) -> None:
    self._order = Order(self._config, self._sizes)
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, Any]:
    hidden = {"_sources": None, "_order": None, "_lock": None}
    return {**self.__dict__, **hidden}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._prepare()

  def use(self, sources: dict[str, Source]) -> None:
    """Sets sources that are open already."""
    self._sources = sources

  def _open(self) -> dict[str, Source]:
    with self._lock:
      if self._sources is None:
        names = {s for t in self._config.tasks.values() for s in t.sources}
        self._sources = {n: open_source(self._config, n) for n in names}
      return self._sources

  def __call__(self, step: int) -> _StepBatch:
    self._open()  # its time does not count as that of a sample
    while True:
      guard = Guard(self._config.data.timeout)
      try:
        return guard.run(lambda g=guard: self._make(int(step), g))
      except StalledDecoder as error:
        if not self._stalled.note(error, int(step)):
          raise

  def _make(self, step: int, guard: Guard) -> _StepBatch:
    task, _ = self._order.task(step)
    _, rows = self._order.rows(step, self._rows[task])
    spec = self._config.tasks[task]
    slots = TextSlots.of(self._config, spec)
    groups = groups_of(spec)
    shapes = batch_spec(self._config, task, batch_size=len(rows))
    batch = empty_batch(shapes, self._tokenizer.info.pad)
    bad = []
    for i, row in enumerate(rows):
      sample, entry = self._row(step, row, groups, slots, guard)
      fill_row(batch, i, sample)
      batch["row"][i], batch["weight"][i] = row.row, 1.0
      if entry is not None:
        bad.append(entry)
    return _StepBatch(step, task, batch, bad)

  def _row(
    self,
    step: int,
    row: Row,
    groups: Sequence[str],
    slots: TextSlots,
    guard: Guard,
  ) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The sample of a row; and its log entry if it is broken or replaced."""
    entry: dict[str, Any] | None = None
    wanted = row
    for attempt in range(SUBSTITUTES):
      read = _Reading()
      sample, reason = None, ""
      try:
        sample = self._read(read, wanted, groups, slots, guard)
      except DecodeError as error:
        reason = str(error)
      if entry is None and (sample is None or read.broken):
        entry = {
          "step": step,
          "row": row.row,
          "source": row.source,
          "index": row.index,
          "id": read.id or f"{row.source}[{row.index}]",
          "modalities": sorted(read.broken) or ["record"],
          "reason": reason or "; ".join(read.broken.values()),
        }
      if sample is not None:
        if entry is not None and attempt:
          entry["substitute"] = read.id
          entry["substitute_index"] = wanted.index
          if read.broken:
            entry["substitute_lacks"] = sorted(read.broken)
        return sample, entry
      wanted = self._order.substitute(row, attempt)
    assert entry is not None  # the first one failed
    raise ConfigError(
      f"source {row.source!r}: {SUBSTITUTES} samples in a row are broken; the "
      f"first: {name_of(row.source, row.index, entry['id'])}: {entry['reason']}"
    )

  def _read(
    self,
    read: _Reading,
    row: Row,
    groups: Sequence[str],
    slots: TextSlots,
    guard: Guard,
  ) -> dict[str, Any]:
    """Inputs and texts of a sample; sets its id and broken parts in `read`."""
    quarantined = self._stalled.id(row.source, row.index)
    if quarantined is not None:
      read.id = quarantined
      raise DecodeError(REASON)
    guard.at(row.source, row.index)
    record = self._open()[row.source].record(row.index)
    read.id = record.id
    guard.at(row.source, row.index, record.id)
    rng_key = (self._config.seed, row.epoch, row.source, row.index)
    inputs = load_inputs(
      self._config,
      record,
      row.source,
      keys_of(groups),
      self._tokenizer,
      rng_key=rng_key,
      cache=self._cache,
      index=row.index,
      broken=read.broken,
    )
    check_usable(groups, read.broken)
    try:
      texts = guarded(
        lambda: load_texts(record, slots, self._tokenizer, rng_key=rng_key)
      )
    except DecodeError as error:
      read.broken["text"] = str(error)
      raise
    return {"inputs": inputs, **texts}


@dataclass
class _Reading:
  """Id and broken modalities of a sample, set while it is read."""

  id: str = ""
  broken: dict[str, str] = field(default_factory=dict)  # modality -> reason


def _in_notebook() -> bool:
  main = sys.modules.get("IPython")
  shell = main.get_ipython() if main else None
  return shell is not None and hasattr(shell, "kernel")


def _check_workers(num_workers: int) -> None:
  """Refuses worker processes in a notebook, which they could not import."""
  if num_workers and _in_notebook():
    raise ConfigError(
      f"data.num_workers={num_workers}: worker processes import the main "
      "program, which is not possible in a notebook; set data.num_workers=0."
    )


class Pipeline:
  """Iterates over (step, task name, batch)."""

  def __init__(
    self,
    config: Config,
    tokenizer: Tokenizer,
    *,
    workdir: str | pathlib.Path = "",
    start_step: int = 0,
    end_step: int | None = None,
    rows: Callable[[int], Sequence[int]] | None = None,
    sources: dict[str, Source] | None = None,
  ):
    """Opens the sources and checks that they fit the tasks.

    Args:
      config: of the run.
      tokenizer: of its texts.
      workdir: folder for the log of broken samples; "": no log.
      start_step: first step to yield.
      end_step: one past the last step; None: `config.train.steps`.
      rows: batch size -> rows of the global batch that this process reads, in
        that order; None: all.
      sources: the sources of the config if they are open already.

    Raises:
      ConfigError: for a config that does not fit the data.
    """
    check_inputs(config)
    self._config = config
    self._end = config.train.steps if end_step is None else end_step
    self._start = start_step
    if sources is None:
      sources = open_sources(config)
    self._sources = sources
    sizes = {name: len(source) for name, source in sources.items()}
    self.order = Order(config, sizes)
    rows_of = range if rows is None else rows
    self._rows = {  # the mesh gives NumPy integers
      name: tuple(int(row) for row in rows_of(task.batch_size))
      for name, task in config.tasks.items()
    }
    for name in config.tasks:
      self._check_task(name)
    _check_workers(config.data.num_workers)
    first_row = min((r for x in self._rows.values() for r in x), default=0)
    stalled = Stalled(str(workdir), str(first_row))
    self._maker = _BatchMaker(config, tokenizer, sizes, self._rows, stalled)
    if not config.data.num_workers:
      self._maker.use(sources)
    self.bad_samples = BadSamples(
      str(workdir),
      max_fraction=config.data.max_bad_fraction,
      start_step=start_step,
      seen=self._seen(start_step),
      first_row=first_row,
    )

  def _seen(self, step: int) -> int:
    """Number of samples this process read before a step, by task weights."""
    total = sum(t.steps for t in self._config.tasks.values())
    per_cycle = sum(
      t.steps * len(self._rows[n]) for n, t in self._config.tasks.items()
    )
    return step * per_cycle // max(total, 1)

  def _check_task(self, task: str) -> None:
    """Checks that the first sample of each source has an input of the task."""
    spec = self._config.tasks[task]
    keys = keys_of(groups_of(spec))
    for name in spec.sources:
      try:
        record = self._sources[name].record(0)
      except DecodeError:
        continue
      have = set(record.media) | set(record.captions)
      for key in keys:
        if MODALITIES[key].units and key in record.media:
          check_unit(self._config, name, key)
      if keys and not have & set(keys):
        raise ConfigError(
          f"tasks.{task} needs {' or '.join(keys)}, but samples of source "
          f"{name!r} have {', '.join(sorted(have)) or 'nothing'}; map record "
          f"fields with data.sources.{name}.fields."
        )

  def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields up to the end step, and logs broken samples."""
    data = self._config.data
    dataset = grain.MapDataset.range(self._start, self._end).map(self._maker)
    if data.num_workers:
      from absl import flags

      if not flags.FLAGS.is_parsed():  # Grain reads a flag
        flags.FLAGS.mark_as_parsed()
      reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
      ahead = max(1, data.prefetch // data.num_workers)
      steps = dataset.to_iter_dataset(reading).mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=data.num_workers, per_worker_buffer_size=ahead
        )
      )
    else:
      reading = grain.ReadOptions(
        num_threads=data.num_threads,
        prefetch_buffer_size=max(data.prefetch, data.num_threads),
      )
      steps = dataset.to_iter_dataset(reading)
    for made in steps:
      self.bad_samples.add(made.bad, len(made.batch["row"]))
      yield made.step, made.task, made.batch

  def sample_ids(self, step: int) -> list[str]:
    """Names of the samples of a step's global batch, before substitution."""
    _, rows = self.order.rows(step)
    return [sample_name(self._sources[r.source], r) for r in rows]
