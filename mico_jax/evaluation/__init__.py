"""Evaluation: suites of measurements and the measures themselves."""

from __future__ import annotations

from mico_jax.evaluation.caption_metrics import score_captions
from mico_jax.evaluation.report import Result, bar_chart, table, to_json, write
from mico_jax.evaluation.suites import SUITES, check_evaluation, evaluate

__all__ = [
  "SUITES",
  "Result",
  "bar_chart",
  "check_evaluation",
  "evaluate",
  "score_captions",
  "table",
  "to_json",
  "write",
]
