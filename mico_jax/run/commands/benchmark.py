"""Measuring a checkpoint on a public benchmark, by its protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mico_jax import config as config_lib
from mico_jax.config import (
  Config,
  ConfigError,
  EvaluationConfig,
  GenerationConfig,
  TaskConfig,
)
from mico_jax.data.identity import tell
from mico_jax.evaluation import evaluate
from mico_jax.evaluation.examples import Examples
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.protocols import (
  TASKS,
  BenchmarkProtocol,
  load_protocol,
  protocol_sha256,
)
from mico_jax.evaluation.protocols.report import ProtocolReport
from mico_jax.evaluation.protocols.user_copy import UserCopy, open_copy
from mico_jax.inference.omni_model import OmniModel
from mico_jax.modalities import preprocessing
from mico_jax.run.checks import check_values
from mico_jax.run.commands.evaluate import check_overrides

SOURCE = "benchmark"  # name of its source in the config
# Fields that do not change what is measured.
_FREE = ("evaluation.bootstrap", "evaluation.batch_size",
         "evaluation.examples", "data.num_", "data.timeout")  # fmt: skip


def protocol_config(
  config: Config, protocol: BenchmarkProtocol, copy: UserCopy
) -> Config:
  """The config of a checkpoint, set to measure what a protocol says.

  Model and preprocessing stay; data, groups, frames and how texts are written
  become the protocol's.
  """
  evaluator, objective = TASKS[protocol.task]
  group, kind = protocol.group, protocol.texts.kind
  task = TaskConfig(
    sources={SOURCE: 1},
    objectives={objective: (group,)},
    texts={group: {kind: 1.0}} if kind else {},
  )
  inputs = dict(config.data.inputs)
  for key, frames in protocol.frames.items():
    options = preprocessing.input_config(config, key)
    inputs[key] = dataclasses.replace(options, frames=frames)
  evaluation = EvaluationConfig(
    source=SOURCE,
    suite=evaluator,
    size=0,
    batch_size=config.evaluation.batch_size,
    groups=(protocol.context,),
    rerank=protocol.rerank,
    captions=copy.facts.count,
    texts_per_item=protocol.texts.per_item,
    silent=protocol.silent,
    options=_options(protocol, copy),
    bootstrap=config.evaluation.bootstrap or EvaluationConfig().bootstrap,
  )
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, sources={SOURCE: copy.spec}, inputs=inputs
    ),
    tasks={SOURCE: task},
    evaluation=evaluation,
    generation=GenerationConfig(**dataclasses.asdict(protocol.generation)),
  )


def _options(
  protocol: BenchmarkProtocol, copy: UserCopy
) -> Mapping[str, Mapping[str, Any]]:
  """Options of the evaluator of a protocol."""
  classes = {
    "names": copy.names,
    "labels": copy.labels,
    "templates": protocol.classes.templates,
  }
  by_task: dict[str, dict[str, Any]] = {
    "retrieval": {"each_text": True},
    "question_answering": {"score": protocol.score},
    "zero_shot": classes,
    "tagging": classes,
  }
  options = by_task.get(protocol.task, {})
  return {TASKS[protocol.task][0]: options} if options else {}


def _changes(
  planned: Config, config: Config, overrides: Sequence[str]
) -> list[str]:
  """Overrides that change what is measured, with the protocol's values."""
  values = {path: value for path, value, _ in config_lib.leaves(planned)}
  now = {path: value for path, value, _ in config_lib.leaves(config)}
  changes = []
  for path, value in now.items():
    if path.startswith(_FREE) or value == values.get(path):
      continue
    if isinstance(value, Mapping) and any(
      o.partition("=")[0].startswith(f"{path}.") for o in overrides
    ):
      continue  # its fields are listed one by one
    changes.append(f"{path}={value!r} instead of {values.get(path)!r}")
  return changes


def evaluate_protocol(
  model: OmniModel,
  name: str,
  folder: str,
  overrides: Sequence[str] = (),
  *,
  other_split: bool = False,
  command: str = "",
  examples: Examples | None = None,
) -> ProtocolReport:
  """Measures a checkpoint by a protocol.

  Args:
    model: from `mico_jax.load`.
    name: of the protocol, or path of its file.
    folder: the user's copy: official files, or shards of `data build`.
    overrides: "evaluation.rerank=0" and the like; what changes the measurement
      is listed in the report, and its metrics are renamed.
    other_split: go on where the copy lists other samples.
    command: stored in the results.
    examples: collects single queries; None: nothing.

  Raises:
    ConfigError: for an unknown protocol, a copy that is not there or not the
      split, or a checkpoint without the group.
  """
  protocol = load_protocol(name)
  check_overrides(overrides)
  _check_sources(overrides)
  copy = open_copy(
    protocol, name, folder, config=model.config, other_split=other_split
  )
  _tell_lacking(protocol, copy)
  planned = protocol_config(model.config, protocol, copy)
  config = config_lib.override(planned, overrides)
  check_values(config)
  changes = [*copy.facts.other, *_changes(planned, config, overrides)]
  present: dict[str, int] = {}

  def look(gallery: Gallery) -> None:
    present.update({k: int(v.sum()) for k, v in gallery.present.items()})
    _tell_unread(protocol, copy, present)

  results = evaluate(
    model.model,
    model.params,
    dataclasses.replace(config, model=model.model.config),
    model.tokenizer,
    source=copy.source,
    command=command,
    look=look,
    examples=examples,
  )
  return ProtocolReport(
    name=name,
    protocol=protocol,
    protocol_sha256=protocol_sha256(name),
    facts=copy.facts,
    results=results,
    rerank=config.evaluation.rerank,
    changes=tuple(changes),
    present=present,
    command=command,
    checkpoint=model.fingerprint,
  )


def _check_sources(overrides: Sequence[str]) -> None:
  for text in overrides:
    if text.startswith("data.sources."):
      raise ConfigError(
        f"--config.{text}: a protocol says which samples are measured; give "
        "the copy by --data, or leave --protocol out."
      )


def _tell_unread(
  protocol: BenchmarkProtocol, copy: UserCopy, present: Mapping[str, int]
) -> None:
  """Says on stderr what is there and could not be read."""
  for key, lost in copy.facts.lacking.items():
    unread = copy.facts.count - len(lost) - present.get(key, 0)
    if unread > 0 and key in present:
      tell(
        f"files of {key} that could not be read, or that hold none: {unread}; "
        f"{_rule(protocol, key)}."
      )


def _tell_lacking(protocol: BenchmarkProtocol, copy: UserCopy) -> None:
  """Says on stderr what the copy lacks."""
  facts = copy.facts
  absent = frozenset(facts.absent)
  _tell_lost("any file", facts.absent, facts.count, "left out and counted")
  for key, lost in facts.lacking.items():
    partly = tuple(i for i in lost if i not in absent)
    _tell_lost(f"a file of {key}", partly, facts.count, _rule(protocol, key))


def _tell_lost(what: str, lost: Sequence[str], count: int, rule: str) -> None:
  if lost:
    shown = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    tell(f"samples without {what}: {len(lost)} of {count} ({shown}); {rule}.")


def _rule(protocol: BenchmarkProtocol, key: str) -> str:
  """What becomes of a sample that lacks a modality."""
  if key in protocol.silent:
    return "zeros stand for it"
  return "left out and counted"
