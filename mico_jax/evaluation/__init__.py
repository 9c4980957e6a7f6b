"""Evaluation: suites of measurements and the measures themselves."""

from __future__ import annotations

from mico_jax.evaluation.caption_metrics import score_captions
from mico_jax.evaluation.report import Result, bar_chart, table, to_json, write
from mico_jax.evaluation.suites import SUITES, evaluate

__all__ = [
  "SUITES",
  "Result",
  "bar_chart",
  "evaluate",
  "score_captions",
  "table",
  "to_json",
  "write",
]
