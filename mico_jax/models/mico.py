"""MiCo: one encoder for all knowledge modalities, a text tower and contexts.

A plain frozen dataclass of pure methods over a nested dict of parameters. The
contexts follow section 3 of the paper (arXiv:2406.09412): z_m + E_C + E_M,
after projection to the text width; E_Pos is the position table of the
encoder. Parts of the paper that the official weights lack (a further E_Pos over
the context, E_Sam, a position table for joined captions) are options, off by
default.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax import axes
from mico_jax.aliases import Params, PyTree
from mico_jax.config import ConfigError, ModelConfig
from mico_jax.kernels.dtypes import accumulation_dtype, supported_dtype
from mico_jax.layers import dropout, pool
from mico_jax.modalities import MODALITIES, as_configured, by_letter
from mico_jax.models import custom_embedding, parameters
from mico_jax.models.checks import (
  NAMES,
  check_frames,
  check_names,
)
from mico_jax.models.resize import resize_frames
from mico_jax.models.text import Context, TextModel, apply, precise


@dataclasses.dataclass(frozen=True)
class MiCo(TextModel):
  """The model of a config; build it with `mico_jax.models.build`.

  Letters and groups are those of `mico_jax.modalities`. All methods are pure
  and may be traced.

  Attributes:
    config: sizes and options.
  """

  # ---------------------------------------------------------------- parameters
  def init(self, rng_key: Key[Array, ""]) -> dict[str, Any]:
    """New float32 parameters as a nested dict."""
    return nn.meta.unbox(parameters.create(self.config, rng_key))

  def abstract_params(self) -> PyTree:
    """Shapes and dtypes of the parameters, without allocating them."""
    return jax.eval_shape(nn.meta.unbox, self._boxed)

  def logical_axes(self) -> PyTree:
    """The logical axis names of each parameter, as tuples.

    A parameter that declares none, such as one of `flax.linen.Dense`, is whole
    on every device.
    """

    def names(leaf: Any) -> tuple[str, ...]:
      if isinstance(leaf, nn.LogicallyPartitioned):
        return tuple(map(str, leaf.names))
      return (axes.UNSHARDED,) * leaf.ndim

    return jax.tree.map(
      names,
      self._boxed,
      is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )

  @functools.cached_property
  def _boxed(self) -> PyTree:
    """Shapes of the parameters in boxes with their axes; slow to trace."""
    if not self.config.text.vocab_size:
      raise ConfigError(
        "model.text.vocab_size=0 takes that of the tokenizer, which is made of "
        "the data; give the number here: --config.model.text.vocab_size=N."
      )
    return jax.eval_shape(
      functools.partial(parameters.create, self.config), jax.random.key(0)
    )

  # ------------------------------------------------------------------- encode
  @precise
  def encode(
    self,
    params: Params,
    key: str,
    pixels: Float[Array, "B T *frame"],
    *,
    token_indices: Int[Array, "B *T K"] | None = None,
    row_keys: Key[Array, " B"] | None = None,
    train: bool = False,
    return_hidden: bool = False,
  ) -> Any:
    """Encodes the frames or slices of one knowledge modality (MiCo, section 3).

    Args:
      params: parameters.
      key: of the modality.
      pixels: normalised frames [B T Y X 3] of the configured size, or the input
        of the embedding class of the modality.
      token_indices: patches to encode, the same for all frames of a row unless
        it has a frame axis; None: all. The class token is always kept.
      row_keys: one key per row; None: no stochastic depth.
      train: whether stochastic depth is on.
      return_hidden: also return the tokens after every block.

    Returns:
      Tokens [B T L D] after the final LayerNorm; with `return_hidden`, also a
      list of [B T L D].

    Tokens that are padding, see `valid_tokens`, change no other token.

    Raises:
      ValueError: for an unknown modality or frames of another size.
    """
    batch, frames = pixels.shape[:2]
    options: dict[str, Any] = {"return_hidden": return_hidden}
    if train and row_keys is not None:
      options["row_keys"] = dropout.fold_frames(row_keys, frames)
    encoder = parameters.towers(self.config)[0]
    if token_indices is not None:
      encoder.check_subsets()
      if token_indices.ndim == 2:
        token_indices = jnp.repeat(token_indices, frames, axis=0)
      options["token_indices"] = token_indices.reshape(batch * frames, -1)
    subset = token_indices is not None
    options |= self.frame_inputs(params, key, pixels, subset=subset)
    tokens, hidden = apply(encoder, params["vision"], **options)
    tokens = tokens.reshape(batch, frames, *tokens.shape[1:])
    if not return_hidden:
      return tokens
    return tokens, [h.reshape(batch, frames, *h.shape[1:]) for h in hidden]

  def frame_inputs(
    self,
    params: Params,
    key: str,
    pixels: Float[Array, "B T *frame"],
    *,
    subset: bool = False,
  ) -> dict[str, Any]:
    """Arguments of the encoder for the frames of a modality."""
    flat = pixels.reshape(-1, *pixels.shape[2:])
    check_frames(self.config, key, flat.shape[1:], subset=subset)
    if MODALITIES[key].embedding == "patch":
      return {"pixels": flat}
    embedding = params["embedding"][key]
    return custom_embedding.embed(self.config, embedding, key, flat)

  def valid_tokens(
    self, key: str, pixels: Float[Array, "B T ..."]
  ) -> Bool[Array, "B T L"] | None:
    """Which tokens of `encode` are no padding; None: none is.

    The class token of a frame is valid if any of the others is.
    """
    return custom_embedding.valid_tokens(
      key, pixels, class_token=self.has_class_token
    )

  @property
  def has_class_token(self) -> bool:
    """Whether token 0 represents the whole frame."""
    return parameters.towers(self.config)[0].has_class_token

  def pool(
    self,
    params: Params,
    key: str,
    tokens: Float[Array, "B T L D"],
    *,
    frame_mask: Bool[Array, "B T"] | None = None,
    token_mask: Bool[Array, "B T L"] | None = None,
  ) -> Float[Array, "B D"]:
    """Pools the tokens of a modality: class tokens or means, over frames.

    The modality's record names the pooling; without a class token it is the
    mean. `config.frame_weights` weights the frames, and
    `config.frame_changes` adds what changes between them. Source: MiCo's
    official code, which has neither.

    Args:
      params: parameters.
      key: of the modality.
      tokens: from `encode`.
      frame_mask: true at valid frames; None: all are.
      token_mask: from `valid_tokens`.
    """
    gain: Any = None
    kind, frames = "", tokens.shape[1]
    if frames > 1 and (self.config.frame_weights or self.config.frame_changes):
      kind = self.context_type(MODALITIES[key].letter)
    if kind and self.config.frame_weights:
      table = params["frame_gain"].get(kind)
      gain = None if table is None else resize_frames(table, tokens.shape[1])
    name = MODALITIES[key].pooling
    if name == "cls" and not self.has_class_token:
      name = "mean"
    masks = {"token_mask": token_mask, "frame_mask": frame_mask}
    pooled = pool.pool_frames(name, tokens, frame_gain=gain, **masks)
    changes = self._changes(params, kind, tokens, **masks)
    return pooled if changes is None else pooled + changes[0][:, 0]

  def _changes(
    self,
    params: Params,
    kind: str,
    tokens: Float[Array, "B ..."],
    **masks: Any,
  ) -> tuple[Float[Array, "B 1 D"], Bool[Array, "B 1"] | None] | None:
    """What changes between frames, as one token, and whether there is one.

    None: for context types that are not in `config.frame_changes`, and for a
    single frame.
    """
    if kind not in parameters.changing_types(self.config):
      return None
    if tokens.ndim != 4 or tokens.shape[1] < 2:
      return None
    changes, valid = pool.frame_changes(tokens, **masks)
    module = parameters.change_module(self.config)
    token = apply(module, params["frame_change"][kind], changes, mask=valid)
    return token, None if valid is None else valid.any(axis=1, keepdims=True)

  # ------------------------------------------------------------------ features
  def head(self, letters: str) -> str:
    """The name of the contrastive head of a text ("t") or of letters.

    Raises:
      ValueError: if the config has no such head.
    """
    name = letters
    if len(letters) == 1:
      name = as_configured(by_letter(letters), self.config).head
    if name not in parameters.head_names(self.config):
      raise ValueError(
        f"no contrastive head for {letters!r}; config.model.heads has "
        f"{', '.join(parameters.head_names(self.config))}."
      )
    return name

  @precise
  def embed(
    self,
    params: Params,
    letters: str,
    pooled: Mapping[str, Float[Array, "B D"]],
  ) -> Float[Array, "B E"]:
    """Unit-norm embeddings in the joint space; MiCo, section 3.

    Args:
      params: parameters.
      letters: "t", or the letters of a context, in the order of its head.
      pooled: pooled features of each letter.
    """
    name = self.head(letters)
    x = jnp.concatenate([pooled[letter] for letter in letters], axis=-1)
    head = parameters.head_module(self.config, name)
    x = apply(head, params["contrastive_head"][name], x)
    x = x.astype(accumulation_dtype(x.dtype))
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # max before the root: no NaN in the gradient of a zero vector.
    return x * jax.lax.rsqrt(jnp.maximum(square, jnp.asarray(1e-24, x.dtype)))

  def context_type(self, letter: str) -> str:
    """The context type of a letter: names projection and tables.

    Raises:
      ValueError: if the config has no such type.
    """
    name = as_configured(by_letter(letter), self.config).context_type
    known = parameters.context_types(self.config)
    if name not in known:
      raise ValueError(
        f"no context for {letter!r}; config.model.frame_table has "
        f"{', '.join(self.config.frame_table)}."
      )
    return name

  @precise
  def context(
    self,
    params: Params,
    letters: str,
    tokens: Mapping[str, Float[Array, "B ..."]],
    *,
    masks: Mapping[str, Bool[Array, "B ..."]] | None = None,
    sample_index: Mapping[str, int | Int[Array, " B"]] | None = None,
  ) -> Context:
    """Builds the context of a group: concatenated z_m + E_C + E_M.

    Source: MiCo, arXiv:2406.09412, section 3.

    Args:
      params: parameters.
      letters: of the context, in order.
      tokens: of each letter: [B T L D] from `encode`, or the subtitle's hidden
        states [B L W] from `text`.
      masks: by letter: [B] presence, [B T] valid frames, [B T L] valid tokens
        (`valid_tokens`), or for subtitles [B L] valid tokens (ignored unless
        config.mask_subtitle_padding).
      sample_index: by letter: row of E_Sam, the pair embedding of the corpus
        that the tokens come from; needs config.sample_embeddings.

    Raises:
      ValueError: if E_Pos is shorter than the context, or E_Sam missing.
    """
    values, valid = [], []
    for letter in letters:
      mask = (masks or {}).get(letter)
      x, mask = self._context_of(params, letter, tokens[letter], mask)
      if sample_index is not None and letter in sample_index:
        x = x + self.sample_vectors(params, sample_index[letter], x.dtype)
      values.append(x)
      valid.append(mask)
    context = jnp.concatenate(values, axis=1)
    if self.config.context_positions:
      if context.shape[1] > self.config.context_positions:
        raise ValueError(
          f"context {letters!r} has {context.shape[1]} tokens; set "
          f"config.model.context_positions={self.config.context_positions} "
          "higher."
        )
      table = params["context_pos"][: context.shape[1]]
      context = context + table.astype(context.dtype)[None]
    if all(mask is None for mask in valid):
      return Context(context)
    valid = [
      jnp.ones(x.shape[:2], bool) if mask is None else mask
      for x, mask in zip(values, valid, strict=True)
    ]
    return Context(context, jnp.concatenate(valid, axis=1))

  def _context_of(
    self,
    params: Params,
    letter: str,
    tokens: Float[Array, "B ..."],
    mask: Bool[Array, "B ..."] | None,
  ) -> tuple[Float[Array, "B S W"], Bool[Array, "B S"] | None]:
    """Context tokens of one letter, that of its changes last, and their mask.

    Heads that read a context see of a change what contrastive heads see of it.
    """
    x = self._project(params, letter, tokens, mask)
    valid = self._context_mask(tokens, mask, x.shape[1])
    kind = self.context_type(letter)
    masks: dict[str, Array] = {}
    if mask is not None and mask.ndim > 1:
      masks["frame_mask" if mask.ndim == 2 else "token_mask"] = mask
    changes = self._changes(params, kind, tokens, **masks)
    if changes is None:
      return x, valid
    token, there = changes
    token = apply(self._projection(), params["project"][kind], token)
    token = token + params["type_embed"][kind].astype(token.dtype)[None, None]
    x = jnp.concatenate([x, token], axis=1)
    if valid is None:
      return x, None
    some = jnp.any(valid, axis=1, keepdims=True)
    there = some if there is None else some & there
    return x, jnp.concatenate([valid, there], axis=1)

  def _projection(self) -> parameters.Projection:
    config = self.config
    return parameters.Projection(
      config.text.width, config.text.norm_eps, jnp.dtype(config.dtype)
    )

  def _context_mask(
    self,
    tokens: Float[Array, "B ..."],
    mask: Bool[Array, "B ..."] | None,
    count: int,
  ) -> Bool[Array, "B S"] | None:
    """Mask of the `count` context tokens of a letter; None: all are valid."""
    if mask is None:
      return None
    if tokens.ndim == 3 and mask.ndim == 2:
      return mask if self.config.mask_subtitle_padding else None
    if mask.ndim == 3 and self.config.pool_frames:
      mask = jnp.any(mask, axis=2)
    if mask.ndim == 3:
      return mask.reshape(mask.shape[0], count)
    if mask.ndim == 2:
      return jnp.repeat(mask, count // mask.shape[1], axis=1)
    return jnp.broadcast_to(mask[:, None], (mask.shape[0], count))

  def _project(
    self,
    params: Params,
    letter: str,
    tokens: Float[Array, "B ..."],
    mask: Bool[Array, "B ..."] | None,
  ) -> Float[Array, "B S W"]:
    """Projects tokens of one letter and adds frame and type vectors.

    With `config.pool_frames`, an encoder without a class token gives its mean.
    """
    config = self.config
    name = self.context_type(letter)
    if tokens.ndim == 4 and config.pool_frames:
      valid = mask if mask is not None and mask.ndim == 3 else None
      tokens = (
        pool.cls_and_mean(tokens, valid)
        if self.has_class_token
        else pool.token_mean(tokens, valid)[:, :, None]
      )
    x = apply(self._projection(), params["project"][name], tokens)
    if tokens.ndim == 4:
      length = config.frame_table[name]
      if length:
        table = resize_frames(params["frame_embed"][name], x.shape[1])
        x = x + table.astype(x.dtype)[None, :, None]
      x = x.reshape(x.shape[0], -1, x.shape[-1])
    return x + params["type_embed"][name].astype(x.dtype)[None, None]

  def temperature(
    self, params: Params, contexts: Sequence[str] = ()
  ) -> Float[Array, ""]:
    """The divisor of similarities, not below config.temperature_min.

    The official MiCo code divides by it; the paper multiplies.

    Args:
      params: parameters.
      contexts: that are compared, with a text or with each other: with
        config.temperature "head", the geometric mean of their factors counts.
    """
    value = params["temperature"]
    paths = parameters.temperature_paths(self.config)
    if paths and contexts:
      logs = [paths[self.head(letters)] for letters in contexts]
      values = jnp.stack([params[room][name] for room, name in logs])
      value = value * jnp.exp(jnp.mean(values))
    if not self.config.temperature_min:
      return value
    return jnp.maximum(value, self.config.temperature_min)


def build(config: ModelConfig) -> MiCo:
  """The model of a config.

  Raises:
    ConfigError: if sizes or names of the config do not fit together.
  """
  try:
    check_names(config, NAMES, "config.model")
    config = dataclasses.replace(config, dtype=supported_dtype(config.dtype))
    parameters.parts(config)
  except (ValueError, TypeError) as error:
    raise ConfigError(str(error)) from error
  return MiCo(config)
