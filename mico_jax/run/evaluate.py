"""Measuring a checkpoint in full, as its config or the caller says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mico_jax import config as config_lib
from mico_jax.config import ConfigError
from mico_jax.evaluation import Result, evaluate
from mico_jax.inference import OmniModel
from mico_jax.run.checks import check_values

_MAY_CHANGE = ("evaluation.", "data.sources.", "data.num_", "data.timeout")


def evaluate_model(
  model: OmniModel,
  overrides: Sequence[str] = (),
  *,
  command: str = "",
  cheap: bool = False,
) -> list[Result]:
  """Runs the evaluation suite of a checkpoint's config.

  Args:
    model: from `mico_jax.load`.
    overrides: "evaluation.size=1000" and the like; only what is measured and
      on which data may change, never the model or its preprocessing.
    command: stored in the results.
    cheap: only retrieval and matching, as during training.

  Raises:
    ConfigError: for another key, or if nothing is to be measured.
  """
  for text in overrides:
    if not text.startswith(_MAY_CHANGE):
      key = text.partition("=")[0]
      raise ConfigError(
        f"--config.{key} belongs to the checkpoint and cannot change here; "
        "evaluate takes --config.evaluation.* and --config.data.sources.*."
      )
  config = config_lib.override(model.config, overrides)
  check_values(config)
  if not config.evaluation.source:
    known = ", ".join(config.data.sources) or "none"
    raise ConfigError(
      "the checkpoint's config names nothing to evaluate; give "
      f"--config.evaluation.source=NAME (its sources: {known})."
    )
  config = dataclasses.replace(config, model=model.model.config)
  return evaluate(
    model.model,
    model.params,
    config,
    model.tokenizer,
    command=command,
    cheap=cheap,
  )
