"""Which samples a step trains on, told from config, index and bad samples."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

from mico_jax.config import Config
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.guard import name_of
from mico_jax.data.order import SUBSTITUTES, Order, Row
from mico_jax.data.sources import Source, open_sources
from mico_jax.data.stalled import REASON, quarantined
from mico_jax.modalities import DecodeError


def sample_id(source: Source, row: Row) -> str:
  """The id of a row's sample; "" where the entry is broken."""
  try:
    return source.record(row.index).id
  except DecodeError:
    return ""


def sample_name(source: Source, row: Row) -> str:
  """What names a row's sample: id, source and index."""
  return name_of(row.source, row.index, sample_id(source, row))


@dataclass(frozen=True)
class TraceRow:
  """What one row of a step trained on.

  Attributes:
    row: index in the global batch.
    source: name of the source.
    epoch: of the source in this task.
    index: number of the sample that was used, in its source.
    id: of the sample the order asked for.
    substituted: id of the sample used instead, "" if none.
    reason: why; or what of the sample was absent since it is broken.
    asked: number of the sample the order asked for.
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
) -> tuple[str, list[TraceRow]]:
  """The task of a step and the samples of its global batch.

  Args:
    config: of the run (its sources pinned).
    step: any step, past or future.
    workdir: of the run, for the substitutes.
    sources: the open sources of the config, if at hand.
  """
  sources = open_sources(config) if sources is None else sources
  order = Order(config, {n: len(s) for n, s in sources.items()})
  task, rows = order.rows(step)
  entries = read_bad_samples(str(workdir)) if str(workdir) else []
  bad = {e["row"]: e for e in entries if e["step"] == step}
  hung = quarantined(str(workdir)) if str(workdir) else {}
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
    held = hung.get((row.source, row.index))
    if row.row in bad:
      entry = bad[row.row]
      traced = dataclasses.replace(
        traced,
        substituted=entry.get("substitute", ""),
        index=entry.get("substitute_index", row.index),
        reason=entry.get("reason", ""),
      )
    elif held is not None and held.get("step", 0) <= step:
      # Not trained yet: what will be read instead.
      others = [order.substitute(row, n) for n in range(SUBSTITUTES)]
      for other in others:
        if (other.source, other.index) not in hung:
          traced = dataclasses.replace(
            traced,
            substituted=sample_id(sources[other.source], other),
            index=other.index,
            reason=REASON,
          )
          break
    out.append(traced)
  return task, out
