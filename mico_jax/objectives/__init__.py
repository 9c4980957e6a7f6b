"""Training objectives: the one place that lists them.

To add one, write `mico_jax/objectives/<name>.py` with a subclass of `Objective`
and a dataclass of its options, and add its line here; the step, metrics,
reports, plans, reference pages and the contract test find it here. A config
sets its options by `objectives.options={"<name>": {"<option>": value}}`.
"""

from __future__ import annotations

import dataclasses

from mico_jax.config import (
  ConfigError,
  ObjectivesConfig,
  TaskConfig,
  from_dict,
)
from mico_jax.modalities import letters
from mico_jax.objectives.base import (
  Inputs,
  Mean,
  Objective,
  Output,
  Selected,
  TextSlot,
  compute,
  total_loss,
)
from mico_jax.objectives.captioning import Captioning
from mico_jax.objectives.classification import Classification
from mico_jax.objectives.contrastive import Contrastive
from mico_jax.objectives.forecasting import Forecasting
from mico_jax.objectives.masked_modelling import MaskedModelling
from mico_jax.objectives.matching import Matching
from mico_jax.objectives.question_answering import QuestionAnswering
from mico_jax.objectives.regression import Regression
from mico_jax.objectives.reidentification import Reidentification

OBJECTIVES: dict[str, type[Objective]] = {
  "contrastive": Contrastive,
  "matching": Matching,
  "captioning": Captioning,
  "question_answering": QuestionAnswering,
  "masked_modelling": MaskedModelling,
  "classification": Classification,
  "regression": Regression,
  "forecasting": Forecasting,
  "reidentification": Reidentification,
}


# Objectives whose options are fields of `ObjectivesConfig`.
FIELDS = {f.name for f in dataclasses.fields(ObjectivesConfig)} - {"options"}


def make_objective(config: ObjectivesConfig, name: str) -> Objective:
  """An objective of the table with its options.

  Raises:
    ConfigError: for an option that it does not have, or a wrong value.
  """
  kind = OBJECTIVES[name]
  if name in FIELDS:
    return kind(getattr(config, name))
  options = config.options.get(name, {})
  where = f"objectives.options.{name}"
  return kind(from_dict(options, kind.options(), where=where))


def _check_options(config: ObjectivesConfig) -> None:
  for name in config.options:
    if name in FIELDS:
      raise ConfigError(
        f"objectives.options names {name!r}, whose options are fields: set "
        f"objectives.{name}.<option>."
      )
    if name not in OBJECTIVES:
      known = [key for key in OBJECTIVES if key not in FIELDS]
      raise ConfigError(
        f"objectives.options names {name!r}; known: "
        f"{', '.join(known) or 'none, all objectives have fields'}."
      )


def select(config: ObjectivesConfig, task: TaskConfig) -> Selected:
  """The objectives of a task with their options and groups.

  Raises:
    ConfigError: for an unknown objective or group, wrong options, or a task
      without any.
  """
  _check_options(config)
  chosen = {}
  for name, groups in task.objectives.items():
    if name not in OBJECTIVES:
      raise ConfigError(
        f"tasks.*.objectives: unknown objective {name!r}; known: "
        f"{', '.join(OBJECTIVES)}."
      )
    objective = make_objective(config, name)
    for group in groups:
      try:
        letters(group)
        objective.check_group(group)
      except ValueError as error:
        raise ConfigError(f"tasks.*.objectives.{name}: {error}") from None
    if groups:
      chosen[name] = (objective, tuple(groups))
  if not chosen:
    raise ConfigError(
      "tasks.*.objectives: a task needs at least one objective with a group, "
      'such as {"contrastive": ("tv",)}.'
    )
  return chosen


__all__ = [
  "OBJECTIVES",
  "Inputs",
  "Mean",
  "Objective",
  "Output",
  "Selected",
  "TextSlot",
  "compute",
  "make_objective",
  "select",
  "total_loss",
]
