"""One run of a sweep: an ordinary run, and its result as the sweep reads it.

    mico-jax sweep --run runs/scaling/data.256.seed0

The folder is a workdir like any other. Beside its files lies the config that
the sweep asked for, the checkpoint that it starts from if any, and at the end
the result: every measured number with its
value for each item, losses, size and time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import mico_jax
from mico_jax import config as config_lib
from mico_jax import evaluation, files, json_text
from mico_jax.config import Config, ConfigError, stages_of
from mico_jax.run.monitor import metric_log
from mico_jax.run.pretrain import Summary, Trainer
from mico_jax.run.sweep.plan import CONFIG_FILE, RESULT_FILE, hash_text
from mico_jax.run.sweep.start import planned_start
from mico_jax.train.state import abstract_params

# Of the logged steps of a part of the training, those whose mean loss is kept.
LAST = 0.25


def planned_config(folder: str) -> Config:
  """The config of a run that a sweep planned.

  Raises:
    ConfigError: for a folder without one.
  """
  path = files.place(folder) / CONFIG_FILE
  try:
    values = json.loads(files.read_text(path))
  except (FileNotFoundError, ValueError):
    raise ConfigError(
      f"--run {folder}: has no {CONFIG_FILE}, so no sweep planned it; start it "
      "with `mico-jax sweep --config`."
    ) from None
  return config_lib.from_dict(values)


def work(folder: str, *, command: str = "") -> int:
  """Trains a planned run, or resumes it, and writes its result.

  Args:
    folder: of the run.
    command: stored in its evaluation.

  Returns:
    The exit status: 0, or 128 + the signal that stopped it.

  Raises:
    ConfigError: for a folder without a plan, and whatever `pretrain` raises.
  """
  config = planned_config(folder)
  trainer = Trainer(config, folder, init=planned_start(folder), command=command)
  shapes = abstract_params(trainer.session.model, trainer.session.config)
  summary = trainer.run()
  if summary.exit_code:
    return summary.exit_code
  sizes = {
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  }
  place = files.place(folder)
  result = {
    "config_sha256": hash_text(files.read_text(place / CONFIG_FILE)),
    **describe(config, summary, sizes),
  }
  files.write_text(place / RESULT_FILE, json_text.dumps(result))
  return 0


def describe(
  config: Config, summary: Summary, sizes: dict[str, int]
) -> dict[str, Any]:
  """The result of a finished run as plain values.

  Args:
    config: as it was asked for.
    summary: of the run.
    sizes: of its model.
  """
  return {
    "version": mico_jax.__version__,
    "seed": config.seed,
    **sizes,
    "seconds": vars(summary.clock),
    "losses": last_losses(config, summary.workdir),
    "results": {r.name: _with_items(r) for r in summary.results},
  }


def _with_items(result: evaluation.Result) -> dict[str, Any]:
  """A result with its values, and the item that each is of."""
  out = result.as_dict()
  if result.values is not None:
    out["values"] = [_short(v) for v in result.values]
    items = result.items
    out["items"] = None if items is None else np.asarray(items).tolist()
  return out


def _short(value: float) -> float | int:
  return int(value) if float(value).is_integer() else round(float(value), 6)


def last_losses(config: Config, workdir: str) -> dict[str, dict[str, float]]:
  """Mean losses at the end of each part of the training.

  Args:
    config: of the run, with its stages.
    workdir: of the run.

  Returns:
    Stage ("train" before the first one) -> "loss" and its terms -> mean over
    the last quarter of what the stage logged.
  """
  records = metric_log.read_metrics(workdir)
  out = {}
  for stage in stages_of(config):
    logged = [
      r for r in records if stage.start <= r["step"] < stage.end and "loss" in r
    ]
    if logged:
      last = logged[-max(1, round(LAST * len(logged))) :]
      out[stage.name or "train"] = _means(last)
  return out


def _means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Mean of "loss" and its terms over records that have them."""
  names = sorted({k for r in records for k in r if k.startswith("loss")})
  return {
    name: float(np.mean([r[name] for r in records if name in r]))
    for name in names
  }
