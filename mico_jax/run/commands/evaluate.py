"""Measuring a checkpoint in full, as its config or the caller says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError
from mico_jax.data.identity import tell
from mico_jax.evaluation import Result, evaluate
from mico_jax.evaluation.examples import Examples
from mico_jax.inference.omni_model import OmniModel
from mico_jax.run.checks import check_values

_MAY_CHANGE = ("evaluation.", "data.sources.", "data.num_", "data.timeout")


_INDEX = (  # fields of a source that say which samples it has
  *("kind", "path", "split", "where", "size", "seed", "version", "key_dot"),
  "options",
)


def unpinned(old: Config, new: Config, overrides: Sequence[str]) -> Config:
  """A config whose sources that hold other samples now have no pin.

  The pins, count and SHA-256 of a source's index, are those of the samples that
  the checkpoint knew. A note on stderr names the sources that lose them.

  Args:
    old: of the checkpoint.
    new: with the overrides.
    overrides: may give a pin of their own.
  """
  sources = dict(new.data.sources)
  for name, spec in new.data.sources.items():
    former = old.data.sources.get(name)
    if former is None or not (spec.count or spec.sha256):
      continue
    changed = [f for f in _INDEX if getattr(spec, f) != getattr(former, f)]
    if changed:
      pinned = {o.partition("=")[0] for o in overrides}
      sources[name] = dataclasses.replace(
        spec,
        count=spec.count if f"data.sources.{name}.count" in pinned else 0,
        sha256=spec.sha256 if f"data.sources.{name}.sha256" in pinned else "",
      )
      tell(
        f"data source {name!r}: {' and '.join(changed)} given; the count and "
        "SHA-256 that the checkpoint pinned do not apply."
      )
  data = dataclasses.replace(new.data, sources=sources)
  return dataclasses.replace(new, data=data)


def evaluate_model(
  model: OmniModel,
  overrides: Sequence[str] = (),
  *,
  command: str = "",
  cheap: bool = False,
  examples: Examples | None = None,
) -> list[Result]:
  """Runs the evaluation suite of a checkpoint's config.

  Args:
    model: from `mico_jax.load`.
    overrides: "evaluation.size=1000" and the like; only what is measured and
      on which data may change, never the model or its preprocessing.
    command: stored in the results.
    cheap: only the evaluators that take part during training.
    examples: collects single queries; None: nothing.

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
  config = unpinned(model.config, config, overrides)
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
    examples=examples,
    checkpoint_sha256=model.fingerprint,
  )
