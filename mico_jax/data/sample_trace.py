"""Samples of a step, from the config, its sources and the logs of the run."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from mico_jax.config import Config, stage_at
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.guard import name_of
from mico_jax.data.order import SUBSTITUTES, Row
from mico_jax.data.sources import Source, open_sources
from mico_jax.data.stalled import REASON, quarantined
from mico_jax.data.text_classes import order_of, text_classes
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import DecodeError


def sample_id(source: Source, row: Row) -> str:
  """The id of a row's sample; "" if its entry is broken."""
  try:
    return source.record(row.index).id
  except DecodeError:
    return ""


def sample_name(source: Source, row: Row) -> str:
  """Name of a row's sample in messages: id, source and index."""
  return name_of(row.source, row.index, sample_id(source, row))


@dataclass(frozen=True)
class TraceRow:
  """The sample of one row of a step.

  Attributes:
    row: index in the global batch.
    source: name of the source.
    epoch: of the source in this task.
    index: of the sample that was used, in its source.
    id: of the sample that the order gives.
    substituted: id of the sample used instead; "": none.
    reason: why it was replaced, or why some of its modalities are absent.
    asked: index of the sample that the order gives.
  """

  row: int
  source: str
  epoch: int
  index: int
  id: str
  substituted: str = ""
  reason: str = ""
  asked: int = -1


def trace(
  config: Config,
  step: int,
  workdir: str | pathlib.Path = "",
  *,
  sources: Mapping[str, Source] | None = None,
  tokenizer: Tokenizer | None = None,
) -> tuple[str, list[TraceRow]]:
  """The task of a step and the samples of its global batch.

  Args:
    config: of the run, with pinned sources.
    step: any step, past or future.
    workdir: of the run, for its logs; "": none.
    sources: the sources of the config if they are open already.
    tokenizer: of the run; `data.text_buckets` need it.
  """
  config = stage_at(config, step).config
  sources = open_sources(config) if sources is None else sources
  lengths = None
  if config.data.text_buckets:
    if tokenizer is None:
      raise ValueError("data.text_buckets: the order needs the tokenizer.")
    lengths = text_classes(config, tokenizer, sources)
  order = order_of(config, sources, lengths)
  task, rows = order.rows(step)
  entries = read_bad_samples(str(workdir)) if str(workdir) else []
  bad = {e["row"]: e for e in entries if e["step"] == step}
  stalled = quarantined(str(workdir)) if str(workdir) else {}
  out = []
  for row in rows:
    traced = TraceRow(
      row.row,
      row.source,
      row.epoch,
      row.index,
      sample_id(sources[row.source], row) or f"{row.source}[{row.index}]",
      asked=row.index,
    )
    entry = stalled.get((row.source, row.index))
    if row.row in bad:
      entry = bad[row.row]
      traced = dataclasses.replace(
        traced,
        substituted=entry.get("substitute", ""),
        index=entry.get("substitute_index", row.index),
        reason=entry.get("reason", ""),
      )
    elif entry is not None and entry.get("step", 0) <= step:
      # The step was not trained yet: find what it will read instead.
      others = [order.substitute(row, n) for n in range(SUBSTITUTES)]
      for other in others:
        if (other.source, other.index) not in stalled:
          traced = dataclasses.replace(
            traced,
            substituted=sample_id(sources[other.source], other),
            index=other.index,
            reason=REASON,
          )
          break
    out.append(traced)
  return task, out
