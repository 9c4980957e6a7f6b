"""Batches: the order of the data, read by Grain's threads or processes.

Grain asks for the batches of the next steps; their samples are made one by one
by threads that decode (`sample_threads`), and the bytes that they need are on
their way before (`storage`).

`Pipeline` yields (step, task, batch) as `mico_jax.aliases` describes, for the
rows that this process owns. A sample is known by its source and its index
there; ids may repeat. Of a broken sample what is good is kept as long as a
group of the task can use it; else a deterministic substitute is read. Both are
written down (`bad_samples`). A decoder that does not come back ends the start,
and the second time its sample is replaced as well (`stalled`); a store that is
away is waited out. Nothing here calls JAX.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain

from mico_jax.config import Config, ConfigError
from mico_jax.data.bad_samples import BadSamples
from mico_jax.data.batch_maker import BatchMaker
from mico_jax.data.batches import batch_spec, empty_batch
from mico_jax.data.gallery import evaluation_batches
from mico_jax.data.guard import StalledDecoder
from mico_jax.data.input_checks import check_inputs, check_stated
from mico_jax.data.order import Order
from mico_jax.data.sample_trace import TraceRow, sample_name, trace
from mico_jax.data.samples import groups_of, keys_of
from mico_jax.data.sources import Source, open_sources
from mico_jax.data.stalled import Stalled
from mico_jax.data.text_classes import text_classes
from mico_jax.data.text_lengths import Classes
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError

__all__ = [
  "Pipeline",
  "StalledDecoder",
  "TraceRow",
  "batch_spec",
  "empty_batch",
  "evaluation_batches",
  "trace",
]


def _in_notebook() -> bool:
  main = sys.modules.get("IPython")
  shell = main.get_ipython() if main else None
  return shell is not None and hasattr(shell, "kernel")


class Pipeline:
  """Iterates (step, task name, batch) from a step on."""

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
    lengths: Mapping[str, Classes] | None = None,
  ):
    """Opens the sources and checks that the tasks fit them.

    Args:
      config: of the run.
      tokenizer: of its texts.
      workdir: where broken samples are written; "": nowhere.
      start_step: first step to yield.
      end_step: one past the last; None: `config.train.steps`.
      rows: batch size -> rows of the global batch that this process reads, in
        its own order; None: all.
      sources: the open sources of the config, if at hand.
      lengths: task -> its samples by the length of their texts, if at hand.

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
    if lengths is None:
      lengths = text_classes(config, tokenizer, sources)
    self.order = Order(config, sizes, lengths)
    self._rows = {
      name: tuple(
        int(row)  # the mesh names them as NumPy integers
        for row in (
          range(task.batch_size) if rows is None else rows(task.batch_size)
        )
      )
      for name, task in config.tasks.items()
    }
    for name in config.tasks:
      self._check_task(name)
    if config.data.num_workers and _in_notebook():
      raise ConfigError(
        f"data.num_workers={config.data.num_workers}: worker processes import "
        "the main program, which a notebook is not; set data.num_workers=0."
      )
    first_row = min((r for x in self._rows.values() for r in x), default=0)
    stalled = Stalled(str(workdir), str(first_row))
    self._maker = BatchMaker(
      config, tokenizer, sizes, self._rows, stalled, self._end, lengths
    )
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
    """Samples of this process's rows before a step (mean over the tasks)."""
    total = sum(t.steps for t in self._config.tasks.values())
    per_cycle = sum(
      t.steps * len(self._rows[n]) for n, t in self._config.tasks.items()
    )
    return step * per_cycle // max(total, 1)

  def _check_task(self, task: str) -> None:
    """Looks at the first sample of each source: does it have any input?"""
    spec = self._config.tasks[task]
    keys = keys_of(groups_of(spec))
    for name in spec.sources:
      try:
        record = self._sources[name].record(0)
      except DecodeError:
        continue
      have = set(record.media) | set(record.captions)
      for key in keys:
        if key in record.media:
          check_stated(self._config, name, key)
      if keys and not have & set(keys):
        raise ConfigError(
          f"tasks.{task} needs {' or '.join(keys)}, but samples of source "
          f"{name!r} have {', '.join(sorted(have)) or 'nothing'}; map record "
          f"fields with data.sources.{name}.fields."
        )

  def __iter__(self) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields until the end step; notes broken samples as it goes."""
    data = self._config.data
    dataset = grain.MapDataset.range(self._start, self._end).map(self._maker)
    if data.num_workers:
      from absl import flags

      if not flags.FLAGS.is_parsed():  # Grain reads a flag of its own
        flags.FLAGS.mark_as_parsed()
      # A batch that waits for a long sample does not stop the next one.
      reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
      ahead = max(1, data.prefetch // data.num_workers)
      steps = dataset.to_iter_dataset(reading).mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=data.num_workers, per_worker_buffer_size=ahead
        )
      )
    else:
      # Threads that wait for the samples of a batch each; others decode.
      reading = grain.ReadOptions(
        num_threads=data.prefetch, prefetch_buffer_size=data.prefetch
      )
      steps = dataset.to_iter_dataset(reading)
    for made in steps:
      self.bad_samples.add(made.bad, len(made.batch["row"]))
      yield made.step, made.task, made.batch

  def sample_ids(self, step: int) -> list[str]:
    """Names of the global batch of a step, before any substitution."""
    _, rows = self.order.rows(step)
    return [sample_name(self._sources[r.source], r) for r in rows]
