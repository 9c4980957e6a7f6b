"""Training objectives: the one place that lists them.

To add one, write `mico_jax/objectives/<name>.py` with a subclass of
`Objective`, add its line here and its options to `ObjectivesConfig`; the step,
the metrics and the contract test find it here.
"""

from __future__ import annotations

from mico_jax.config import ConfigError, ObjectivesConfig, TaskConfig
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
from mico_jax.objectives.contrastive import Contrastive
from mico_jax.objectives.masked_modelling import MaskedModelling
from mico_jax.objectives.matching import Matching
from mico_jax.objectives.question_answering import QuestionAnswering

OBJECTIVES: dict[str, type[Objective]] = {
  "contrastive": Contrastive,
  "matching": Matching,
  "captioning": Captioning,
  "question_answering": QuestionAnswering,
  "masked_modelling": MaskedModelling,
}


def select(config: ObjectivesConfig, task: TaskConfig) -> Selected:
  """The objectives of a task with their options and groups.

  Raises:
    ConfigError: for an unknown objective or group, or a task without any.
  """
  chosen = {}
  for name, groups in task.objectives.items():
    if name not in OBJECTIVES:
      raise ConfigError(
        f"tasks.*.objectives: unknown objective {name!r}; known: "
        f"{', '.join(OBJECTIVES)}."
      )
    for group in groups:
      try:
        letters(group)
      except ValueError as error:
        raise ConfigError(f"tasks.*.objectives.{name}: {error}") from None
    if groups:
      chosen[name] = (OBJECTIVES[name](getattr(config, name)), tuple(groups))
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
  "select",
  "total_loss",
]
