"""What a checkpoint computes inside: tokens, attention, pure functions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from mico_jax.inference.batching import Batching
from mico_jax.inference.progress import bar
from mico_jax.inference.pure import PureFunctions
from mico_jax.modalities import MODALITIES, items
from mico_jax.models.inspection import attention


class TokenFeatures(NamedTuple):
  """Features of the tokens of a modality.

  Attributes:
    values: one row per input, [N T L D]; [N L W] of texts.
    valid: which tokens are no padding.
    first: tokens that come before the patches: 1 with a class token, else 0.
    grid: rows and columns of patches; (): the tokens are no patches of a
      picture.
  """

  values: Float[np.ndarray, "N *T L D"]
  valid: Bool[np.ndarray, "N *T L"]
  first: int
  grid: tuple[int, ...]

  def patches(self) -> Float[np.ndarray, "N T gy gx D"]:
    """The tokens of the patches as they lie in each picture.

    Raises:
      ValueError: if the tokens are no patches of a picture.
    """
    if not self.grid:
      raise ValueError("these tokens are no patches of a picture.")
    kept = self.values[..., self.first :, :]
    return kept.reshape(*kept.shape[:2], *self.grid, kept.shape[-1])


class InsideMethods(Batching):
  """Methods of `OmniModel` that look inside.

  Attributes:
    functions: of the model.
    params: its parameters.
  """

  functions: PureFunctions
  params: Any

  def pure(self) -> tuple[PureFunctions, Any]:
    """The model's functions and its parameters, for `jit`, `grad` and `vmap`.

    See `mico_jax.inference.pure`.
    """
    return self.functions, self.params

  def tokens(
    self,
    *,
    block: int | None = None,
    progress: bool | None = None,
    **inputs: Any,
  ) -> dict[str, TokenFeatures]:
    """Features of every token: patches of a picture or sound, words of a text.

    Args:
      block: of the encoder, from 0 or, negative, from the last; None: after the
        final LayerNorm.
      progress: see `OmniModel.embed`.
      **inputs: lists by modality.

    Raises:
      ValueError: for a modality or block that the checkpoint lacks.
      DecodeError: for an input that cannot be read.
    """
    features = {}
    for key, values in inputs.items():
      parts = [
        self._tokens_of(key, arrays, block)
        for arrays in self._prepared(key, values, "tokens", progress)
      ]
      features[key] = parts[0]._replace(
        values=np.concatenate([part.values for part in parts]),
        valid=np.concatenate([part.valid for part in parts]),
      )
    return features

  def attention(
    self,
    *,
    block: int = -1,
    heads: bool = False,
    progress: bool | None = None,
    **inputs: Any,
  ) -> dict[str, Float[np.ndarray, "N T ..."]]:
    """Maps of what the token that stands for a frame attends to.

    Args:
      block: of the encoder, from 0 or, negative, from the last.
      heads: whether each head has a map; else they are averaged.
      progress: see `OmniModel.embed`.
      **inputs: lists of knowledge modalities.

    Returns:
      {modality: [N T gy gx]}, with `heads` [N T heads gy gx]: weights on the
      patches of each frame, row by row (of a sound the rows are time, the
      columns mel bands); [N T L] of tokens that are no patches.
      What goes to the class token is left out, so a map sums to at most 1.

    Raises:
      ValueError: for texts, for a block that is not there, and for encoders
        without attention among all tokens.
      DecodeError: for an input that cannot be read.
    """
    maps = {}
    for key, values in inputs.items():
      if key in MODALITIES and MODALITIES[key].kind == "interface":
        raise ValueError(f"{key}: no encoder of pictures reads it.")
      parts = [
        np.asarray(self._attention(self.params, arrays, key, block))
        for arrays in self._prepared(key, values, "attention", progress)
      ]
      weights = np.concatenate(parts)
      grid = _grid(self.functions, key)
      weights = weights.reshape(*weights.shape[:3], *(grid or (-1,)))
      maps[key] = weights if heads else weights.mean(axis=2)
    return maps

  def _prepared(
    self, key: str, values: Any, what: str, progress: bool | None
  ) -> Iterator[dict[str, np.ndarray]]:
    self.preparer.check_key(key)
    rows: Sequence[Any] = items.as_list(key, values)
    if not rows:
      raise ValueError(f"{key}: the list is empty.")
    with bar(len(rows), what, progress) as shown:
      for start in range(0, len(rows), self.batch_size):
        part = rows[start : start + self.batch_size]
        yield self.prepare(**{key: part})
        shown.update(len(part))

  @functools.cached_property
  def _attention(self) -> Any:
    functions = self.functions

    def run(
      params: Any, arrays: Mapping[str, Any], key: str, block: int
    ) -> Any:
      pixels = functions.pixels(arrays)[key]
      return attention(functions.model, params, key, pixels, block)

    return jax.jit(run, static_argnums=(2, 3))

  @functools.cached_property
  def _hidden(self) -> Any:
    functions = self.functions

    def run(
      params: Any, arrays: Mapping[str, Any], key: str, block: Any
    ) -> Any:
      pixels = functions.pixels(arrays)
      if block is None:
        encoded = functions.encode(params, pixels)
        letter = MODALITIES[key].letter
        return encoded.tokens[letter], encoded.masks.get(letter)
      _, hidden = functions.model.encode(
        params, key, pixels[key], return_hidden=True
      )
      if not -len(hidden) <= block < len(hidden):
        raise ValueError(
          f"block={block}: the encoder has {len(hidden)} blocks."
        )
      mask = functions.model.valid_tokens(key, pixels[key])
      return hidden[block], mask

    return jax.jit(run, static_argnums=(2, 3))

  def _tokens_of(
    self, key: str, arrays: Mapping[str, np.ndarray], block: int | None
  ) -> TokenFeatures:
    text = MODALITIES[key].kind == "interface"
    if text and block is not None:
      raise ValueError(f"{key}: only block=None, the last states, is here.")
    values, mask = map(_host, self._hidden(self.params, arrays, key, block))
    if text:
      return TokenFeatures(values, mask, 0, ())
    # Attention pooling puts its token before the last states only.
    model = self.functions.model
    pooled = block is not None and model.config.vision.pooling != "class"
    first = int(model.has_class_token and not pooled)
    length = values.shape[-2]
    valid = np.ones(values.shape[:-1], bool)
    if mask is not None:
      valid = mask[..., -length:]
    grid: tuple[int, ...] = ()
    if MODALITIES[key].embedding == "patch":
      grid = (math.isqrt(length - first),) * 2  # stages have fewer patches
    return TokenFeatures(values, valid, first, grid)


def _host(x: Any) -> Any:
  return None if x is None else np.asarray(x)


def _grid(functions: PureFunctions, key: str) -> tuple[int, ...]:
  """Rows and columns of patches of a modality; (): it has none."""
  if MODALITIES[key].embedding != "patch":
    return ()
  vision = functions.config.model.vision
  return (vision.image_size // vision.patch_size,) * 2
