"""From a batch to the inputs of objectives; each is computed once per step.

Frames of all modalities that reach the encoder as patches go through it in one
call; texts of equal length (one slot per group, subtitles included) go through
the text tower in one call; a context is built and projected once per group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import rng
from mico_jax.aliases import Batch, Params, SpecialIds
from mico_jax.config import Config, TaskConfig
from mico_jax.data.language import kinds_of
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.modalities import (
  MODALITIES,
  by_letter,
  has_text,
  letters,
  preprocessing,
)
from mico_jax.models import MiCo, forward
from mico_jax.objectives import Inputs, Mean, Selected, TextSlot, sampling
from mico_jax.objectives.base import scalar


@dataclass(frozen=True)
class EncodePlan:
  """The encodings that a task needs, derived from its objectives.

  Attributes:
    keys: modality keys, in the table's order.
    features: context letters whose embeddings are needed.
    contexts: context letters whose keys and values are needed.
    texts: groups whose text slot is needed.
    text_features: groups whose text embedding is needed.
    encoded: modality keys that must go through the encoder.
    pooled: context letters whose pooled features are needed.
    negatives: groups whose explicit negatives must be embedded.
    same: group -> the first one that holds the same texts, which are encoded
      once; itself where it is not listed.
  """

  keys: tuple[str, ...]
  features: tuple[str, ...]
  contexts: tuple[str, ...]
  texts: tuple[str, ...]
  text_features: tuple[str, ...]
  encoded: tuple[str, ...]
  pooled: tuple[str, ...] = ()
  negatives: tuple[str, ...] = ()
  same: Mapping[str, str] = field(default_factory=dict)

  def first(self, group: str) -> str:
    """The group whose encoded texts serve `group`."""
    return self.same.get(group, group)


def make_plan(selected: Selected, task: TaskConfig | None = None) -> EncodePlan:
  """The plan of a task's objectives.

  Args:
    selected: objectives with their groups.
    task: whose groups share texts of the same caption kinds; None: none do.
  """

  def groups_of(*needs: str) -> tuple[str, ...]:
    needed = {}
    for objective, groups in selected.values():
      if objective.needs.intersection(needs):
        needed.update(dict.fromkeys(groups))
    return tuple(needed)

  def contexts_of(*needs: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(letters(g) for g in groups_of(*needs)))

  def keys_of(contexts: tuple[str, ...]) -> tuple[str, ...]:
    used = {by_letter(letter).key for c in contexts for letter in c}
    return tuple(key for key in MODALITIES if key in used)

  negatives = {}
  for objective, groups in selected.values():
    negatives.update(dict.fromkeys(objective.negative_groups(groups)))
  text_groups = tuple(filter(has_text, groups_of("text")))
  feature_groups = groups_of("features")
  compared = dict.fromkeys(
    side
    for objective, groups in selected.values()
    if "features" in objective.needs
    for group in groups
    for side in objective.sides(group)
  )
  features = tuple(side for side in compared if side != "t")
  contexts, pooled = contexts_of("context"), contexts_of("pooled")
  return EncodePlan(
    keys=keys_of((*features, *contexts, *pooled, *contexts_of("pixels"))),
    features=features,
    contexts=contexts,
    texts=text_groups,
    text_features=tuple(g for g in text_groups if g in feature_groups),
    encoded=keys_of((*features, *contexts, *pooled)),
    pooled=pooled,
    negatives=tuple(negatives),
    same={} if task is None else same_texts(task, text_groups),
  )


def same_texts(task: TaskConfig, groups: Iterable[str]) -> dict[str, str]:
  """Group -> the first group that holds the same texts.

  Groups of the same caption kinds do (see `mico_jax.aliases`).
  """
  first: dict[tuple[tuple[str, float], ...], str] = {}
  return {
    group: first.setdefault(tuple(sorted(kinds_of(task, group).items())), group)
    for group in groups
  }


def _share_texts(batch: Batch, same: Mapping[str, str]) -> Batch:
  """The batch with one array for the groups that hold the same texts."""
  shared = {
    key: {group: batch[key][same.get(group, group)] for group in batch[key]}
    for key in ("text", "negative_text")
    if key in batch
  }
  return {**batch, **shared}


def features_only(plan: EncodePlan) -> EncodePlan:
  """The plan with the encodings of its features alone."""
  used = {by_letter(letter).key for c in plan.features for letter in c}
  encoded = tuple(key for key in plan.encoded if key in used)
  return dataclasses.replace(plan, contexts=(), pooled=(), encoded=encoded)


def temperatures(
  model: MiCo, params: Params, plan: EncodePlan
) -> dict[str, Mean]:
  """The temperature, and that of each context where heads have their own."""
  found = {"temperature": scalar(model.temperature(params))}
  if model.config.temperature == "head":
    for context in plan.features:
      value = model.temperature(params, (context,))
      found[f"temperature/{context}"] = scalar(value)
  return found


def letters_to_key(plan: EncodePlan) -> dict[str, str]:
  """Context letter -> modality key, for the modalities of a plan."""
  return {MODALITIES[key].letter: key for key in plan.keys}


def embed_negatives(
  model: MiCo,
  params: Params,
  ids: Int[Array, "B K L"],
  *,
  pad: int,
  row_keys: Key[Array, " B"] | None = None,
) -> tuple[Float[Array, "B K E"], Bool[Array, "B K"]]:
  """Embeddings of explicit negatives, and which of them there are."""
  rows, count, length = ids.shape
  flat = ids.reshape(rows * count, length)
  hidden = model.text(
    params,
    flat,
    row_keys=None if row_keys is None else rng.expand(row_keys, count),
    train=row_keys is not None,
  )
  pooled = model.pool_text(hidden, flat)
  feature = forward.embed_pooled_text(model, params, pooled)
  there = (ids != pad).sum(axis=2) > 2  # a token besides start and end
  return feature.reshape(rows, count, -1), there


def prepare(
  model: MiCo,
  config: Config,
  params: Params,
  batch: Batch,
  plan: EncodePlan,
  *,
  tokenizer: SpecialIds,
  row_keys: Key[Array, " B"],
  train: bool,
  partition: BatchSharding | None = None,
) -> Inputs:
  """Encodes a batch as the plan says.

  Args:
    model: from `mico_jax.models.build`.
    config: of the run.
    params: parameters, deltas merged.
    batch: of the task.
    plan: from `make_plan`.
    tokenizer: special ids.
    row_keys: one key per row.
    train: whether dropout, stochastic depth and patch dropout are on.
    partition: how the rows lie on the mesh.
  """
  batch = _share_texts(batch, plan.same)
  pixels = dict(batch.get("pixels", {}))
  missing = [key for key in plan.keys if key not in pixels]
  pixels |= preprocessing.to_pixels(
    config, batch.get("inputs", {}), missing, train=train, xp=jnp
  )
  inputs = Inputs(
    model=model,
    params=params,
    batch=batch,
    tokenizer=tokenizer,
    row_keys=row_keys,
    train=train,
    pixels=pixels,
    letters_to_key=letters_to_key(plan),
    partition=partition,
  )
  encoded = _encode(model, inputs, plan, config.train.patch_dropout)
  embedded = {
    group: forward.embed_pooled_text(model, params, pooled)
    for group, pooled in encoded.texts.items()
  }
  features = {g: embedded[plan.first(g)] for g in plan.text_features}
  return dataclasses.replace(
    inputs,
    features=forward.embed(model, params, encoded, plan.features),
    text=text_slots(batch, plan, features, pad=tokenizer.pad),
    pooled={
      context: jnp.concatenate([encoded.pooled[x] for x in context], axis=-1)
      for context in plan.pooled
    },
    contexts={
      c: forward.project(model, params, encoded, c) for c in plan.contexts
    },
    negatives=_negatives(model, inputs, plan),
  )


def _encode(
  model: MiCo, inputs: Inputs, plan: EncodePlan, patch_dropout: float
) -> forward.Encoded:
  """Runs both towers on all that the plan names."""
  batch = inputs.batch
  text_groups = dict.fromkeys(map(plan.first, plan.text_features))
  return forward.encode(
    model,
    inputs.params,
    {key: inputs.pixels[key] for key in plan.encoded if key in inputs.pixels},
    {
      key: batch["inputs"][key]
      for key in plan.encoded
      if MODALITIES[key].kind == "interface"
    },
    {group: batch["text"][group] for group in text_groups},
    pad=inputs.tokenizer.pad,
    site=lambda name: inputs.keys(name) if inputs.train else None,
    patch_dropout=patch_dropout,
  )


def text_slots(
  batch: Batch,
  plan: EncodePlan,
  features: Mapping[str, Float[Array, "B E"]],
  *,
  pad: int,
) -> dict[str, TextSlot]:
  """The text side of each group; `features`: group -> embeddings."""
  return {
    group: TextSlot(
      batch["text"][group],
      sampling.fingerprint(batch["text"][group], pad=pad),
      features.get(group),
    )
    for group in plan.texts
  }


def _negatives(
  model: MiCo, inputs: Inputs, plan: EncodePlan
) -> dict[str, tuple[Float[Array, "B K E"], Bool[Array, "B K"]]]:
  """Embeddings of the explicit negatives of each group, equal texts once."""
  texts = inputs.batch.get("negative_text", {})
  groups = [group for group in plan.negatives if group in texts]
  embedded: dict[str, tuple[Array, Array]] = {}
  for group in groups:
    first = plan.first(group)
    if first not in embedded:
      embedded[first] = embed_negatives(
        model,
        inputs.params,
        texts[group],
        pad=inputs.tokenizer.pad,
        row_keys=inputs.dropout_keys(f"contrastive/{group}/negatives"),
      )
  return {group: embedded[plan.first(group)] for group in groups}
