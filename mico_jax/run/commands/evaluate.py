"""Measuring a checkpoint in full, as its config or the caller says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError, SourceConfig
from mico_jax.data.identity import tell
from mico_jax.evaluation import EVALUATORS, Result, evaluate
from mico_jax.evaluation.examples import Examples
from mico_jax.evaluation.suites import chosen_suite
from mico_jax.inference.omni_model import OmniModel
from mico_jax.run.checks import check_values

_MAY_CHANGE = re.compile(
  r"evaluation\.|generation\.|data\.(?:sources\.|num_|timeout"
  r"|inputs\.\w+\.(?:frames|sampling|fps|stride)=)"
)


_INDEX = (  # fields of a source that say which samples it has
  *("kind", "path", "split", "where", "size", "seed", "version", "key_dot"),
  *("options", "take", "skip", "take_by", "take_seed"),
)


def check_overrides(overrides: Sequence[str]) -> None:
  """Refuses overrides of what belongs to the checkpoint.

  Raises:
    ConfigError: naming the first one.
  """
  for text in overrides:
    if not _MAY_CHANGE.match(text):
      key = text.partition("=")[0]
      raise ConfigError(
        f"--config.{key} belongs to the checkpoint and cannot change here; "
        "evaluate takes --config.evaluation.*, --config.generation.*, "
        "--config.data.sources.* and the frames, sampling, fps and stride of "
        "--config.data.inputs.*."
      )


DATA = "data"  # name of a source that the caller gives


def on_data(config: Config, data: SourceConfig | str) -> Config:
  """A config that is evaluated on all samples of other data.

  Evaluators that measure on one kind of source only are left out; a note on
  stderr names them.

  Args:
    config: of the checkpoint.
    data: the source, or the name of one of the config.

  Raises:
    ConfigError: for an unknown name.
  """
  name, sources = DATA, dict(config.data.sources)
  if isinstance(data, str):
    name = data
    if name not in sources:
      raise ConfigError(
        f"--data {name}: no such file or folder, and no data source of the "
        f"checkpoint; its sources: {', '.join(sources) or 'none'}."
      )
  else:
    sources[name] = data
  kind = sources[name].kind
  kept, lost = [], []
  for evaluator in chosen_suite(config).evaluators:
    needed = EVALUATORS[evaluator].source_kind
    (kept if needed in ("", kind) else lost).append(evaluator)
  if lost:
    tell(
      f"{', '.join(lost)}: not measured, as data of kind {kind!r} have nothing "
      "for it."
    )
  evaluation = dataclasses.replace(
    config.evaluation, source=name, suite=",".join(kept), size=0
  )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sources=sources),
    evaluation=evaluation,
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
  data: SourceConfig | str | None = None,
) -> list[Result]:
  """Runs the evaluation suite of a checkpoint's config.

  Args:
    model: from `mico_jax.load`.
    overrides: "evaluation.size=1000" and the like; only what is measured, on
      which data and frames, and how texts are written may change, never the
      model or its preprocessing.
    command: stored in the results.
    cheap: only the evaluators that take part during training.
    examples: collects single queries; None: nothing.
    data: to measure on, all of it, instead of the config's
      `evaluation.source`; or the name of another source of the config.

  Raises:
    ConfigError: for another key, or if nothing is to be measured.
  """
  check_overrides(overrides)
  base = model.config if data is None else on_data(model.config, data)
  config = config_lib.override(base, overrides)
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
    {**model.params, "objective": model.objective_params},
    config,
    model.tokenizer,
    command=command,
    cheap=cheap,
    examples=examples,
    checkpoint_sha256=model.fingerprint,
  )
