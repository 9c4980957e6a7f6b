"""The batch of a step: its samples are made one by one, by decoding threads.

What becomes of a broken or hanging sample is decided here (`pipeline`).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mico_jax.config import Config, ConfigError
from mico_jax.data.augmentation import (
  MIXED,
  Partner,
  TaskAugmentation,
  read_partner,
)
from mico_jax.data.batches import Buffers, batch_spec, fill_row
from mico_jax.data.cache import DecodedCache
from mico_jax.data.faults import guarded
from mico_jax.data.guard import Guard, name_of
from mico_jax.data.order import SUBSTITUTES, Order, Row
from mico_jax.data.sample_threads import SampleThreads
from mico_jax.data.samples import (
  TextSlots,
  check_usable,
  geometry,
  groups_of,
  keys_of,
  load_inputs,
  load_texts,
)
from mico_jax.data.sources import Source, open_source
from mico_jax.data.stalled import REASON, Stalled
from mico_jax.data.targets import load_targets, targets_of
from mico_jax.data.text_lengths import Classes
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError

_AHEAD = 512  # samples of this process that are on their way, at most


@dataclass
class Made:
  """A batch and its broken samples."""

  step: int
  task: str
  batch: dict[str, Any]
  bad: list[dict[str, Any]]


class BatchMaker:
  """step -> batch. Travels to worker processes, which open their own files."""

  def __init__(
    self,
    config: Config,
    tokenizer: Tokenizer,
    sizes: Mapping[str, int],
    rows: Mapping[str, tuple[int, ...]],
    stalled: Stalled,
    end: int,
    lengths: Mapping[str, Classes] | None = None,
  ):
    self._stalled = stalled
    self._config, self._tokenizer = config, tokenizer
    self._sizes, self._rows = dict(sizes), dict(rows)
    self._lengths = lengths
    self._sources: dict[str, Source] | None = None
    self._cache = DecodedCache(config.data.cache_mib)
    self._end, self._stride = end, max(config.data.num_workers, 1)
    self._prepare()

  def _prepare(self) -> None:
    data = self._config.data
    self._order = Order(self._config, self._sizes, self._lengths)
    self._augment = {
      name: TaskAugmentation(self._config, name) for name in self._config.tasks
    }
    self._targets = {
      name: targets_of(self._config, task)
      for name, task in self._config.tasks.items()
    }
    self._lock = threading.Lock()
    # Of several processes each decodes in two threads: one long sample shall
    # not stop all.
    threads = 2 if data.num_workers else data.num_threads
    self._threads = SampleThreads(threads, data.timeout)
    self._buffers = Buffers(self._tokenizer.info.pad, 2 * data.prefetch + 2)
    self._remote: set[str] = set()  # sources whose bytes come from a store
    self._known: dict[int, tuple[str, list[Row]]] = {}
    self._planned: set[int] = set()  # steps whose rows are on their way
    self._mixing: set[tuple[int, int]] = set()  # of them, with a partner

  def __getstate__(self) -> dict[str, Any]:
    hidden = (
      *("_sources", "_order", "_lock", "_threads", "_buffers", "_remote"),
      *("_known", "_planned", "_mixing", "_augment", "_targets"),
    )
    return {k: v for k, v in self.__dict__.items() if k not in hidden}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _sources=None)
    self._prepare()

  def use(self, sources: dict[str, Source]) -> None:
    """Takes sources that are open already."""
    self._sources = sources
    self._remote = {
      n for n, source in sources.items() if getattr(source, "remote", False)
    }

  def _open(self) -> dict[str, Source]:
    with self._lock:
      if self._sources is None:
        names = {s for t in self._config.tasks.values() for s in t.sources}
        self.use({n: open_source(self._config, n) for n in names})
      assert self._sources is not None
      return self._sources

  def __call__(self, step: int) -> Made:
    """The batch of a step: each row is made by a decoding thread."""
    self._open()  # takes its time, which is no sample's
    step = int(step)
    self._plan(step)
    task, rows = self._rows_of(step)
    spec = self._config.tasks[task]
    length = self._order.text_length(step)
    slots = TextSlots.of(self._config, spec, longest=length)
    shapes = batch_spec(
      self._config, task, batch_size=len(rows), text_length=length
    )
    batch = self._buffers.take((task, length), shapes)
    bad: dict[int, dict[str, Any]] = {}

    def make(i: int, row: Row, guard: Guard) -> Callable[[], None]:
      try:
        sample, entry = self._row(step, row, task, slots, guard)
      finally:
        self._forget(step, row)

      def hand_in() -> None:
        fill_row(batch, i, sample)
        batch["row"][i], batch["weight"][i] = row.row, 1.0
        if entry is not None:
          bad[i] = entry

      return hand_in

    self._threads.run(
      [functools.partial(make, i, row) for i, row in enumerate(rows)],
      lambda error: self._stalled.note(error, step),
      rank=step,
    )
    return Made(step, task, batch, [bad[i] for i in sorted(bad)])

  def _plan(self, step: int) -> None:
    """Starts to read the samples of this step and of some that follow.

    The order is known, so exactly those bytes are asked for that rows of this
    process will need.
    """
    if not self._remote:
      return
    with self._lock:
      wanted, steps = _AHEAD, []
      for later in range(step, self._end, self._stride):
        wanted -= len(self._rows[self._order.task(later)[0]])
        # Steps are asked for by several threads, in any order.
        if later not in self._planned:
          steps.append(later)
        if wanted <= 0:
          break
      # Of what is past only as much is kept as steps may overtake each other.
      past = step - 2 * self._stride * self._config.data.prefetch
      self._planned = {s for s in self._planned if s > past}.union(steps)
    for later in steps:
      self._plan_rows(later)

  def _plan_rows(self, step: int) -> None:
    task, rows = self._rows_of(step)
    keys = keys_of(groups_of(self._config.tasks[task]))
    for row in rows:
      if row.source in self._remote:
        source: Any = self._open()[row.source]
        source.plan((step, row.row), row.index, keys)
        partner = self._partner(row, task)
        if partner is not None:
          self._mixing.add((step, row.row))
          source.plan((step, row.row, MIXED), partner, (MIXED,))

  def _rows_of(self, step: int) -> tuple[str, list[Row]]:
    """The task of a step, and what this process's rows of it read."""
    known = self._known.pop(step, None)
    if known is not None:
      return known
    task, _ = self._order.task(step)
    _, rows = self._order.rows(step, self._rows[task])
    if self._remote:  # planned now, made later
      self._known[step] = (task, rows)
    return task, rows

  def _forget(self, step: int, row: Row) -> None:
    if row.source in self._remote:
      source: Any = self._open()[row.source]
      source.forget((step, row.row))
      if (step, row.row) in self._mixing:
        self._mixing.discard((step, row.row))
        source.forget((step, row.row, MIXED))

  def _row(
    self,
    step: int,
    row: Row,
    task: str,
    slots: TextSlots,
    guard: Guard,
  ) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A row's sample, and what is to be noted if it is not the whole one."""
    entry: dict[str, Any] | None = None
    wanted = row
    for attempt in range(SUBSTITUTES):
      read = _Reading()
      sample, reason = None, ""
      try:
        sample = self._read(read, wanted, task, slots, guard)
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
    task: str,
    slots: TextSlots,
    guard: Guard,
  ) -> dict[str, Any]:
    """What travels of a sample; `read` learns its id and what is broken."""
    held = self._stalled.id(row.source, row.index)
    if held is not None:
      read.id = held
      raise DecodeError(REASON)
    guard.at(row.source, row.index)
    record = self._open()[row.source].record(row.index)
    read.id = record.id
    rng_key = self._key(row)
    partner = self._mixed_in(row, task, slots, guard)
    guard.at(row.source, row.index, record.id)
    groups = groups_of(self._config.tasks[task])
    inputs = load_inputs(
      self._config,
      record,
      row.source,
      keys_of(groups),
      self._tokenizer,
      rng_key=rng_key,
      augment=self._augment[task].draw(rng_key, partner),
      cache=self._cache,
      index=row.index,
      broken=read.broken,
    )
    check_usable(groups, read.broken)
    try:
      texts = guarded(
        lambda: load_texts(
          record,
          slots,
          self._tokenizer,
          rng_key=rng_key,
          mixed=None if partner is None else partner.texts,
        )
      )
    except DecodeError as error:
      read.broken["text"] = str(error)
      raise
    try:
      labels = load_targets(record, self._targets[task])
    except DecodeError as error:
      read.broken["label"] = str(error)
      raise
    return {"inputs": inputs, **texts, **labels}

  def _key(self, row: Row) -> tuple[Any, ...]:
    """Keys what is drawn for a row's sample."""
    return self._config.seed, row.epoch, row.source, row.index

  def _partner(self, row: Row, task: str) -> int | None:
    """The sample whose sound is mixed into that of a row; None: none is."""
    size = self._sizes[row.source]
    return self._augment[task].partner(self._key(row), row.index, size)

  def _mixed_in(
    self, row: Row, task: str, slots: TextSlots, guard: Guard
  ) -> Partner | None:
    """What is mixed into the sample of a row; None: nothing."""
    index = self._partner(row, task)
    if index is None or self._stalled.id(row.source, index) is not None:
      return None
    guard.at(row.source, index)
    try:
      record = self._open()[row.source].record(index)
    except DecodeError:
      return None
    sizes = geometry(self._config, MIXED, row.source)
    name = (row.source, index, MIXED, sizes)
    return read_partner(
      record,
      slots.kinds,
      sizes,
      self._key(row),
      functools.partial(self._cache.get, name),
    )


@dataclass
class _Reading:
  """What became known of a sample while it was read."""

  id: str = ""
  broken: dict[str, str] = field(default_factory=dict)  # modality -> reason
