"""Values that a config may take, checked before anything is opened or built.

Types and names are checked by `mico_jax.config`; here are the ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mico_jax import axes
from mico_jax.config import Config, ConfigError
from mico_jax.models import ENCODERS
from mico_jax.parallel import sharding
from mico_jax.train.state import HOST, OFFLOADABLE

# Path ("*": every entry), least and greatest value.
RANGES: tuple[tuple[str, float, float], ...] = (
  ("model.vision.image_size", 1, math.inf),
  ("model.vision.patch_size", 1, math.inf),
  ("model.vision.width", 1, math.inf),
  ("model.vision.depth", 1, math.inf),
  ("model.vision.num_heads", 1, math.inf),
  ("model.vision.drop_path_rate", 0, 0.99),
  ("model.text.width", 1, math.inf),
  ("model.text.depth", 1, math.inf),
  ("model.text.num_heads", 1, math.inf),
  ("model.text.dropout", 0, 0.99),
  ("model.embed_dim", 1, math.inf),
  ("data.inputs.*.frames", 1, math.inf),
  ("data.inputs.*.dropout", 0, 0.99),
  ("data.num_negatives", 0, math.inf),
  ("data.num_threads", 1, math.inf),
  ("data.num_workers", 0, math.inf),
  ("data.prefetch", 1, math.inf),
  ("data.cache_mib", 0, math.inf),
  ("data.timeout", 0.001, math.inf),
  ("data.max_file_bytes", 1, math.inf),
  ("data.max_bad_fraction", 0, 1),
  ("objectives.contrastive.label_smoothing", 0, 0.99),
  ("objectives.contrastive.chunk", 0, math.inf),
  ("objectives.captioning.label_smoothing", 0, 0.99),
  ("objectives.captioning.mask_prob", 0.001, 1),
  ("objectives.question_answering.mask_prob", 0.001, 1),
  ("objectives.masked_modelling.mask_prob", 0, 1),
  ("objectives.matching.group_rows", 0, math.inf),
  ("tasks.*.steps", 0, math.inf),
  ("tasks.*.batch_size", 1, math.inf),
  ("optimizer.ema", 0, 0.9999999),
  ("optimizer.warmup", 0, math.inf),
  ("optimizer.clip_norm", 0, math.inf),
  ("optimizer.lora_rank", 0, math.inf),
  ("train.steps", 1, math.inf),
  ("train.patch_dropout", 0, 0.99),
  ("train.micro_batches", 1, math.inf),
  ("train.log_every", 1, math.inf),
  ("train.checkpoint_every", 0, math.inf),
  ("train.keep", 1, math.inf),
  ("train.eval_every", 0, math.inf),
  ("train.watchdog_s", 0, math.inf),
  ("evaluation.size", 0, math.inf),
  ("evaluation.batch_size", 1, math.inf),
  ("evaluation.rerank", 0, math.inf),
  ("evaluation.captions", 0, math.inf),
  ("evaluation.questions", 0, math.inf),
  ("evaluation.hard", 0, math.inf),
  ("evaluation.texts_per_item", 0, math.inf),
  ("evaluation.bootstrap", 0, math.inf),
)


def _values(
  node: Any, parts: list[str], path: str
) -> Iterator[tuple[str, Any]]:
  """Path and value of every field that a pattern names."""
  if not parts:
    yield path, node
    return
  first, *rest = parts
  if first == "*":
    names, get = list(node), node.__getitem__
  else:
    names, get = [first], lambda name: getattr(node, name)
  for name in names:
    yield from _values(get(name), rest, f"{path}.{name}".lstrip("."))


def check_ranges(config: Config) -> None:
  """Checks every number of `RANGES`.

  Raises:
    ConfigError: naming the first field that is out of its range.
  """
  for pattern, low, high in RANGES:
    for path, value in _values(config, pattern.split("."), ""):
      if not low <= value <= high:
        limit = f" and at most {high:g}" if high < math.inf else ""
        raise ConfigError(f"{path}={value}: must be at least {low:g}{limit}.")


def check_encoder(config: Config) -> None:
  """Checks that the shared encoder can do what the run asks of it.

  Raises:
    ConfigError: naming the option that needs another encoder.
  """
  vision = config.model.vision
  if vision.encoder not in ENCODERS:
    raise ConfigError(
      f"model.vision.encoder={vision.encoder!r} is unknown; known: "
      f"{', '.join(ENCODERS)}."
    )
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
    if "masked_modelling" in task.objectives:
      raise ConfigError(
        f"tasks.{name}.objectives: masked_modelling encodes a part of the "
        f"patches, but {hint} remove that objective."
      )


def _mesh_axes(given: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The mesh axes that a rule names."""
  if given is None:
    return ()
  return (given,) if isinstance(given, str) else given


def check_mesh(config: Config, mesh: Mesh) -> None:
  """Checks that rules, batches and heads fit the device mesh.

  Raises:
    ConfigError: for unknown rules, a mesh axis that the rules do not use, a
      batch that the devices cannot share, or heads that they cannot.
  """
  name = config.parallel.rules
  rules = dict(sharding.rules_by_name(name))
  used = {axis for given in rules.values() for axis in _mesh_axes(given)}
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
  """Known parts, and devices that can reach the host's memory."""
  for part in config.parallel.offload:
    if part not in OFFLOADABLE:
      raise ConfigError(
        f"parallel.offload names {part!r}; known: {', '.join(OFFLOADABLE)}."
      )
  kinds = {m.kind for m in jax.local_devices()[0].addressable_memories()}
  if config.parallel.offload and HOST not in kinds:
    raise ConfigError(
      f"parallel.offload={config.parallel.offload}: this backend has no "
      f"memory {HOST!r}, only {', '.join(sorted(kinds))}; set it to ()."
    )


def _check_heads(config: Config, mesh: Mesh, rules: Mapping[str, Any]) -> None:
  """Whole heads on each device, where the rules split them."""
  split = math.prod(mesh.shape[axis] for axis in _mesh_axes(rules[axes.QKV]))
  heads = {"model.text.num_heads": config.model.text.num_heads}
  if config.model.vision.encoder == "vit":
    heads["model.vision.num_heads"] = config.model.vision.num_heads
  for name, count in heads.items():
    if count % split:
      raise ConfigError(
        f"{name}={count} must be a multiple of the {split} devices of the "
        "mesh that share the heads; change parallel.mesh."
      )
