"""CPU time of the stages of reading samples, by modality.

They run one after the other on one thread, as the pipeline has them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mico_jax.benchmarks.data_peers import Session
from mico_jax.config import Config
from mico_jax.data.augmentation import (
  MIXED,
  Partner,
  TaskAugmentation,
  read_partner,
)
from mico_jax.data.batches import batch_spec, empty_batch
from mico_jax.data.order import Order, Row, generator
from mico_jax.data.records import Record
from mico_jax.data.samples import (
  TextSlots,
  geometry,
  groups_of,
  keys_of,
  load_texts,
)
from mico_jax.data.text_classes import order_of, text_classes
from mico_jax.modalities import MODALITIES, DecodeError, preprocessing
from mico_jax.modalities.augmentation import Augmentation
from mico_jax.modalities.spatial import Clip

STAGES = ("record", "read", "mix", "decode", "transform", "text", "batch")


@dataclass
class Stages:
  """CPU seconds and counts, by (stage, modality).

  Attributes:
    seconds: of all samples.
    counts: samples.
    nbytes: bytes read, by (stage, modality).
    broken: samples, or modalities of samples, that could not be read.
  """

  seconds: dict[tuple[str, str], float] = field(default_factory=dict)
  counts: dict[tuple[str, str], int] = field(default_factory=dict)
  nbytes: dict[tuple[str, str], int] = field(default_factory=dict)
  broken: int = 0

  def add(self, stage: str, key: str, seconds: float, count: int = 1) -> None:
    """Adds the time of a stage."""
    self.seconds[stage, key] = self.seconds.get((stage, key), 0.0) + seconds
    self.counts[stage, key] = self.counts.get((stage, key), 0) + count

  def received(self, stage: str, key: str, raw: Any) -> None:
    """Adds raw media that a stage read."""
    cell = (stage, key)
    self.nbytes[cell] = self.nbytes.get(cell, 0) + _nbytes(raw)

  def rows(self, samples: int) -> list[dict[str, Any]]:
    """Records for tables; times are per sample of the modality.

    Args:
      samples: of all modalities.
    """
    order = {key: i for i, key in enumerate(("", *MODALITIES))}
    cells = sorted(
      self.seconds, key=lambda c: (STAGES.index(c[0]), order[c[1]])
    )
    rows: list[dict[str, Any]] = []
    for stage, key in cells:
      count = max(self.counts[stage, key], 1)
      read = self.nbytes.get((stage, key))
      rows.append(
        {
          "stage": stage,
          "modality": key,
          "samples": self.counts[stage, key],
          "cpu_ms": 1000 * self.seconds[stage, key] / count,
          "kilobytes": None if read is None else read / count / 1000,
        }
      )
    rows.append(
      {
        "stage": "sum",
        "modality": "",
        "samples": samples,
        "cpu_ms": 1000 * sum(self.seconds.values()) / max(samples, 1),
        "kilobytes": sum(self.nbytes.values()) / max(samples, 1) / 1000,
      }
    )
    return rows


class _TimedClip:
  """A clip that decodes when frames are taken, whose time is noted."""

  def __init__(self, clip: Any):
    self._clip, self.seconds = clip, 0.0

  def __len__(self) -> int:
    return len(self._clip)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._clip, name)

  def take(self, indices: Sequence[int]) -> Shaped[np.ndarray, "T Y X *C"]:
    begin = time.process_time()
    try:
      return self._clip.take(indices)
    finally:
      self.seconds += time.process_time() - begin


def _nbytes(raw: Any) -> int:
  """Size of raw media."""
  if isinstance(raw, (list, tuple)):
    return sum(_nbytes(x) for x in raw)
  return len(raw) if isinstance(raw, bytes) else getattr(raw, "nbytes", 0)


def _chosen(order: Order, config: Config, samples: int) -> Iterator[Any]:
  """Yields (task, row) of about `samples` rows from one cycle of the tasks."""
  cycle = sum(t.steps for t in config.tasks.values())
  total = sum(t.steps * t.batch_size for t in config.tasks.values())
  for step in range(cycle):
    size = config.tasks[order.task(step)[0]].batch_size
    count = max(1, min(size, round(samples * size / total)))
    task, rows = order.rows(step, range(count))
    yield from ((task, row) for row in rows)


def _load(
  stages: Stages,
  session: Session,
  record: Record,
  row: Row,
  key: str,
  raw: Any,
  augment: Augmentation | None,
) -> Shaped[np.ndarray, "..."]:
  """Decodes and transforms one modality."""
  config, modality = session.config, MODALITIES[key]
  sizes = geometry(config, key, row.source, draft=True)
  begin = time.process_time()
  decoded = modality.decode(raw, sizes)
  spent = time.process_time() - begin
  array_like = isinstance(decoded, np.ndarray)  # which have `take` too
  is_clip = isinstance(decoded, Clip) and not array_like
  clip = _TimedClip(decoded) if is_clip else None
  rng = generator(*_key(session, row), "input")
  mode = preprocessing.mode_of(config, key, train=True)
  begin = time.process_time()
  array = preprocessing.host_array(
    modality, mode, decoded if clip is None else clip, sizes, rng, augment
  )
  later = clip.seconds if clip is not None else 0.0
  stages.add("decode", key, spent + later)
  stages.add("transform", key, time.process_time() - begin - later)
  return array


def _mixed_in(
  stages: Stages,
  session: Session,
  row: Row,
  transforms: TaskAugmentation,
  slots: TextSlots,
) -> Partner | None:
  """Reads and decodes the sound that is mixed into a row's; None: none is."""
  source, key = session.sources[row.source], _key(session, row)
  index = transforms.partner(key, row.index, len(source))
  if index is None:
    return None
  begin = time.process_time()
  try:
    record = source.record(index)
  except DecodeError:
    return None

  def read() -> Any:
    raw = record.media[MIXED]()
    stages.received("mix", MIXED, raw)
    return raw

  media = {MIXED: read} if MIXED in record.media else {}
  sizes = geometry(session.config, MIXED, row.source)
  partner = read_partner(
    dataclasses.replace(record, media=media, read_many=None),
    slots.kinds,
    sizes,
    key,
    lambda decode: decode(),
  )
  stages.add("mix", MIXED, time.process_time() - begin)
  return partner


def _key(session: Session, row: Row) -> tuple[Any, ...]:
  """Keys what is drawn for a row's sample, as in the pipeline."""
  return session.config.seed, row.epoch, row.source, row.index


def order_in(session: Session) -> Order:
  """The order of the samples of a run."""
  lengths = text_classes(session.config, session.tokenizer, session.sources)
  return order_of(session.config, session.sources, lengths)


def measure_stages(session: Session, samples: int) -> list[dict[str, Any]]:
  """CPU time of each stage of reading about `samples` samples.

  Args:
    session: of the run.
    samples: to read, of all tasks of the config.
  """
  config, stages = session.config, Stages()
  order = order_in(session)
  chosen = list(_chosen(order, config, samples))
  batches = {
    name: empty_batch(batch_spec(config, name, batch_size=1))
    for name in config.tasks
  }
  slots = {name: TextSlots.of(config, t) for name, t in config.tasks.items()}
  augments = {name: TaskAugmentation(config, name) for name in config.tasks}
  for task, row in chosen:
    begin = time.process_time()
    try:
      record = session.sources[row.source].record(row.index)
    except DecodeError:
      stages.broken += 1
      continue
    stages.add("record", "", time.process_time() - begin)
    wanted = keys_of(groups_of(config.tasks[task]))
    keys = [k for k in wanted if k in record.media]
    rng_key = _key(session, row)
    partner = _mixed_in(stages, session, row, augments[task], slots[task])
    augment = augments[task].draw(rng_key, partner)
    for key, raw in _read(stages, record, keys).items():
      try:
        array = _load(stages, session, record, row, key, raw, augment)
      except DecodeError:
        stages.broken += 1
        continue
      begin = time.process_time()
      batches[task]["inputs"][key][0] = array
      stages.add("batch", key, time.process_time() - begin)
    begin = time.process_time()
    mixed = None if partner is None else partner.texts
    try:
      load_texts(
        record, slots[task], session.tokenizer, rng_key=rng_key, mixed=mixed
      )
    except DecodeError:
      stages.broken += 1
    stages.add("text", "", time.process_time() - begin)
  rows = stages.rows(len(chosen))
  rows[-1]["broken"] = stages.broken
  return rows


def _read(
  stages: Stages, record: Record, keys: Sequence[str]
) -> dict[str, Any]:
  """Raw media of a record; those that cannot be read are left out."""
  raw: dict[str, Any] = {}
  if record.read_many is not None:  # all at once
    begin = time.process_time()
    raw = dict(record.read(keys))
    stages.add("read", "", time.process_time() - begin)
    stages.received("read", "", list(raw.values()))
    return raw
  for key in keys:
    begin = time.process_time()
    try:
      raw[key] = record.media[key]()
    except (DecodeError, OSError):
      stages.broken += 1
      continue
    stages.add("read", key, time.process_time() - begin)
    stages.received("read", key, raw[key])
  return raw
