"""A measured number with its protocol.

A number without its split, prompts, preprocessing and coverage cannot be
compared, so every result holds them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

import mico_jax
from mico_jax.evaluation import metrics

_DIGITS = 8  # of numbers in the JSON file


@dataclasses.dataclass(frozen=True)
class Result:
  """One measured number with what is needed to compare it.

  Attributes:
    name: what was measured, e.g. "retrieval/t->va/R@1".
    value: the number; rates in [0, 1].
    interval: 95% bootstrap interval over the items; None: not a mean.
    n: items scored (queries, captions, questions).
    total: items the protocol asks for; n < total means some were unusable.
    gallery: items chosen from; 0: does not apply.
    source: name of the data source.
    split: of the source.
    prompt_sha256: of all texts shown to the model.
    preprocessing_sha256: of modes, sizes and tokenizer.
    ceiling: best value that any model could expect; None: unknown.
    baseline: value of guessing; None: unknown.
    command: command line of the evaluation.
    checkpoint_sha256: of the checkpoint's manifest; "": it has none.
    version: of this package.
    values: per-item values, for paired comparisons; not written to JSON.
  """

  name: str
  value: float
  interval: tuple[float, float] | None
  n: int
  total: int
  gallery: int = 0
  source: str = ""
  split: str = ""
  prompt_sha256: str = ""
  preprocessing_sha256: str = ""
  ceiling: float | None = None
  baseline: float | None = None
  command: str = ""
  checkpoint_sha256: str = ""
  version: str = ""
  values: Float[np.ndarray, " N"] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def as_dict(self) -> dict[str, Any]:
    """Plain values, rounded, without the per-item ones."""
    out = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name != "values"
    }
    out["coverage"] = self.n / self.total if self.total else 0.0
    return {key: _rounded(value) for key, value in out.items()}


def _rounded(value: Any) -> Any:
  if isinstance(value, tuple):
    return [_rounded(v) for v in value]
  if isinstance(value, (float, np.floating)):
    # JSON has no NaN.
    return round(float(value), _DIGITS) if np.isfinite(value) else None
  return value


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Fields that all results of an evaluation share; makes `Result`s.

  Attributes:
    source: name of the data source.
    split: of the source.
    preprocessing_sha256: of modes, sizes and tokenizer.
    command: command line of the evaluation.
    checkpoint_sha256: of the checkpoint's manifest; "": it has none.
    bootstrap: resamples of the intervals; 0: none.
    seed: of the resampling.
  """

  source: str = ""
  split: str = ""
  preprocessing_sha256: str = ""
  command: str = ""
  checkpoint_sha256: str = ""
  bootstrap: int = 1000
  seed: int = 0

  def result(
    self,
    name: str,
    values: Float[np.ndarray, " N"],
    *,
    total: int,
    prompts: Sequence[str] = (),
    gallery: int = 0,
    ceiling: float | None = None,
    baseline: float | None = None,
  ) -> Result:
    """The mean of per-item values with its interval.

    Raises:
      ValueError: for no values.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
      raise ValueError(f"{name}: no item could be scored (0 of {total}).")
    interval = None
    if self.bootstrap:
      interval = tuple(
        metrics.bootstrap_interval(values, num=self.bootstrap, seed=self.seed)
      )
    return Result(
      name=name,
      value=float(values.mean()),
      interval=interval,
      n=len(values),
      total=total,
      gallery=gallery,
      source=self.source,
      split=self.split,
      prompt_sha256=hash_texts(prompts),
      preprocessing_sha256=self.preprocessing_sha256,
      ceiling=ceiling,
      baseline=baseline,
      command=self.command,
      checkpoint_sha256=self.checkpoint_sha256,
      version=mico_jax.__version__,
      values=values,
    )


def hash_texts(texts: Sequence[str]) -> str:
  """SHA-256 of texts in their order; "" for none."""
  if not texts:
    return ""
  return hash_json(list(texts))


def hash_json(value: Any) -> str:
  """SHA-256 of a plain value written as JSON with sorted keys."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()
