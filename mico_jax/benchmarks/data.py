"""Cost of the input of a run: by stage and modality, as a whole, and waiting.

CPU time counts all threads of the process. Stages run one after the other on
one thread; the pipeline runs as a training run has it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mico_jax.benchmarks import data_peers
from mico_jax.benchmarks.data_peers import Session
from mico_jax.config import Config, ConfigError
from mico_jax.data.augmentation import TaskAugmentation
from mico_jax.data.batches import batch_spec, empty_batch
from mico_jax.data.order import Order, Row, generator
from mico_jax.data.pipeline import Pipeline
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

STAGES = ("record", "read", "decode", "transform", "text", "batch")


@dataclass
class Stages:
  """CPU seconds and counts, by (stage, modality).

  Attributes:
    seconds: of all samples.
    counts: samples.
    nbytes: modality -> bytes read.
    broken: samples, or modalities of samples, that could not be read.
  """

  seconds: dict[tuple[str, str], float] = field(default_factory=dict)
  counts: dict[tuple[str, str], int] = field(default_factory=dict)
  nbytes: dict[str, int] = field(default_factory=dict)
  broken: int = 0

  def add(self, stage: str, key: str, seconds: float, count: int = 1) -> None:
    """Adds the time of a stage."""
    self.seconds[stage, key] = self.seconds.get((stage, key), 0.0) + seconds
    self.counts[stage, key] = self.counts.get((stage, key), 0) + count

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
      kilobytes = self.nbytes.get(key, 0) / count / 1000
      rows.append(
        {
          "stage": stage,
          "modality": key,
          "samples": self.counts[stage, key],
          "cpu_ms": 1000 * self.seconds[stage, key] / count,
          "kilobytes": kilobytes if stage == "read" else None,
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
  rng = generator(config.seed, row.epoch, row.source, row.index, "input")
  mode = preprocessing.mode_of(config, key, train=True)
  begin = time.process_time()
  array = preprocessing.host_array(
    modality, mode, decoded if clip is None else clip, sizes, rng, augment
  )
  later = clip.seconds if clip is not None else 0.0
  stages.add("decode", key, spent + later)
  stages.add("transform", key, time.process_time() - begin - later)
  return array


def _order(session: Session) -> Order:
  lengths = text_classes(session.config, session.tokenizer, session.sources)
  return order_of(session.config, session.sources, lengths)


def measure_stages(session: Session, samples: int) -> list[dict[str, Any]]:
  """CPU time of each stage of reading about `samples` samples.

  Args:
    session: of the run.
    samples: to read, of all tasks of the config.
  """
  config, stages = session.config, Stages()
  order = _order(session)
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
    rng_key = (config.seed, row.epoch, row.source, row.index)
    augment = augments[task].draw(rng_key)  # sounds are mixed by the pipeline
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
    try:
      load_texts(record, slots[task], session.tokenizer, rng_key=rng_key)
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
    stages.nbytes[""] = stages.nbytes.get("", 0) + _nbytes(list(raw.values()))
    return raw
  for key in keys:
    begin = time.process_time()
    try:
      raw[key] = record.media[key]()
    except (DecodeError, OSError):
      stages.broken += 1
      continue
    stages.add("read", key, time.process_time() - begin)
    stages.nbytes[key] = stages.nbytes.get(key, 0) + _nbytes(raw[key])
  return raw


def _cpu() -> float:
  """CPU seconds of this process and of its children that have ended."""
  children = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + children.ru_utime + children.ru_stime


def measure_pipeline(
  session: Session, samples: int, *, hosts: int = 1, step_ms: float = 0.0
) -> dict[str, Any]:
  """Rate and CPU time of the pipeline of a run on one of several hosts.

  Args:
    session: of the run.
    samples: to read at least, of this host.
    hosts: number of hosts that share the global batch.
    step_ms: time of a training step, spent asleep; 0: none, as fast as it goes.

  Returns:
    A record; "input_wait" is the share of the time in which the step waits,
    from the second batch on.

  Raises:
    ConfigError: for a batch that the hosts cannot share.
  """
  config = session.config
  sizes = {name: t.batch_size for name, t in config.tasks.items()}
  if odd := [f"{n}: {s}" for n, s in sizes.items() if s % hosts]:
    raise ConfigError(
      f"--hosts {hosts} does not divide the batch of {', '.join(odd)}."
    )
  order = _order(session)
  steps, count = 0, 0
  while steps < 3 or count < samples:  # the first batch is not counted
    count += sizes[order.task(steps)[0]] // hosts
    steps += 1
  begin_cpu = _cpu()
  pipeline = Pipeline(
    config,
    session.tokenizer,
    end_step=steps,
    rows=lambda size: range(size // hosts),
    sources=dict(session.sources),
  )
  waited, begin, seen, first = 0.0, 0.0, 0, 0
  asked = time.perf_counter()
  for number, (_, _, batch) in enumerate(pipeline):
    got = time.perf_counter()
    size = len(batch["row"])
    if number:
      waited, seen = waited + got - asked, seen + size
    else:
      begin, first = got, size
    time.sleep(step_ms / 1000)
    asked = time.perf_counter()
  seconds = asked - begin
  record = {
    "step_ms": step_ms or None,
    "hosts": hosts,
    "samples": seen,
    "samples_per_second": seen / seconds,
    "cpu_ms": 1000 * (_cpu() - begin_cpu) / (seen + first),
    "workers": config.data.num_workers,
    "threads": config.data.num_threads,
  }
  if step_ms:
    record["input_wait"] = waited / seconds
  return record


def run(
  session: Session,
  *,
  samples: int,
  peers: Sequence[str],
  turns: int,
  hosts: int = 1,
  step_ms: float = 0.0,
) -> dict[str, list[dict[str, Any]]]:
  """All measurements: tables "stages", "pipeline" and "pictures".

  Args:
    session: of the run.
    samples: to read.
    peers: names in `data_peers.PEERS`.
    turns: of each implementation.
    hosts: that share the global batch.
    step_ms: time of a training step.
  """
  stages = measure_stages(session, samples)
  pipeline = [measure_pipeline(session, samples, hosts=hosts)]
  if step_ms:
    pipeline.append(
      measure_pipeline(session, samples, hosts=hosts, step_ms=step_ms)
    )
  megabytes = stages[-1]["kilobytes"] / 1000
  for record in pipeline:
    record["megabytes_per_second"] = record["samples_per_second"] * megabytes
  pictures = data_peers.pictures(session, min(samples, data_peers.MOST))
  compared: list[dict[str, Any]] = []
  if pictures:
    size = session.config.model.vision.image_size
    compared = data_peers.compare(pictures, size, peers=peers, turns=turns)
  return {"stages": stages, "pipeline": pipeline, "pictures": compared}
