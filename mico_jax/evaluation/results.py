"""A measured number with its protocol.

A number without its split, prompts, preprocessing and coverage cannot be
compared, so every result holds them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import mico_jax
from mico_jax.config import ConfigError
from mico_jax.evaluation import metrics

_DIGITS = 8  # of numbers in the JSON file


@dataclasses.dataclass(frozen=True)
class Result:
  """One measured number with what is needed to compare it.

  Attributes:
    name: what was measured, e.g. "retrieval/t->va/R@1".
    value: the number; rates in [0, 1].
    interval: 95% interval over the items; None: unknown, as of a number that
      is no mean.
    n: values scored (queries, captions, questions).
    total: items the protocol asks for; n < total means some were unusable.
    gallery: items chosen from; 0: does not apply.
    source: name of the data source.
    split: of the source.
    prompt_sha256: of all texts shown to the model, or that what it writes is
      compared with.
    preprocessing_sha256: of modes, sizes, stated units and tokenizer.
    samples_sha256: of the samples that were read, in any order: ids, texts and
      labels.
    inputs_sha256: of what they show, as it was decoded and preprocessed.
    ceiling: best value that any model could expect; None: unknown.
    baseline: value of guessing; None: unknown.
    command: command line of the evaluation.
    checkpoint_sha256: of the checkpoint's manifest; "": it has none.
    version: of this package.
    values: per-item values, for paired comparisons; not written to JSON.
    items: which item each value is of, as they were resampled; None: each is
      of its own; not written to JSON.
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
  samples_sha256: str = ""
  inputs_sha256: str = ""
  ceiling: float | None = None
  baseline: float | None = None
  command: str = ""
  checkpoint_sha256: str = ""
  version: str = ""
  values: Float[np.ndarray, " N"] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )
  items: Int[np.ndarray, " N"] | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def as_dict(self) -> dict[str, Any]:
    """Plain values, rounded, without the per-item ones."""
    out = {
      f.name: getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name not in ("values", "items")
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
    preprocessing_sha256: see `Result`.
    samples_sha256: see `Result`.
    inputs_sha256: see `Result`.
    command: command line of the evaluation.
    checkpoint_sha256: of the checkpoint's manifest; "": it has none.
    bootstrap: resamples of the intervals; 0: none.
    seed: of the resampling.
    is_share: whether a named result is a number in [0, 1]; None: unknown, and
      only values of 0 and 1 are taken for shares.
  """

  source: str = ""
  split: str = ""
  preprocessing_sha256: str = ""
  samples_sha256: str = ""
  inputs_sha256: str = ""
  command: str = ""
  checkpoint_sha256: str = ""
  bootstrap: int = 1000
  seed: int = 0
  is_share: Callable[[str], bool | None] = lambda name: None

  def result(
    self,
    name: str,
    values: Float[np.ndarray, " N"],
    *,
    total: int,
    items: Int[np.ndarray, " N"] | None = None,
    prompts: Sequence[str] = (),
    gallery: int = 0,
    ceiling: float | None = None,
    baseline: float | None = None,
  ) -> Result:
    """The mean of values with its interval.

    Args:
      name: "<title>/.../<measure>".
      values: one per query, caption, ...; those of a share in [0, 1].
      total: values that the protocol asks for.
      items: which item each value is of; None: each is of its own.
      prompts: texts shown to the model, or true ones of what it writes.
      gallery: items chosen from.
      ceiling: best value that any model could expect.
      baseline: value of guessing.

    Raises:
      ConfigError: for no values.
      ValueError: for values that are no numbers.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
      raise ConfigError(f"{name}: no item could be scored (0 of {total}).")
    if not np.isfinite(values).all():
      bad = int((~np.isfinite(values)).sum())
      raise ValueError(
        f"{name}: {bad} of {len(values)} values are not finite; leave such "
        "items out and count them in `total`."
      )
    return Result(
      name=name,
      value=float(values.mean()),
      interval=self._interval(name, values, items),
      n=len(values),
      total=total,
      gallery=gallery,
      source=self.source,
      split=self.split,
      prompt_sha256=hash_texts(prompts),
      preprocessing_sha256=self.preprocessing_sha256,
      samples_sha256=self.samples_sha256,
      inputs_sha256=self.inputs_sha256,
      ceiling=ceiling,
      baseline=baseline,
      command=self.command,
      checkpoint_sha256=self.checkpoint_sha256,
      version=mico_jax.__version__,
      values=values,
      items=items,
    )

  def _interval(
    self,
    name: str,
    values: Float[np.ndarray, " N"],
    items: Int[np.ndarray, " N"] | None,
  ) -> tuple[float, float] | None:
    """The interval of a mean; None: without resamples, or of equal values.

    Equal values bound the mean only where they are shares.
    """
    if not self.bootstrap:
      return None
    options: Any = {"items": items, "num": self.bootstrap, "seed": self.seed}
    share = self.is_share(name)
    if share is None:
      share = bool(np.isin(values, (0.0, 1.0)).all())
    if share and values.min() >= 0 and values.max() <= 1:
      return tuple(metrics.share_interval(values, **options))
    if len(np.unique(values)) == 1:
      return None
    return tuple(metrics.bootstrap_interval(values, **options))


def hash_texts(texts: Sequence[str]) -> str:
  """SHA-256 of texts in their order; "" for none."""
  if not texts:
    return ""
  return hash_json(list(texts))


def hash_json(value: Any) -> str:
  """SHA-256 of a plain value written as JSON with sorted keys."""
  text = json.dumps(value, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()
