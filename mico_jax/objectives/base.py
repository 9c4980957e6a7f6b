"""Inputs and outputs of objectives, and the sum of their terms.

An objective sees one group of the task at a time and returns one value and one
weight per row of the batch; masking, averaging over rows, averaging over the
groups of the objective and weighting live here, once:

  loss = sum over objectives of  weight * mean over groups of
         sum_rows(w * value) / sum_rows(w)

A row's weight is 0 where the batch says so (padding), where a modality of the
group is absent, or where the group's text is empty. A group without a single
row of positive weight contributes 0 and still counts in the mean over groups,
so the scale of a term does not depend on the modalities of a batch.

Source: VAST, arXiv:2305.18500, and MiCo, arXiv:2406.09412, section 3, for the
sum of objectives.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import (
  Any,
  ClassVar,
  Literal,
  NamedTuple,
  Protocol,
  runtime_checkable,
)

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt32

from mico_jax import rng
from mico_jax.aliases import Batch, Params, SpecialIds
from mico_jax.config import ConfigError, ModelConfig
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.modalities import Mode, has_text, letters, sides

Need = Literal[
  "features",
  "context",
  "text",
  "question_answer",
  "pixels",
  "pooled",
  "target",
]


class Mean(NamedTuple):
  """A mean that can be merged: sum of weighted values and of weights."""

  total: Float[Array, ""]
  count: Float[Array, ""]


@runtime_checkable
class Model(Protocol):
  """The functions of `mico_jax.models.MiCo` that objectives call; see there."""

  @property
  def tower(self) -> Any: ...  # noqa: D102
  def text(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
  def encode(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
  def token_loss(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
  def matching_logits(self, *args: Any, **options: Any) -> Any: ...  # noqa: D102
  def temperature(self, *args: Any, **options: Any) -> Float[Array, ""]: ...  # noqa: D102


class TextSlot(NamedTuple):
  """The text side of a group.

  Attributes:
    ids: padded token ids.
    fingerprint: equal for equal texts.
    feature: unit-norm embedding [B E]; None if no objective of the group
      needs features.
  """

  ids: Int[Array, "B L"]
  fingerprint: UInt32[Array, "B 2"]
  feature: Any


class Output(NamedTuple):
  """Result of an objective for one group.

  Attributes:
    values: per row, in `Objective.unit`; the base averages.
    weights: per row, the row weights of the group, possibly scaled (captioning
      scales by the number of scored tokens).
    metrics: further means to report, e.g. accuracy.
    aux: per-row arrays to look at, e.g. mined indices.
  """

  values: Float[Array, " B"]
  weights: Float[Array, " B"]
  metrics: Mapping[str, Mean]
  aux: Mapping[str, Array]


@dataclass(frozen=True)
class Inputs:
  """Inputs of the objectives of a step.

  Attributes:
    model: a `mico_jax.models.MiCo`.
    params: model parameters, deltas merged, plus "objective" if any.
    batch: the batch contract of `mico_jax.aliases`.
    tokenizer: special ids.
    row_keys: one key per row, from (seed, step, global row).
    train: whether dropout is on.
    pixels: modality key -> float32 pixels [B T Y X 3].
    letters_to_key: context letter -> modality key.
    features: context letters ("va") -> unit-norm embeddings [B E].
    text: group ("tva") -> its text side.
    contexts: context letters -> projected keys and values of the context.
    pooled: context letters -> pooled features of the encoder [B D], those of
      several letters side by side.
    negatives: group -> embeddings of its explicit negatives [B K E], and which
      of them there are [B K].
    partition: how the rows lie on the mesh; None: on one device, or the
      compiler decides.
  """

  model: Model
  params: Params
  batch: Batch
  tokenizer: SpecialIds
  row_keys: Key[Array, " B"]
  train: bool
  pixels: Mapping[str, Array] = field(default_factory=dict)
  letters_to_key: Mapping[str, str] = field(default_factory=dict)
  features: Mapping[str, Float[Array, "B E"]] = field(default_factory=dict)
  text: Mapping[str, TextSlot] = field(default_factory=dict)
  contexts: Mapping[str, Any] = field(default_factory=dict)
  pooled: Mapping[str, Float[Array, "B _"]] = field(default_factory=dict)
  negatives: Mapping[str, tuple[Float[Array, "B K E"], Bool[Array, "B K"]]] = (
    field(default_factory=dict)
  )
  partition: BatchSharding | None = None

  def keys(self, site: str) -> Key[Array, " B"]:
    """Row keys of one named draw."""
    return rng.at_site(self.row_keys, site)

  def dropout_keys(self, site: str) -> Key[Array, " B"] | None:
    """Row keys for a dropout site; None in evaluation."""
    return self.keys(f"dropout/{site}") if self.train else None

  def row_arrays(self, objective: str, group: str) -> Mapping[str, Array]:
    """Arrays of `Objective.global_arrays`, or fixed draws; may be empty."""
    return self.batch.get("draws", {}).get(objective, {}).get(group, {})

  def row_weight(self, group: str) -> Float[Array, " B"]:
    """Weight of each row for a group: 0 where padding or absent modalities."""
    weight = self.batch["weight"].astype(jnp.float32)
    for letter in letters(group):
      present = self.batch.get("present", {}).get(self.letters_to_key[letter])
      if present is not None:
        weight = weight * present.astype(jnp.float32)
    return weight

  def target(
    self, objective: str, group: str
  ) -> tuple[Shaped[Array, "B K"], Float[Array, "B K"]]:
    """The labels of a group, and 1 where there is one, else 0."""
    name = f"{objective}/{group}"
    return self.batch["target"][name], self.batch["target_weight"][name]

  def text_weight(self, ids: Int[Array, "B L"]) -> Float[Array, " B"]:
    """1 where a row has a token besides its start and its end, else 0."""
    length = (ids != self.tokenizer.pad).sum(axis=1)
    return (length > 2).astype(jnp.float32)


@dataclass(frozen=True)
class Objective(abc.ABC):
  """One training objective; the table is `mico_jax.objectives.OBJECTIVES`.

  Attributes:
    config: its options: a frozen dataclass with a field `weight`.
    name: key in the table and in the config.
    needs: inputs that the step must prepare for its groups.
    whole_batch: whether it compares rows of the whole batch, and reads only
      their features and texts; the others look at one row at a time, and at
      the row's entry of `global_arrays`.
    row_indices: names of those `global_arrays` that are indices of rows.
    drops_patches: whether it encodes a part of the patches, which not every
      encoder can do.
    unit: of its values; "": none, or not known.
    curves: those of its metrics that a report draws, besides its loss.
    lower_is_better: those of its metrics that improve downwards, as its loss
      does.
    masking_options: those of its options that say how tokens are masked; a
      text tower that predicts the next token masks none.
  """

  config: Any
  name: ClassVar[str] = ""
  needs: ClassVar[frozenset[Need]] = frozenset()
  whole_batch: ClassVar[bool] = False
  row_indices: ClassVar[frozenset[str]] = frozenset()
  drops_patches: ClassVar[bool] = False
  unit: ClassVar[str] = ""
  curves: ClassVar[tuple[str, ...]] = ()
  lower_is_better: ClassVar[frozenset[str]] = frozenset()
  masking_options: ClassVar[tuple[str, ...]] = ()

  @classmethod
  def options(cls) -> type[Any]:
    """The dataclass of its options, that of its default."""
    return type(cls().config)  # pyrefly: ignore[missing-argument]

  @classmethod
  def example_group(cls, group: str) -> str:
    """A group to test it with: the given one with a text, if it can be."""
    return group

  @classmethod
  def example(cls, group: str) -> dict[str, Any]:
    """Options to test it with, where the defaults leave it nothing to learn."""
    del group
    return {}

  @abc.abstractmethod
  def __call__(self, inputs: Inputs, group: str) -> Output:
    """Per-row values, weights and metrics of one group."""

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """The weights of `Output`, from the batch and its draws alone."""
    weights = inputs.row_weight(group)
    if "text" in self.needs and has_text(group):
      weights = weights * inputs.text_weight(inputs.batch["text"][group])
    if "target" in self.needs:
      weights = weights * inputs.target(self.name, group)[1].max(axis=1)
    return weights

  def global_arrays(self, inputs: Inputs, group: str) -> Mapping[str, Array]:
    """Facts of each row that depend on the whole batch, one entry per row.

    They are computed from features and texts alone, and come back in
    `Inputs.row_arrays`.
    """
    del inputs, group
    return {}

  def negative_groups(self, groups: tuple[str, ...]) -> tuple[str, ...]:
    """Those of its groups whose explicit negatives must be embedded."""
    del groups
    return ()

  def sides(self, group: str) -> tuple[str, ...]:
    """The text ("t") and contexts of a group whose features it needs.

    Raises:
      ValueError: for a group that does not say what they are.
    """
    return sides(group)

  def check_group(self, group: str) -> None:
    """Checks that a group has what it trains on.

    Args:
      group: of letters that exist.

    Raises:
      ConfigError: if it does not.
    """
    if "text" in self.needs and not has_text(group):
      raise ConfigError(
        f"{self.name} needs a text, and group {group!r} has none; write "
        f"'t{letters(group)}', or take contrastive for two contexts ('i:d')."
      )
    if ":" in group and not has_text(group):
      raise ConfigError(
        f"{self.name} compares no contexts; write {letters(group)!r} instead "
        f"of {group!r}."
      )

  def check_modes(self, group: str, modes: Mapping[str, Mode]) -> None:
    """Checks how the modalities of a group are preprocessed.

    Args:
      group: of a task.
      modes: modality key -> its mode in training, or in evaluation.

    Raises:
      ConfigError: for a mode that it cannot learn from.
    """
    del group, modes

  def check_rows(self, rows: int, micro: int | None = None) -> None:
    """Checks its options against the rows that it will see.

    Args:
      rows: of a task's batch.
      micro: rows of a micro-batch on one device; None: the batch is not cut.

    Raises:
      ConfigError: if they do not fit.
    """
    del rows, micro

  def chance_loss(self, rows: float) -> float | None:
    """Its loss in nats when all `rows` look the same; None: not known.

    A loss that stays there shows that nothing is learned.
    """
    del rows
    return None

  def learns(self, group: str) -> Any:
    """What the parameters of a group stand for; None: nothing of their own.

    Those of a checkpoint that stand for something else are no start for them.
    """
    del group

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """Parameters of the objective, kept under params["objective"][name]."""
    del key, model
    return {}


# Objectives of a task with their groups, by name.
Selected = Mapping[str, tuple[Objective, tuple[str, ...]]]


def weighted_mean(
  values: Float[Array, "*B"], weights: Float[Array, "*B"]
) -> Mean:
  """Sums of `values` and of `weights`; entries of weight 0 never count."""
  values = jnp.where(weights > 0, values, jnp.zeros_like(values))
  return Mean((values * weights).sum(), weights.sum())


def compute(mean: Mean) -> Float[Array, ""]:
  """The value of a mean; 0 if nothing was counted."""
  safe = jnp.where(mean.count > 0, mean.count, jnp.ones_like(mean.count))
  zero = jnp.zeros_like(mean.total)
  return jnp.where(mean.count > 0, mean.total / safe, zero)


def scalar(value: Float[Array, ""]) -> Mean:
  """A number that is averaged over steps with equal weight."""
  return Mean(value.astype(jnp.float32), jnp.ones((), jnp.float32))


def row_share(weights: Float[Array, " B"]) -> Mean:
  """The share of rows that take part."""
  return scalar((weights > 0).astype(jnp.float32).mean())


def report(
  name: str, group: str, output: Output
) -> tuple[dict[str, Mean], dict[str, Array]]:
  """Metrics and aux arrays of an objective's group, under their full names.

  The mean of its values is "loss/<objective>/<group>".
  """
  metrics = {
    f"loss/{name}/{group}": weighted_mean(output.values, output.weights)
  }
  for metric, value in output.metrics.items():
    metrics[f"{metric}/{name}/{group}"] = value
  return metrics, {f"{name}/{group}/{k}": x for k, x in output.aux.items()}


def sum_terms(
  objectives: Selected, metrics: dict[str, Mean]
) -> Float[Array, ""]:
  """The weighted sum of each objective's mean over its groups.

  Args:
    objectives: name -> (objective, groups).
    metrics: of all groups, from `report`; gets "loss/<objective>".
  """
  loss = jnp.zeros((), jnp.float32)
  for name, (objective, groups) in objectives.items():
    terms = [compute(metrics[f"loss/{name}/{group}"]) for group in groups]
    term = jnp.stack(terms).mean()
    metrics[f"loss/{name}"] = scalar(term)
    weight = jnp.asarray(objective.config.weight, term.dtype)
    loss = loss.astype(term.dtype) + weight * term
  return loss


def total_loss(
  objectives: Selected, inputs: Inputs
) -> tuple[Float[Array, ""], dict[str, Mean], dict[str, Array]]:
  """Runs every objective on its groups and sums the weighted terms.

  Args:
    objectives: name -> (objective, groups).
    inputs: prepared by `mico_jax.train.encode.prepare`.

  Returns:
    (loss, metrics, aux). Metrics: "loss", "loss/<objective>" (unweighted mean
    over its groups), "loss/<objective>/<group>", "rows/<objective>/<group>"
    (share of rows that took part) and each objective's own as
    "<metric>/<objective>/<group>". Aux: "<objective>/<group>/<name>" arrays.
  """
  metrics: dict[str, Mean] = {}
  aux: dict[str, Array] = {}
  for name, (objective, groups) in objectives.items():
    for group in groups:
      with jax.named_scope(f"{name}_{group}"):
        output = objective(inputs, group)
      metrics[f"rows/{name}/{group}"] = row_share(output.weights)
      means, arrays = report(name, group, output)
      metrics |= means
      aux |= arrays
  loss = sum_terms(objectives, metrics)
  metrics["loss"] = scalar(loss)
  return loss, metrics, aux
