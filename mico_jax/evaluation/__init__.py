"""Evaluation: evaluators, suites of them, and the measures themselves."""

from __future__ import annotations

from mico_jax.evaluation.caption_metrics import score_captions
from mico_jax.evaluation.evaluator import Evaluator, Measure
from mico_jax.evaluation.evaluators import EVALUATORS, find_measure
from mico_jax.evaluation.examples import Examples
from mico_jax.evaluation.report import bar_chart, table, to_json, to_rows, write
from mico_jax.evaluation.results import Result
from mico_jax.evaluation.suites import SUITES, check_evaluation, evaluate

__all__ = [
  "EVALUATORS",
  "SUITES",
  "Evaluator",
  "Examples",
  "Measure",
  "Result",
  "bar_chart",
  "check_evaluation",
  "evaluate",
  "find_measure",
  "score_captions",
  "table",
  "to_json",
  "to_rows",
  "write",
]
