"""From a batch to what objectives read: everything is computed once per step.

Frames of all modalities that reach the encoder as patches go through it in one
call; texts of equal length (one slot per group, subtitles included) go through
the text tower in one call; a context is built and projected once per group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.config import Config, InputConfig, TaskConfig
from mico_jax.data.language import kinds_of
from mico_jax.kernels.partition import RowPartition
from mico_jax.modalities import MODALITIES, Geometry, by_letter, letters
from mico_jax.objectives import Inputs, Selected, TextSlot, draws
from mico_jax.types import Batch, Params


@dataclass(frozen=True)
class Plan:
  """What a task needs, derived from its objectives.

  Attributes:
    keys: modality keys, in the table's order.
    features: context letters whose embeddings are needed.
    contexts: context letters whose keys and values are needed.
    texts: groups whose text slot is needed.
    text_features: groups whose text embedding is needed.
    encoded: modality keys that must go through the encoder.
    negatives: groups whose explicit negatives must be embedded.
  """

  keys: tuple[str, ...]
  features: tuple[str, ...]
  contexts: tuple[str, ...]
  texts: tuple[str, ...]
  text_features: tuple[str, ...]
  encoded: tuple[str, ...]
  negatives: tuple[str, ...] = ()


def make_plan(selected: Selected) -> Plan:
  """The plan of a task's objectives."""

  def groups_of(*needs: str) -> tuple[str, ...]:
    found = {}
    for objective, groups in selected.values():
      if objective.needs.intersection(needs):
        found.update(dict.fromkeys(groups))
    return tuple(found)

  def contexts_of(*needs: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(letters(g) for g in groups_of(*needs)))

  def keys_of(contexts: tuple[str, ...]) -> tuple[str, ...]:
    used = {by_letter(letter).key for c in contexts for letter in c}
    return tuple(key for key in MODALITIES if key in used)

  negatives = {}
  for objective, groups in selected.values():
    negatives.update(dict.fromkeys(objective.negative_groups(groups)))
  text_groups = groups_of("text")
  feature_groups = groups_of("features")
  features, contexts = contexts_of("features"), contexts_of("context")
  return Plan(
    keys=keys_of((*features, *contexts, *contexts_of("pixels"))),
    features=features,
    contexts=contexts,
    texts=text_groups,
    text_features=tuple(g for g in text_groups if g in feature_groups),
    encoded=keys_of((*features, *contexts)),
    negatives=tuple(negatives),
  )


def share_texts(batch: Batch, task: TaskConfig) -> Batch:
  """The batch with one array for the groups that hold the same texts.

  Groups of the same caption kinds do (see `mico_jax.types`); what is one array
  is encoded once.
  """
  if "text" not in batch:
    return batch
  first: dict[tuple[tuple[str, float], ...], str] = {}
  names = {
    group: first.setdefault(tuple(sorted(kinds_of(task, group).items())), group)
    for group in batch["text"]
  }
  shared = {
    key: {group: batch[key][name] for group, name in names.items()}
    for key in ("text", "negative_text")
    if key in batch
  }
  return {**batch, **shared}


def features_only(plan: Plan) -> Plan:
  """The plan without contexts, and without what only they need."""
  used = {by_letter(letter).key for c in plan.features for letter in c}
  encoded = tuple(key for key in plan.encoded if key in used)
  return dataclasses.replace(plan, contexts=(), encoded=encoded)


def letters_to_key(plan: Plan) -> dict[str, str]:
  """Context letter -> modality key, for the modalities of a plan."""
  return {MODALITIES[key].letter: key for key in plan.keys}


def input_config(config: Config, key: str) -> InputConfig:
  """The input options of a modality: the config's, or its record's."""
  return config.data.inputs.get(key, MODALITIES[key].default_input)


def geometry(config: Config, key: str) -> Geometry:
  """Sizes that the preprocessing of a modality needs on the device."""
  return Geometry(
    frames=input_config(config, key).frames,
    size=config.model.vision.image_size,
    audio=config.data.audio,
    max_pixels=config.data.max_pixels,
  )


def to_pixels(
  config: Config, batch: Batch, keys: tuple[str, ...], *, train: bool
) -> dict[str, Array]:
  """Normalises what travelled: modality key -> float32 [B T Y X 3].

  An entry of batch["pixels"] is taken as it is.

  Raises:
    KeyError: if the batch lacks a modality.
  """
  pixels = dict(batch.get("pixels", {}))
  for key in keys:
    modality = MODALITIES[key]
    if key in pixels or modality.kind != "knowledge":
      continue
    options = input_config(config, key)
    name = options.mode
    if not train and options.eval_mode:
      name = options.eval_mode
    mode = modality.mode(name, train=train)
    pixels[key] = mode.to_pixels(
      batch["inputs"][key], geometry=geometry(config, key), xp=jnp
    )
  return pixels


def encode_pixels(
  model: Any,
  params: Params,
  pixels: Mapping[str, Array],
  *,
  row_keys: Key[Array, " B"] | None = None,
  patch_keys: Key[Array, " B"] | None = None,
  patch_dropout: float = 0.0,
) -> dict[str, Float[Array, "B T L D"]]:
  """Tokens of every modality, in one encoder call per input shape.

  Args:
    model: the model.
    params: its parameters.
    pixels: modality key -> frames.
    row_keys: for stochastic depth; None: none.
    patch_keys: for patch dropout; None: none.
    patch_dropout: fraction of patches dropped, the same ones in all frames of
      a row, so that aligned modalities keep the same places.
  """
  groups: dict[tuple[Any, ...], list[str]] = {}
  for key, value in pixels.items():
    shared = MODALITIES[key].embedding == "patch"
    name = ("patch", *value.shape[2:]) if shared else (key,)
    groups.setdefault(name, []).append(key)
  tokens = {}
  for keys in groups.values():
    frames = [pixels[key].shape[1] for key in keys]
    parts = [pixels[key] for key in keys]
    joined = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    kept = None
    if patch_keys is not None and patch_dropout > 0 and joined.ndim == 5:
      patch = model.config.vision.patch_size
      total = (joined.shape[2] // patch) * (joined.shape[3] // patch)
      count = max(1, round((1 - patch_dropout) * total))
      kept = draws.row_subset(patch_keys, total, count)
    encoded = model.encode(
      params,
      keys[0],
      joined,
      token_indices=kept,
      row_keys=row_keys,
      train=row_keys is not None,
    )
    start = 0
    for key, count in zip(keys, frames, strict=True):
      tokens[key] = encoded[:, start : start + count]
      start += count
  return tokens


def encode_texts(
  model: Any,
  params: Params,
  slots: Mapping[str, Array],
  *,
  row_keys: Key[Array, " B"] | None = None,
) -> dict[str, Float[Array, "B L W"]]:
  """Hidden states of several texts per row, in one call per length.

  Slots that are the same array are encoded once.
  """
  by_length: dict[int, list[str]] = {}
  same: dict[int, str] = {}
  alias = {name: same.setdefault(id(ids), name) for name, ids in slots.items()}
  for name, ids in slots.items():
    if alias[name] == name:
      by_length.setdefault(ids.shape[1], []).append(name)
  hidden = {}
  for length, names in by_length.items():
    stacked = jnp.stack([slots[name] for name in names], axis=1)
    rows, count = stacked.shape[:2]
    keys = None if row_keys is None else draws.expand(row_keys, count)
    out = model.text(
      params,
      stacked.reshape(rows * count, length),
      row_keys=keys,
      train=keys is not None,
    )
    out = out.reshape(rows, count, length, -1)
    for index, name in enumerate(names):
      hidden[name] = out[:, index]
  return {name: hidden[first] for name, first in alias.items()}


def embed_negatives(
  model: Any,
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
    row_keys=None if row_keys is None else draws.expand(row_keys, count),
    train=row_keys is not None,
  )
  feature = model.embed(params, "t", {"t": model.pool_text(hidden)})
  there = (ids != pad).sum(axis=2) > 2  # a token besides start and end
  return feature.reshape(rows, count, -1), there


def prepare(
  model: Any,
  config: Config,
  params: Params,
  batch: Batch,
  plan: Plan,
  *,
  tokenizer: draws.SpecialIds,
  row_keys: Key[Array, " B"],
  train: bool,
  partition: RowPartition | None = None,
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
  pixels = to_pixels(config, batch, plan.keys, train=train)
  site = lambda name: draws.at_site(row_keys, name) if train else None
  tokens: dict[str, Array] = {}
  pooled: dict[str, Array] = {}
  encoded = encode_pixels(
    model,
    params,
    {key: pixels[key] for key in plan.encoded if key in pixels},
    row_keys=site("dropout/encode"),
    patch_keys=site("patch_dropout"),
    patch_dropout=config.train.patch_dropout,
  )
  for key, value in encoded.items():
    letter = MODALITIES[key].letter
    tokens[letter] = value
    pooled[letter] = model.pool(params, key, value)

  slots: dict[str, Array] = {g: batch["text"][g] for g in plan.text_features}
  interfaces = [k for k in plan.encoded if MODALITIES[k].kind == "interface"]
  for key in interfaces:
    slots[f"<{key}>"] = batch["inputs"][key]
  hidden = encode_texts(model, params, slots, row_keys=site("dropout/text"))
  masks = {}
  for key in interfaces:
    letter = MODALITIES[key].letter
    tokens[letter] = hidden[f"<{key}>"]
    pooled[letter] = model.pool_text(tokens[letter])
    masks[letter] = batch["inputs"][key] != tokenizer.pad

  text = {}
  for group in plan.texts:
    feature = None
    if group in plan.text_features:
      first = model.pool_text(hidden[group])
      feature = model.embed(params, "t", {"t": first})
    ids = batch["text"][group]
    prints = draws.fingerprint(ids, pad=tokenizer.pad)
    text[group] = TextSlot(ids, prints, feature)
  negatives: dict[str, tuple[Array, Array]] = {}
  embedded: dict[int, tuple[Array, Array]] = {}
  for group in plan.negatives:
    if group not in batch.get("negative_text", {}):
      continue
    ids = batch["negative_text"][group]
    if id(ids) not in embedded:
      embedded[id(ids)] = embed_negatives(
        model,
        params,
        ids,
        pad=tokenizer.pad,
        row_keys=site(f"dropout/contrastive/{group}/negatives"),
      )
    negatives[group] = embedded[id(ids)]
  return Inputs(
    model=model,
    params=params,
    batch=batch,
    tokenizer=tokenizer,
    row_keys=row_keys,
    train=train,
    pixels=pixels,
    letters_to_key=letters_to_key(plan),
    features={
      c: model.embed(params, c, {x: pooled[x] for x in c})
      for c in plan.features
    },
    text=text,
    contexts={
      c: model.project_context(
        params, model.context(params, c, tokens, masks=masks)
      )
      for c in plan.contexts
    },
    negatives=negatives,
    partition=partition,
  )
