"""The forward pass: pixels and texts -> tokens -> embeddings and contexts.

Training, cached gradients, evaluation, inference, the self-check, StableHLO and
`plan` all compute with these functions, each with its own options. `params` are
always those of `model`; `row_keys=None` means that nothing is dropped.

Source: MiCo, arXiv:2406.09412, section 3 (encoders, contexts, the three
outputs); the official MiCo code for pooling and heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from mico_jax import rng
from mico_jax.aliases import Params
from mico_jax.config import Config
from mico_jax.modalities import MODALITIES, preprocessing
from mico_jax.models.mico import MiCo
from mico_jax.models.text_tower import ContextKV

# Name of a random site -> one key per row; None: nothing is drawn.
Site = Callable[[str], Key[Array, " B"] | None]


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Outputs of the towers for the rows of a batch.

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
    """A copy with the tokens of letter `of` also under `letter`."""
    fields = {
      name: {**values, letter: values[of]}
      for name in ("tokens", "pooled", "masks")
      if of in (values := getattr(self, name))
    }
    return dataclasses.replace(self, **fields)


def encode_pixels(
  model: MiCo,
  params: Params,
  pixels: Mapping[str, Float[Array, "B T ..."]],
  *,
  row_keys: Key[Array, " B"] | None = None,
  patch_keys: Key[Array, " B"] | None = None,
  patch_dropout: float = 0.0,
) -> dict[str, Float[Array, "B T L D"]]:
  """Tokens of every modality, in one encoder call per input shape.

  With `patch_keys`, a fraction `patch_dropout` of the patches is dropped: the
  same ones in all frames of a row, so that aligned modalities keep the same
  places. Modalities with an embedding of their own keep all tokens.
  """
  groups: dict[tuple[int | str, ...], list[str]] = {}
  for modality, value in pixels.items():
    patched = MODALITIES[modality].embedding == "patch"
    name = ("patch", *value.shape[2:]) if patched else (modality,)
    groups.setdefault(name, []).append(modality)
  tokens = {}
  for name, members in groups.items():
    frames = [pixels[m].shape[1] for m in members]
    parts = [pixels[m] for m in members]
    joined = jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
    kept = None
    if patch_keys is not None and patch_dropout > 0 and name[0] == "patch":
      patch = model.config.vision.patch_size
      total = (joined.shape[2] // patch) * (joined.shape[3] // patch)
      count = max(1, round((1 - patch_dropout) * total))
      kept = rng.row_subset(patch_keys, total, count)
    encoded = model.encode(
      params,
      members[0],
      joined,
      token_indices=kept,
      row_keys=row_keys,
      train=row_keys is not None,
    )
    start = 0
    for modality, count in zip(members, frames, strict=True):
      tokens[modality] = encoded[:, start : start + count]
      start += count
  return tokens


def encode_texts(
  model: MiCo,
  params: Params,
  texts: Mapping[str, Int[Array, "B _"]],
  *,
  row_keys: Key[Array, " B"] | None = None,
) -> dict[str, Float[Array, "B _ W"]]:
  """Hidden states of several texts per row, in one call per length."""
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
    hidden |= {name: out[:, index] for index, name in enumerate(names)}
  return hidden


def encode(
  model: MiCo,
  params: Params,
  pixels: Mapping[str, Float[Array, "B T ..."]],
  words: Mapping[str, Int[Array, "B _"]],
  texts: Mapping[str, Int[Array, "B _"]],
  *,
  pad: int,
  site: Site = lambda name: None,
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
  for modality, value in encoded.items():
    letter = MODALITIES[modality].letter
    tokens[letter] = value
    valid = model.valid_tokens(modality, pixels[modality])
    pooled[letter] = model.pool(params, modality, value, token_mask=valid)
    if valid is not None:
      masks[letter] = valid
  slots = {**texts, **{f"<{name}>": ids for name, ids in words.items()}}
  hidden = encode_texts(model, params, slots, row_keys=site("dropout/text"))
  for modality, ids in words.items():
    letter = MODALITIES[modality].letter
    tokens[letter] = hidden[f"<{modality}>"]
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
  inputs: Mapping[str, Shaped[Array, "B ..."]],
  *,
  pad: int,
) -> Encoded:
  """Encodes the arrays of a batch, preprocessed as `config` says to evaluate.

  `inputs`: modality key -> array, as the modality's `ArraySpec` says.
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
