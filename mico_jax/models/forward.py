"""The forward pass: pixels and texts -> tokens -> embeddings and contexts.

Training, cached gradients, evaluation, inference, the self-check, StableHLO and
`plan` all compute with these functions, each with its own options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import rng
from mico_jax.aliases import Params
from mico_jax.config import Config
from mico_jax.modalities import MODALITIES, preprocessing
from mico_jax.models.mico import MiCo
from mico_jax.models.text_tower import ContextKV

# Name of a random site -> one key per row; None: nothing is drawn.
Site = Callable[[str], Key[Array, " B"] | None]


def _no_draws(name: str) -> None:
  del name


@dataclasses.dataclass(frozen=True)
class Encoded:
  """What the towers give for the rows of a batch.

  Attributes:
    tokens: letter -> [B T L D] of the encoder, or [B L W] of the text tower.
    pooled: letter -> pooled features [B D] or [B W].
    masks: letter -> which tokens are no padding: [B L] of an interface
      modality, [B T L] of one whose token set is padded.
    texts: name of a text -> pooled features.
  """

  tokens: Mapping[str, Float[Array, "B ..."]]
  pooled: Mapping[str, Float[Array, "B _"]]
  masks: Mapping[str, Bool[Array, "B *T L"]]
  texts: Mapping[str, Float[Array, "B W"]]

  def also(self, letter: str, of: str) -> Encoded:
    """The same with what stands for letter `of` also under `letter`."""

    def copied(values: Mapping[str, Any]) -> dict[str, Any]:
      return {**values, letter: values[of]} if of in values else dict(values)

    return dataclasses.replace(
      self,
      tokens=copied(self.tokens),
      pooled=copied(self.pooled),
      masks=copied(self.masks),
    )


def encode_pixels(
  model: MiCo,
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
      a row, so that aligned modalities keep the same places; modalities with an
      embedding of their own keep all tokens.
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
    patched = MODALITIES[keys[0]].embedding == "patch"
    if patch_keys is not None and patch_dropout > 0 and patched:
      patch = model.config.vision.patch_size
      total = (joined.shape[2] // patch) * (joined.shape[3] // patch)
      count = max(1, round((1 - patch_dropout) * total))
      kept = rng.row_subset(patch_keys, total, count)
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
  model: MiCo,
  params: Params,
  texts: Mapping[str, Int[Array, "B L"]],
  *,
  row_keys: Key[Array, " B"] | None = None,
) -> dict[str, Float[Array, "B L W"]]:
  """Hidden states of several texts per row, in one call per length.

  Args:
    model: the model.
    params: its parameters.
    texts: name -> token ids.
    row_keys: for dropout; None: none.
  """
  by_length: dict[int, list[str]] = {}
  for name, ids in texts.items():
    by_length.setdefault(ids.shape[1], []).append(name)
  hidden = {}
  for length, names in by_length.items():
    stacked = jnp.stack([texts[name] for name in names], axis=1)
    rows, count = stacked.shape[:2]
    keys = None if row_keys is None else rng.expand(row_keys, count)
    out = model.text(
      params,
      stacked.reshape(rows * count, length),
      row_keys=keys,
      train=keys is not None,
    )
    out = out.reshape(rows, count, length, out.shape[-1])
    for index, name in enumerate(names):
      hidden[name] = out[:, index]
  return hidden


def encode(
  model: MiCo,
  params: Params,
  pixels: Mapping[str, Array],
  words: Mapping[str, Int[Array, "B L"]],
  texts: Mapping[str, Int[Array, "B L"]],
  *,
  pad: int,
  site: Site = _no_draws,
  patch_dropout: float = 0.0,
) -> Encoded:
  """Encodes everything of a batch once.

  Args:
    model: the model.
    params: its parameters, deltas merged.
    pixels: key of a knowledge modality -> frames.
    words: key of an interface modality -> token ids.
    texts: name -> token ids; each is encoded once.
    pad: id of padding.
    site: gives the keys of "dropout/encode", "patch_dropout" and
      "dropout/text"; without, nothing is dropped.
    patch_dropout: fraction of patches to drop.
  """
  tokens: dict[str, Array] = {}
  pooled: dict[str, Array] = {}
  masks: dict[str, Array] = {}
  encoded = encode_pixels(
    model,
    params,
    pixels,
    row_keys=site("dropout/encode"),
    patch_keys=site("patch_dropout"),
    patch_dropout=patch_dropout,
  )
  for key, value in encoded.items():
    letter = MODALITIES[key].letter
    tokens[letter] = value
    valid = model.valid_tokens(key, pixels[key])
    pooled[letter] = model.pool(params, key, value, token_mask=valid)
    if valid is not None:
      masks[letter] = valid
  slots = {**texts, **{f"<{key}>": ids for key, ids in words.items()}}
  hidden = encode_texts(model, params, slots, row_keys=site("dropout/text"))
  for key, ids in words.items():
    letter = MODALITIES[key].letter
    tokens[letter] = hidden[f"<{key}>"]
    pooled[letter] = model.pool_text(tokens[letter], ids)
    masks[letter] = ids != pad
  pooled_texts = {
    name: model.pool_text(hidden[name], ids) for name, ids in texts.items()
  }
  return Encoded(tokens, pooled, masks, pooled_texts)


def encode_inputs(
  model: MiCo,
  config: Config,
  params: Params,
  inputs: Mapping[str, Array],
  *,
  pad: int,
) -> Encoded:
  """Encodes what travelled to the device, as evaluation preprocesses it.

  Args:
    model: the model.
    config: how inputs are preprocessed.
    params: parameters of the model.
    inputs: modality key -> what travelled.
    pad: id of padding.
  """
  keys = tuple(key for key in MODALITIES if key in inputs)
  pixels = preprocessing.to_pixels(config, inputs, keys, train=False, xp=jnp)
  words = {key: inputs[key] for key in keys if key not in pixels}
  return encode(model, params, pixels, words, {}, pad=pad)


def embed(
  model: MiCo, params: Params, encoded: Encoded, contexts: Sequence[str]
) -> dict[str, Float[Array, "B E"]]:
  """Unit-norm embeddings of contexts ("v", "va"), by letters."""
  return {
    c: model.embed(params, c, {x: encoded.pooled[x] for x in c})
    for c in contexts
  }


def embed_pooled_text(
  model: MiCo, params: Params, pooled: Float[Array, "B W"]
) -> Float[Array, "B E"]:
  """Unit-norm embeddings of pooled texts."""
  return model.embed(params, "t", {"t": pooled})


def embed_text(
  model: MiCo, params: Params, ids: Int[Array, "B L"]
) -> Float[Array, "B E"]:
  """Unit-norm embeddings of token ids."""
  hidden = model.text(params, ids)
  return embed_pooled_text(model, params, model.pool_text(hidden, ids))


def project(
  model: MiCo, params: Params, encoded: Encoded, letters: str
) -> ContextKV:
  """Keys and values of a context for all layers of the text tower."""
  context = model.context(params, letters, encoded.tokens, masks=encoded.masks)
  return model.project_context(params, context)


def match(
  model: MiCo, params: Params, ids: Int[Array, "R L"], context: ContextKV
) -> Float[Array, "R 2"]:
  """Logits (no match, match) of texts with a context."""
  hidden = model.text(params, ids, context=context)
  return model.matching_logits(params, hidden, ids)


def match_probability(
  model: MiCo, params: Params, ids: Int[Array, "R L"], context: ContextKV
) -> Float[Array, " R"]:
  """Probability that texts belong to a context."""
  return jax.nn.softmax(match(model, params, ids, context), axis=-1)[:, 1]
