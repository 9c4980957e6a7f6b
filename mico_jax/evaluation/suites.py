"""Suites: named lists of evaluators, and the evaluation that runs them.

An evaluation reads its gallery once, embeds every modality once, and hands both
to each evaluator of `evaluation.suite`. The config determines what is measured:
retrieval of the groups in `evaluation.groups` (default: those that the tasks
train), and matching, captions and questions of the groups that the tasks train.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import jax

from mico_jax import config as config_lib
from mico_jax.aliases import Params
from mico_jax.config import Config, ConfigError
from mico_jax.data.language import STORY
from mico_jax.data.samples import keys_of
from mico_jax.data.sources import Source, open_source
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.evaluation.attention_tiles import add_attention
from mico_jax.evaluation.evaluator import SHARE, Evaluator, Job, Needs
from mico_jax.evaluation.evaluators import EVALUATORS, find_measure, is_share
from mico_jax.evaluation.examples import Examples
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.queries import evaluated_groups
from mico_jax.evaluation.results import Protocol, Result
from mico_jax.evaluation.sameness import gallery_hashes
from mico_jax.kernels import target
from mico_jax.modalities import WHOLE, has_words
from mico_jax.models import MiCo, build
from mico_jax.printing import known_names
from mico_jax.train import lora


@dataclasses.dataclass(frozen=True)
class Suite:
  """A list of evaluators under one name.

  Attributes:
    evaluators: keys of `EVALUATORS`, in the order of their results.
    distinct: the gallery is scenes of OmniWorld whose captions all differ,
      instead of the first samples of the source.
  """

  evaluators: tuple[str, ...]
  distinct: bool = False


_RETRIEVAL = ("text_retrieval", "item_pairs", "instance_pairs", "matching")
_WRITING = ("captions", "questions")
SUITES: dict[str, Suite] = {
  "omniworld": Suite((*_RETRIEVAL, "hard_galleries", *_WRITING), distinct=True),
  "retrieval": Suite((*_RETRIEVAL, *_WRITING)),
  "classification": Suite(("zero_shot", "linear_probe")),
  # what the protocols of `mico_jax.evaluation.protocols` choose from
  "benchmarks": Suite(
    ("text_retrieval", "captions", "open_questions", "zero_shot", "tagging")
  ),
  "probing": Suite(("linear_probe", "nearest", "few_shot", "regression")),
  "embeddings": Suite(("health",)),
  "heads": Suite(
    ("classifier", "regressor", "forecasting", "reidentification")
  ),
}


def chosen_suite(config: Config) -> Suite:
  """The evaluators that `evaluation.suite` names, each once.

  The field holds names of suites and evaluators, separated by commas.

  Raises:
    ConfigError: for an unknown name, or none.
  """
  evaluators: dict[str, None] = {}
  distinct = False
  for name in config_lib.keys_in(config.evaluation.suite):
    if name in SUITES:
      evaluators.update(dict.fromkeys(SUITES[name].evaluators))
      distinct |= SUITES[name].distinct
    elif name in EVALUATORS:
      evaluators[name] = None
    else:
      raise ConfigError(
        f"unknown evaluation.suite={name!r}; known: "
        f"{', '.join((*SUITES, *EVALUATORS))}."
      )
  return Suite(tuple(evaluators), distinct)


def make_evaluator(config: Config, name: str) -> Evaluator:
  """An evaluator with its options.

  Raises:
    ConfigError: for an option that it does not have, or a wrong value.
  """
  options = config.evaluation.options.get(name, {})
  where = f"evaluation.options.{name}"
  return config_lib.from_dict(options, EVALUATORS[name], where=where)


def active_evaluators(
  config: Config, *, cheap: bool = False
) -> list[tuple[Evaluator, Needs]]:
  """The evaluators of the suite that have something to measure.

  Args:
    config: of the run.
    cheap: only those that take part during training.
  """
  active = []
  for name in chosen_suite(config).evaluators:
    evaluator = make_evaluator(config, name)
    needs = evaluator.needs(config)
    if needs is not None and (evaluator.cheap or not cheap):
      active.append((evaluator, needs))
  return active


def _all_needs(active: Sequence[tuple[Evaluator, Needs]]) -> Needs:
  return functools.reduce(operator.or_, (n for _, n in active), Needs())


def _check_source(config: Config) -> None:
  """The source exists and is of a kind that all evaluators can measure on."""
  settings, sources = config.evaluation, config.data.sources
  if settings.source not in sources:
    raise ConfigError(
      f"evaluation.source={settings.source!r} is no data source; known: "
      f"{', '.join(sorted(sources))}."
    )
  kind = sources[settings.source].kind
  for name in chosen_suite(config).evaluators:
    needed = EVALUATORS[name].source_kind
    if needed not in ("", kind):
      raise ConfigError(
        f"evaluation.suite={settings.suite!r}: {name} needs an {needed} "
        f"source; {settings.source!r} is of kind {kind!r}: use other "
        "evaluators, such as those of 'retrieval'."
      )


def check_evaluation(config: Config) -> None:
  """Checks all that `config.evaluation` names, before a run is trained.

  Raises:
    ConfigError: for an unknown suite, source or group, a group without a
      head, a file that cannot be read, or nothing to measure.
  """
  if not config.evaluation.source:
    return
  _check_source(config)
  for name in config.evaluation.options:
    if name not in EVALUATORS:
      raise ConfigError(
        f"evaluation.options names {name!r}; {known_names(name, EVALUATORS)}"
      )
  try:
    for name in EVALUATORS:
      make_evaluator(config, name).check(config)
    active = active_evaluators(config)
    model = build(config.model)
    for group in _all_needs(active).embed:
      model.head(group)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"config.evaluation: {error}") from None
  if not active:
    settings = config.evaluation
    reason = "set evaluation.groups, e.g. ('v', 'a', 'va')."
    if settings.groups:
      reason = (
        f"evaluation.suite={settings.suite!r} measures only groups that a task "
        "of the checkpoint trains for it, or needs options or another kind of "
        "data; `mico-jax evaluate --help` describes each."
      )
    raise ConfigError(f"nothing to evaluate: {reason}")


def _distinct_scenes(config: Config, source: Source) -> list[int]:
  """Indices of scenes whose captions all differ.

  Raises:
    ConfigError: if the source is no OmniWorld.
  """
  settings = config.evaluation
  if not isinstance(source, OmniWorldSource):
    raise ConfigError(
      f"evaluation.suite={settings.suite!r} needs an omniworld source; "
      f"{settings.source!r} is another kind: use 'retrieval'."
    )
  stories = any(map(has_words, evaluated_groups(config)))
  kind = STORY if stories else WHOLE
  return source.world.gallery(settings.size or 256, kind=kind)


def evaluate(
  model: MiCo,
  params: Params,
  config: Config,
  tokenizer: Tokenizer,
  *,
  source: Source | None = None,
  cheap: bool = False,
  command: str = "",
  workdir: str = "",
  examples: Examples | None = None,
  checkpoint_sha256: str = "",
  look: Callable[[Gallery], None] | None = None,
) -> list[Result]:
  """Runs the suite of a config.

  Args:
    model: from `mico_jax.models.build`.
    params: its parameters, with deltas and those of objectives, if any.
    config: of the run; `config.evaluation` says what is measured.
    tokenizer: of the run.
    source: the open source; None: opened here.
    cheap: only the evaluators that take part during training.
    command: command line, stored in the results.
    workdir: of the run, where samples that stall are listed; "": nowhere.
    examples: collects single queries and what they show; None: nothing.
    checkpoint_sha256: of the checkpoint's manifest, stored in the results.
    look: gets the gallery before it is measured, to see what could be read.

  Raises:
    ConfigError: for an unknown suite or source, or nothing to measure.
  """
  settings = config.evaluation
  if not settings.source:
    raise ConfigError("evaluation.source is empty; name a data source.")
  check_evaluation(config)
  active = active_evaluators(config, cheap=cheap)
  if not active:
    return []
  if source is None:
    source = open_source(config, settings.source)
  params = lora.merge(params, alpha=config.optimizer.lora_alpha)
  embedder = Embedder(model, params, config, tokenizer, workdir=workdir)
  whole = _all_needs(active_evaluators(config))
  protocol = Protocol(
    source=settings.source,
    split=config.data.sources[settings.source].split,
    preprocessing_sha256=embedder.preprocessing_sha256(
      keys_of((*whole.embed, *whole.read)), settings.source
    ),
    command=command,
    checkpoint_sha256=checkpoint_sha256,
    bootstrap=settings.bootstrap,
    seed=config.seed,
    is_share=is_share,
  )
  # Parameters on one device are evaluated there, also on a host with several.
  with target.alone() if _on_one_device(params) else contextlib.nullcontext():
    job = _read_gallery(embedder, source, protocol, active, cheap=cheap)
    if look is not None:
      look(job.gallery)
    if examples is not None:
      examples.count = settings.examples
      job = dataclasses.replace(job, examples=examples)
    results = [r for e, _ in active for r in _measured(e, job)]
    if examples is not None:
      records = job.gallery.records
      examples.show(config, settings.source, records)
      add_attention(examples.contents, embedder, settings.source, records)
  return results


def _read_gallery(
  embedder: Embedder,
  source: Source,
  protocol: Protocol,
  active: Sequence[tuple[Evaluator, Needs]],
  *,
  cheap: bool,
) -> Job:
  """Reads and embeds the gallery with all that the evaluators need."""
  config, needs = embedder.config, _all_needs(active)
  distinct = chosen_suite(config).distinct
  gallery = embedder.embed_gallery(
    protocol.source,
    needs.embed,
    source=source,
    size=config.evaluation.size,
    indices=_distinct_scenes(config, source) if distinct else None,
    also_read=needs.read,
    keep_batches=needs.batches,
    keep_pooled=needs.pooled,
  )
  samples, inputs = gallery_hashes(
    gallery.records,
    gallery.contents,
    gallery.repeats,
    config.evaluation.label,
  )
  protocol = dataclasses.replace(
    protocol, samples_sha256=samples, inputs_sha256=inputs
  )
  return Job(embedder, source, gallery, protocol, cheap)


def _measured(evaluator: Evaluator, job: Job) -> list[Result]:
  """The results of an evaluator, checked against its declaration.

  Raises:
    ValueError: for a name or range that it does not declare, as tables and
      charts would not know how to show the result.
  """
  results = evaluator.measure(job)
  for result in results:
    measure = find_measure(result.name, [type(evaluator)])
    if measure is None:
      known = ", ".join(evaluator.measures)
      raise ValueError(
        f"evaluator {evaluator.name!r} named a result {result.name!r}; "
        f"expected '{evaluator.title}/.../<measure>', a measure of: {known}."
      )
    if measure.unit == SHARE and (result.value < 0 or result.value > 1):
      raise ValueError(
        f"{result.name}={result.value}: expected a share in [0, 1]; give its "
        f"measure in {type(evaluator).__name__}.measures another unit."
      )
  return results


def _on_one_device(params: Params) -> bool:
  """Whether no array is spread over several devices."""
  arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
  return all(len(x.sharding.device_set) == 1 for x in arrays)
