"""Batches larger than activations allow: gradients through cached embeddings.

A contrastive loss compares every row with the whole global batch, so its step
cannot be cut into independent parts. It can be cut in time:

  1. embed micro-batch after micro-batch, keeping nothing but the embeddings
  2. the contrastive loss over the whole batch, its gradient at the embeddings;
     mining; how much each objective's rows weigh in all
  3. again micro-batch after micro-batch, now with activations: embeddings
     receive the gradient of 2, and objectives that look at one row at a time
     (matching on the mined pairs, captioning, ...) add theirs

Every draw is keyed by (seed, step, global row), so 3 repeats the dropout of 1
and the result is that of the direct step, for one more forward pass. A task
without objectives over the whole batch needs no 1: plain accumulation.

A micro-batch takes consecutive rows of every device. Mining groups must lie
within one, since contexts exist for one micro-batch at a time; texts are mined
from the whole batch, their ids are cheap.

Source: GradCache, arXiv:2101.06983, for the contrastive part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from mico_jax import rng
from mico_jax.aliases import Batch, Params, PyTree, SpecialIds
from mico_jax.config import Config, ConfigError, TaskConfig
from mico_jax.kernels.batch_sharding import BatchSharding, parts
from mico_jax.models import MiCo
from mico_jax.objectives import (
  Inputs,
  Mean,
  Selected,
  compute,
  select,
  total_loss,
)
from mico_jax.objectives.base import report, row_share, scalar, sum_terms
from mico_jax.train import encode, lora

Metrics = dict[str, Mean]
Gradient = Callable[
  ...,
  tuple[tuple[Float[Array, ""], tuple[Metrics, dict[str, Array]]], Params],
]


class Cache(NamedTuple):
  """The embeddings of every row.

  Attributes:
    features: context letters -> embeddings [B E].
    text: group -> text embeddings [B E].
    negatives: group -> embeddings of explicit negatives [B K E].
  """

  features: Mapping[str, Float[Array, "B E"]]
  text: Mapping[str, Float[Array, "B E"]]
  negatives: Mapping[str, Float[Array, "B K E"]]


def split(
  tree: PyTree, count: int, partition: BatchSharding | None = None
) -> PyTree:
  """Rows [B, ...] -> micro-batches [M, B / M, ...] of each device's rows."""
  devices = parts(partition)

  def cut(x: Shaped[Array, "B ..."]) -> Shaped[Array, "M R ..."]:
    rest = x.shape[1:]
    rows = x.shape[0] // (devices * count)
    x = x.reshape(devices, count, rows, *rest)
    x = jnp.swapaxes(x, 0, 1)
    x = x.reshape(count, devices * rows, *rest)
    return x if partition is None else partition.constrain(x, 1)

  return jax.tree.map(cut, tree)


def join(tree: PyTree, partition: BatchSharding | None = None) -> PyTree:
  """The reverse of `split`."""
  devices = parts(partition)

  def glue(x: Shaped[Array, "M R ..."]) -> Shaped[Array, "B ..."]:
    count, rows, *rest = x.shape
    x = x.reshape(count, devices, rows // devices, *rest)
    x = jnp.swapaxes(x, 0, 1).reshape(count * rows, *rest)
    return x if partition is None else partition.constrain(x)

  return jax.tree.map(glue, tree)


def check(
  config: Config,
  task: TaskConfig,
  selected: Selected,
  partition: BatchSharding | None,
) -> None:
  """Checks that micro-batches fit batch, devices and mining groups.

  Raises:
    ConfigError: if they do not.
  """
  count, devices = config.train.micro_batches, parts(partition)
  if task.batch_size % (count * devices):
    raise ConfigError(
      f"train.micro_batches={count} on {devices} devices must divide the "
      f"task's batch_size={task.batch_size}."
    )
  rows = task.batch_size // (count * devices)
  for objective, _ in selected.values():
    objective.check_rows(task.batch_size, micro=rows)


@dataclass(frozen=True, eq=False)  # hashed by identity: jit asks
class Accumulation:
  """The gradient of a task's loss in micro-batches; see the module.

  Attributes:
    model: from `mico_jax.models.build`.
    config: of the run.
    task: one of config.tasks.
    selected: objectives of the task with their groups.
    tokenizer: special ids.
    partition: how the rows lie on the mesh.
    freeze: stops gradients of parameters that are not trained.
  """

  model: MiCo
  config: Config
  task: TaskConfig
  selected: Selected
  tokenizer: SpecialIds
  partition: BatchSharding | None
  freeze: Callable[[Params], Params]

  def _merged(self, params: Params) -> Params:
    alpha = self.config.optimizer.lora_alpha
    return lora.merge(self.freeze(params), alpha=alpha)

  def _encode(
    self,
    params: Params,
    batch: Batch,
    step: Int[Array, ""],
    plan: encode.EncodePlan,
  ) -> Inputs:
    return encode.prepare(
      self.model,
      self.config,
      self._merged(params),
      batch,
      plan,
      tokenizer=self.tokenizer,
      row_keys=rng.row_keys(self.config.seed, step, batch["row"]),
      train=True,
      partition=self.partition,
    )

  @staticmethod
  def _cache_of(inputs: Inputs) -> Cache:
    slots = inputs.text.items()
    return Cache(
      features=dict(inputs.features),
      text={g: slot.feature for g, slot in slots if slot.feature is not None},
      negatives={g: feature for g, (feature, _) in inputs.negatives.items()},
    )

  def _embed(
    self,
    params: Params,
    micro: Batch,
    step: Int[Array, ""],
    plan: encode.EncodePlan,
  ) -> Cache:
    """Pass 1: the embeddings of all rows."""
    only = encode.features_only(plan)

    def body(_: None, rows: Batch) -> tuple[None, Cache]:
      return None, self._cache_of(self._encode(params, rows, step, only))

    return join(jax.lax.scan(body, None, micro)[1], self.partition)

  def _whole(
    self,
    params: Params,
    cache: Cache,
    batch: Batch,
    step: Int[Array, ""],
    plan: encode.EncodePlan,
  ) -> Inputs:
    """The whole batch as objectives see it, without tokens and contexts."""
    pad = self.tokenizer.pad
    there = {g: (batch["negative_text"][g] != pad) for g in cache.negatives}
    return Inputs(
      model=self.model,
      params=self._merged(params),
      batch=batch,
      tokenizer=self.tokenizer,
      row_keys=rng.row_keys(self.config.seed, step, batch["row"]),
      train=True,
      letters_to_key=encode.letters_to_key(plan),
      features=cache.features,
      text=encode.text_slots(batch, plan, cache.text, pad=pad),
      negatives={
        g: (feature, there[g].sum(axis=2) > 2)
        for g, feature in cache.negatives.items()
      },
      partition=self.partition,
    )

  def _within_micro(
    self, arrays: Mapping[str, Any], rows: int
  ) -> dict[str, Any]:
    """`_global_arrays` for micro-batches of `rows` rows.

    Indices of rows become positions within the micro-batch.
    """
    local = rows // parts(self.partition)  # rows of a micro-batch on a device
    whole = local * self.config.train.micro_batches  # all rows of a device

    def moved(name: str, values: Mapping[str, Array]) -> dict[str, Array]:
      indices = self.selected[name][0].row_indices
      return {
        k: (x // whole) * local + (x % whole) % local if k in indices else x
        for k, x in values.items()
      }

    return {
      name: {group: moved(name, values) for group, values in groups.items()}
      for name, groups in arrays.items()
    }

  def _global_arrays(self, inputs: Inputs) -> dict[str, Any]:
    """Facts of rows from the whole batch: objective -> group -> arrays."""
    arrays: dict[str, Any] = {}
    for name, (objective, groups) in self.selected.items():
      drawn = {g: dict(objective.global_arrays(inputs, g)) for g in groups}
      if any(drawn.values()):
        arrays[name] = drawn
    return arrays

  def _each(
    self,
    params: Params,
    rows: Batch,
    pulls: Cache,
    counts: Mapping[str, Float[Array, ""]],
    step: Int[Array, ""],
    plan: encode.EncodePlan,
  ) -> tuple[Float[Array, ""], tuple[Metrics, dict[str, Array]]]:
    """Pass 3 of one micro-batch: a value with the right gradient."""
    inputs = self._encode(params, rows, step, plan)
    products = jax.tree.map(
      lambda x, pull: (x * pull).sum(), self._cache_of(inputs), pulls
    )
    value = sum(jax.tree.leaves(products), jnp.zeros((), jnp.float32))
    metrics: Metrics = {}
    aux: dict[str, Array] = {}
    for name, (objective, groups) in self.selected.items():
      if objective.whole_batch:
        continue
      for group in groups:
        with jax.named_scope(f"{name}_{group}"):
          output = objective(inputs, group)
        means, arrays = report(name, group, output)
        metrics |= means
        aux |= arrays
        total = means[f"loss/{name}/{group}"].total
        share = objective.config.weight / len(groups)
        term = compute(Mean(total, counts[f"{name}/{group}"]))
        value = value + jnp.asarray(share, term.dtype) * term
    return value, (metrics, aux)

  def __call__(self, params: Params, batch: Batch, *, step: Int[Array, ""]):
    """((loss, (metrics, aux)), gradient), as `jax.value_and_grad` gives."""
    plan = encode.make_plan(self.selected, self.task)
    count = self.config.train.micro_batches
    micro = split(batch, count, self.partition)
    rows = batch["row"].shape[0] // count
    cache = Cache({}, {}, {})
    if plan.features or plan.negatives:
      cache = self._embed(params, micro, step, plan)

    whole = {n: v for n, v in self.selected.items() if v[0].whole_batch}

    def over_batch(params: Params, cache: Cache) -> Any:
      inputs = self._whole(params, cache, batch, step, plan)
      value, metrics, aux = total_loss(whole, inputs)
      return value, (metrics, aux)

    (value, (metrics, aux)), (grads, pulls) = jax.value_and_grad(
      over_batch, (0, 1), has_aux=True
    )(params, cache)
    inputs = self._whole(params, cache, batch, step, plan)
    counts, shares = self._weigh(inputs)
    metrics.update(shares)
    drawn = self._global_arrays(inputs)
    local = split(self._within_micro(drawn, rows), count, self.partition)
    draws = {**micro.get("draws", {}), **local}

    def body(total: Params, item: Any) -> tuple[Params, Any]:
      part, pull = item
      grads, more = jax.grad(self._each, has_aux=True)(
        params, part, pull, counts, step, plan
      )
      return jax.tree.map(jnp.add, total, grads), more

    items = ({**micro, "draws": draws}, split(pulls, count, self.partition))
    grads, (parts_of, rest) = jax.lax.scan(body, grads, items)
    metrics.update(jax.tree.map(lambda x: x.sum(axis=0), parts_of))
    aux.update(join(rest, self.partition))
    for name, groups in drawn.items():
      for group, arrays in groups.items():
        for index in self.selected[name][0].row_indices.intersection(arrays):
          aux[f"{name}/{group}/{index}"] = arrays[index]
    apart = {n: v for n, v in self.selected.items() if n not in whole}
    value = value + sum_terms(apart, metrics)
    metrics["loss"] = scalar(value)
    metrics |= encode.temperatures(self.model, params, plan)
    return (value, (metrics, aux)), grads

  def _weigh(
    self, inputs: Inputs
  ) -> tuple[dict[str, Float[Array, ""]], Metrics]:
    """Sum of the weights of all rows, and the share that takes part."""
    counts: dict[str, Float[Array, ""]] = {}
    shares: Metrics = {}
    for name, (objective, groups) in self.selected.items():
      if objective.whole_batch:
        continue
      for group in groups:
        weights = objective.weights(inputs, group)
        counts[f"{name}/{group}"] = weights.sum()
        shares[f"rows/{name}/{group}"] = row_share(weights)
    return counts, shares


def make_gradient(
  model: MiCo,
  config: Config,
  task: TaskConfig,
  tokenizer: SpecialIds,
  *,
  partition: BatchSharding | None = None,
  freeze: Callable[[Params], Params] = lambda params: params,
) -> Gradient:
  """The gradient of a task's training loss in `train.micro_batches`.

  Args:
    model: from `mico_jax.models.build`.
    config: of the run.
    task: one of config.tasks.
    tokenizer: special ids.
    partition: how the rows lie on the mesh.
    freeze: stops gradients of parameters that are not trained.

  Returns:
    gradient(params, batch, *, step) -> ((loss, (metrics, aux)), gradient).

  Raises:
    ConfigError: if micro-batches do not fit.
  """
  selected = select(config.objectives, task)
  check(config, task, selected, partition)
  return Accumulation(
    model, config, task, selected, tokenizer, partition, freeze
  )
