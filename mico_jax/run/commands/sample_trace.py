"""The samples of any past step of a run, from its workdir alone."""

from __future__ import annotations

import json
import os
import pathlib
from dataclasses import dataclass
from typing import Any

from mico_jax import config as config_lib
from mico_jax import files
from mico_jax.config import Config, ConfigError, stage_at
from mico_jax.data.records import Record
from mico_jax.data.sample_trace import TraceRow, trace
from mico_jax.data.sheet import draw_records
from mico_jax.data.sources import open_sources
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.modalities import DecodeError
from mico_jax.run.setup import training_captions


@dataclass(frozen=True)
class Trace:
  """A step's samples.

  Attributes:
    step: asked for.
    task: that the step trained.
    rows: of the global batch.
  """

  step: int
  task: str
  rows: tuple[TraceRow, ...]


def run_config(workdir: str | os.PathLike[str]) -> Config:
  """The config a workdir belongs to.

  Raises:
    ConfigError: if there is none or it does not fit this version.
  """
  path = files.place(workdir) / "config.json"
  if not files.exists(path):
    raise ConfigError(
      f"{str(workdir)!r} is no workdir of a run: it has no config.json."
    )
  try:
    return config_lib.from_dict(json.loads(files.read_text(path)))
  except (UnicodeDecodeError, RecursionError, json.JSONDecodeError) as e:
    raise ConfigError(f"{path} is not valid JSON: {e}.") from e


def trace_step(
  workdir: str | os.PathLike[str],
  step: int,
  *,
  picture: str | os.PathLike[str] | None = None,
  limit: int = 16,
) -> Trace:
  """Lists the samples a step trained on, substitutes included.

  Args:
    workdir: of the run.
    step: from 0 to the run's last.
    picture: PNG to draw the samples to.
    limit: most samples drawn.

  Raises:
    ConfigError: for a step the run does not have, or a missing workdir.
  """
  config = run_config(workdir)
  if not 0 <= step < config.train.steps:
    raise ConfigError(
      f"--step {step}: the run has steps 0 to {config.train.steps - 1}."
    )
  sources = open_sources(config)
  tokenizer = None
  if stage_at(config, step).config.data.text_buckets:
    captions = training_captions(config, sources)
    tokenizer = make_tokenizer(config.data.tokenizer, captions)
  task, rows = trace(
    config, step, os.fspath(workdir), sources=sources, tokenizer=tokenizer
  )
  if picture is not None:
    records: list[tuple[str, Any]] = []
    for row in rows[:limit]:
      try:
        records.append((row.source, sources[row.source].record(row.index)))
      except DecodeError as error:
        records.append((row.source, Record(f"{row.id}: {error}")))
    out = pathlib.Path(picture)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_records(config, records).save(out)
  return Trace(step, task, tuple(rows))
