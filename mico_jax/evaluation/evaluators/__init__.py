"""Evaluators: the one place that lists them.

To add one, write `mico_jax/evaluation/evaluators/<name>.py` with a subclass of
`Evaluator` and add its line here. Configs name it in `evaluation.suite`;
tables, charts, reports, `mico-jax evaluate --help` and the reference pages read
what they show from the class.
"""

from __future__ import annotations

from collections.abc import Iterable

from mico_jax.evaluation.evaluator import Evaluator, Measure
from mico_jax.evaluation.evaluators.captions import Captions
from mico_jax.evaluation.evaluators.classifier import Classifier
from mico_jax.evaluation.evaluators.few_shot import FewShot
from mico_jax.evaluation.evaluators.forecasting import Forecasting
from mico_jax.evaluation.evaluators.hard_galleries import HardGalleries
from mico_jax.evaluation.evaluators.health import Health
from mico_jax.evaluation.evaluators.instance_pairs import InstancePairs
from mico_jax.evaluation.evaluators.item_pairs import ItemPairs
from mico_jax.evaluation.evaluators.linear_probe import LinearProbe
from mico_jax.evaluation.evaluators.matching import Matching
from mico_jax.evaluation.evaluators.nearest import Nearest
from mico_jax.evaluation.evaluators.open_questions import OpenQuestions
from mico_jax.evaluation.evaluators.questions import Questions
from mico_jax.evaluation.evaluators.regression import Regression
from mico_jax.evaluation.evaluators.regressor import Regressor
from mico_jax.evaluation.evaluators.reidentification import Reidentification
from mico_jax.evaluation.evaluators.tagging import Tagging
from mico_jax.evaluation.evaluators.text_retrieval import TextRetrieval
from mico_jax.evaluation.evaluators.zero_shot import ZeroShot

EVALUATORS: dict[str, type[Evaluator]] = {
  "text_retrieval": TextRetrieval,
  "item_pairs": ItemPairs,
  "instance_pairs": InstancePairs,
  "matching": Matching,
  "hard_galleries": HardGalleries,
  "captions": Captions,
  "questions": Questions,
  "open_questions": OpenQuestions,
  "zero_shot": ZeroShot,
  "linear_probe": LinearProbe,
  "tagging": Tagging,
  "nearest": Nearest,
  "few_shot": FewShot,
  "regression": Regression,
  "classifier": Classifier,
  "regressor": Regressor,
  "forecasting": Forecasting,
  "reidentification": Reidentification,
  "health": Health,
}


def find_measure(
  result: str, evaluators: Iterable[type[Evaluator]] | None = None
) -> Measure | None:
  """The measure of a result named "<title>/.../<measure>"; None: unknown.

  Args:
    result: name, such as "retrieval/t->va/R@1".
    evaluators: that may have made it; None: those of the table.
  """
  title, _, _ = result.partition("/")
  _, _, last = result.rpartition("/")
  for evaluator in EVALUATORS.values() if evaluators is None else evaluators:
    if evaluator.title == title and last in evaluator.measures:
      return evaluator.measures[last]
  return None


def is_share(result: str) -> bool | None:
  """Whether a named result is a number in [0, 1]; None: an unknown name."""
  measure = find_measure(result)
  return None if measure is None else measure.is_share
