"""Checks of a config, before anything is opened or built.

A check of one field is declared beside it in `mico_jax.config`. Here are the
checks that need tables of other rooms, and those of several fields together.
"""

from __future__ import annotations

import importlib
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mico_jax import axes, models
from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Key, Keys
from mico_jax.evaluation.evaluators import EVALUATORS, find_measure
from mico_jax.models import ENCODERS
from mico_jax.objectives import OBJECTIVES
from mico_jax.parallel import sharding
from mico_jax.printing import known_names
from mico_jax.train.state import HOST, OFFLOADABLE


def check_values(config: Config) -> None:
  """Checks every field against its declaration, names of tables included.

  Raises:
    ConfigError: naming the first field with a value that is not allowed.
  """
  config_lib.check(config)
  for path, value, hint in config_lib.leaves(config):
    for rule in typing.get_args(hint)[1:]:
      if isinstance(rule, Key):
        _check_keys(path, [value], (rule.table,), rule.also)
      elif isinstance(rule, Keys):
        _check_keys(path, config_lib.keys_in(value), rule.tables)
  writing = config.generation
  if writing.top_p > 0 and writing.num_beams > 1:
    raise ConfigError(
      f"generation.top_p={writing.top_p} draws tokens, which "
      f"generation.num_beams={writing.num_beams} cannot; use one beam, or 0."
    )


def _check_keys(
  path: str,
  values: Sequence[str],
  tables: Sequence[str],
  also: tuple[str, ...] = (),
) -> None:
  """Checks that every value is in one of the tables, or in `also`."""
  known = list(also)
  for name in tables:
    module, _, attribute = name.rpartition(".")
    known += getattr(importlib.import_module(module), attribute)
  for value in values:
    if value not in known:
      raise ConfigError(
        f"{path}={value!r} is unknown; {known_names(value, known)}"
      )


def lower_is_better(metric: str) -> bool:
  """Whether a metric that `train.keep_best` may name improves downwards.

  Args:
    metric: "loss", "<metric>/<objective>" with or without a group behind, or
      the name of a result, "<title>/.../<measure>".

  Raises:
    ConfigError: for any other name: its better direction is unknown.
  """
  if metric == "loss":
    return True
  kind, _, rest = metric.partition("/")
  objective = OBJECTIVES.get(rest.partition("/")[0])
  if objective is not None and kind in ("loss", *objective.curves):
    return kind == "loss" or kind in objective.lower_is_better
  measure = find_measure(metric)
  if measure is not None:
    return measure.lower_is_better
  curves = [
    f"{kind}/{name}/GROUP"
    for name, objective in OBJECTIVES.items()
    for kind in ("loss", *objective.curves)
  ]
  results = [
    f"{evaluator.title}/.../{measure}"
    for evaluator in EVALUATORS.values()
    for measure in evaluator.measures
  ]
  raise ConfigError(
    f"train.keep_best={metric!r} is unknown; known: "
    f"{', '.join(('loss', *curves, *results))}."
  )


def check_encoder(config: Config) -> None:
  """Checks that the encoder supports the objectives and options of the run.

  Raises:
    ConfigError: naming the option that needs another encoder.
  """
  vision = config.model.vision
  if ENCODERS[vision.encoder].supports_token_indices:
    return
  able = [n for n, e in ENCODERS.items() if e.supports_token_indices]
  hint = (
    f"model.vision.encoder={vision.encoder!r} encodes whole frames; choose "
    f"{' or '.join(able)}, or"
  )
  if config.train.patch_dropout:
    raise ConfigError(
      f"train.patch_dropout={config.train.patch_dropout} encodes a part of the "
      f"patches, but {hint} set train.patch_dropout=0."
    )
  for name, task in config.tasks.items():
    for objective in task.objectives:
      if objective in OBJECTIVES and OBJECTIVES[objective].drops_patches:
        raise ConfigError(
          f"tasks.{name}.objectives: {objective} encodes a part of the "
          f"patches, but {hint} remove that objective."
        )


def _mesh_axes(rule: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The mesh axes that a rule names."""
  if rule is None:
    return ()
  return (rule,) if isinstance(rule, str) else rule


def check_mesh(config: Config, mesh: Mesh) -> None:
  """Checks that rules, batches and heads fit the device mesh.

  Raises:
    ConfigError: for unknown rules, a mesh axis that the rules do not use, or
      a batch or heads that the devices cannot share equally.
  """
  name = config.parallel.rules
  rules = dict(sharding.rules_by_name(name))
  used = {axis for rule in rules.values() for axis in _mesh_axes(rule)}
  for axis, size in mesh.shape.items():
    if size > 1 and axis not in used:
      raise ConfigError(
        f"the mesh has {size} devices along {axis!r}, which parallel.rules="
        f"{name!r} does not use, so they would repeat each other's work; use "
        f"other rules ({', '.join(axes.RULES)}) or another parallel.mesh."
      )
  shards = math.prod(mesh.shape[axis] for axis in _mesh_axes(rules[axes.BATCH]))
  for task_name, task in config.tasks.items():
    where = f"tasks.{task_name}.batch_size={task.batch_size}"
    if task.batch_size < shards and jax.process_count() > 1:
      raise ConfigError(
        f"{where}: the {jax.process_count()} processes have {shards} devices "
        "that share the rows, more than there are rows; start fewer processes "
        "or enlarge the batch."
      )
    if task.batch_size % shards:
      raise ConfigError(
        f"{where} must be a multiple of the {shards} devices of the mesh that "
        "share it."
      )
  _check_heads(config, mesh, rules)
  _check_offload(config)


def _check_offload(config: Config) -> None:
  """Checks the parts to offload, and that the devices can use host memory."""
  for part in config.parallel.offload:
    if part not in OFFLOADABLE:
      raise ConfigError(
        f"parallel.offload names {part!r}; {known_names(part, OFFLOADABLE)}"
      )
  kinds = {m.kind for m in jax.local_devices()[0].addressable_memories()}
  if config.parallel.offload and HOST not in kinds:
    raise ConfigError(
      f"parallel.offload={config.parallel.offload}: this backend has no "
      f"memory {HOST!r}, only {', '.join(sorted(kinds))}; set it to ()."
    )


def _check_heads(config: Config, mesh: Mesh, rules: Mapping[str, Any]) -> None:
  """Checks that each device gets whole heads where the rules split them."""
  split = math.prod(mesh.shape[axis] for axis in _mesh_axes(rules[axes.QKV]))
  tower = models.build(config.model).tower
  heads = {f"model.text.{k}": n for k, n in tower.split_heads().items()}
  if config.model.vision.encoder == "vit":
    heads["model.vision.num_heads"] = config.model.vision.num_heads
  for name, count in heads.items():
    if count % split:
      raise ConfigError(
        f"{name}={count} must be a multiple of the {split} devices of the "
        "mesh that share the heads; change parallel.mesh."
      )
