"""Which length class each sample of a run belongs to (`text_lengths`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.config import Config, ConfigError, to_dict
from mico_jax.data.index import classes
from mico_jax.data.language import possible_texts
from mico_jax.data.order import Order
from mico_jax.data.records import Record
from mico_jax.data.samples import TextSlots
from mico_jax.data.sources import Source, open_source
from mico_jax.data.text_lengths import Classes
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.modalities.words import decode_text


def longest_text(record: Record, slots: TextSlots, tokenizer: Tokenizer) -> int:
  """Tokens of the longest text that a task may draw of a sample.

  Special tokens count; a text is no longer than its slot. 0: there is none.

  Args:
    record: the sample.
    slots: of the task, uncut.
    tokenizer: of the run.

  Raises:
    DecodeError: for texts that cannot be read.
  """
  pad, longest = tokenizer.info.pad, 0
  wanted: dict[tuple[str, int], None] = {}
  for group, length in slots.groups.items():
    for kind, texts in possible_texts(record, slots.kinds[group]).items():
      more = record.negatives.get(kind, ()) if slots.negatives else ()
      wanted.update(dict.fromkeys((t, length) for t in (*texts, *more)))
  for text, length in wanted:
    ids = tokenizer.encode(decode_text(text), length)
    longest = max(longest, int(np.flatnonzero(ids != pad)[-1]) + 1)
  return longest


def limits_of(config: Config, task: str) -> tuple[int, ...]:
  """The buckets that are shorter than the texts of a task may be."""
  slots = TextSlots.of(config, config.tasks[task]).groups.values()
  most = max(slots, default=0)
  return tuple(sorted({n for n in config.data.text_buckets if n < most}))


def text_classes(
  config: Config, tokenizer: Tokenizer, sources: Mapping[str, Source]
) -> dict[str, Classes]:
  """Task -> its samples by length; nothing without `data.text_buckets`.

  A sample without texts that can be read is of the longest class.

  Args:
    config: of the run.
    tokenizer: of its texts.
    sources: open.

  Raises:
    ConfigError: for a bucket without place for a token.
    TransientError: for storage that stays unreachable.
  """
  if any(length < 3 for length in config.data.text_buckets):
    raise ConfigError(
      f"data.text_buckets={config.data.text_buckets}: a text takes at least 3 "
      "tokens, first and last ones included."
    )
  found = {}
  for task, spec in config.tasks.items():
    limits = limits_of(config, task)
    known = [name for name in spec.sources if name in sources]
    if limits and len(known) == len(spec.sources):
      by_source = {
        name: _sorted(config, task, name, sources[name], tokenizer, limits)
        for name in known
      }
      found[task] = Classes(
        limits,
        {name: part.rows for name, part in by_source.items()},
        {name: part.ends for name, part in by_source.items()},
        {name: part.file for name, part in by_source.items() if part.file},
      )
  return found


def _sorted(
  config: Config,
  task: str,
  name: str,
  source: Source,
  tokenizer: Tokenizer,
  limits: tuple[int, ...],
) -> classes.Sorted:
  slots = TextSlots.of(config, config.tasks[task])
  class_of = _ClassOf(config, name, tokenizer, slots, limits)
  class_of.source = source
  spec = to_dict(config.data.sources[name])
  key = {
    "source": {k: spec[k] for k in spec if k not in ("count", "sha256")},
    "tokenizer": tokenizer.sha256,
    "slots": to_dict(dataclasses.replace(slots, question=0, answer=0)),
    "limits": limits,
  }
  return classes.sort(
    source,
    key,
    len(limits) + 1,
    class_of,
    f"the captions of {name!r}",
    processes=config.data.num_workers,
  )


class _ClassOf:
  """Index -> class. Travels to processes, which open their own files."""

  def __init__(
    self,
    config: Config,
    name: str,
    tokenizer: Tokenizer,
    slots: TextSlots,
    limits: tuple[int, ...],
  ):
    self._config, self._name, self._tokenizer = config, name, tokenizer
    self._slots, self._limits = slots, limits
    self.source: Source | None = None

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "source": None}

  def __call__(self, index: int) -> int:
    if self.source is None:
      self.source = open_source(self._config, self._name)
    try:
      record = self.source.record(index)
      length = longest_text(record, self._slots, self._tokenizer)
    except DecodeError:
      length = 0
    # Without texts it will be replaced, by any sample of the longest class.
    return sum(not 0 < length <= limit for limit in self._limits)


def order_of(
  config: Config,
  sources: Mapping[str, Source],
  lengths: Mapping[str, Classes] | None,
) -> Order:
  """The order of the samples of a run."""
  sizes = {name: len(source) for name, source in sources.items()}
  return Order(config, sizes, lengths)
