"""A checkpoint as pure functions of its parameters.

functions, params = model.pure()
x = functions.pixels(model.prepare(image=["a.jpg"]))
z = jax.jit(functions.embed)(params, x)
g = jax.grad(lambda x: functions.embed(params, x)[0, 0])(x)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from mico_jax.aliases import Params
from mico_jax.config import Config
from mico_jax.modalities import MODALITIES, preprocessing
from mico_jax.models import MiCo, forward
from mico_jax.models.text_tower import ContextKV

Inputs = Mapping[str, Shaped[Array, "B ..."]]


@dataclasses.dataclass(frozen=True)
class PureFunctions:
  """What a model computes; every method may be traced.

  Attributes:
    model: the model.
    config: of the run that made the checkpoint.
    pad: id of padding.
  """

  model: MiCo
  config: Config
  pad: int

  def pixels(
    self, arrays: Mapping[str, Any]
  ) -> dict[str, Shaped[Array, "B ..."]]:
    """Inputs of the towers: float frames [B T Y X 3], and ids of texts.

    Args:
      arrays: of `OmniModel.prepare`, by modality.
    """
    keys = tuple(key for key in MODALITIES if key in arrays)
    frames = preprocessing.to_pixels(
      self.config, arrays, keys, train=False, xp=jnp
    )
    words = {key: jnp.asarray(arrays[key]) for key in keys if key not in frames}
    return {**frames, **words}

  def encode(self, params: Params, inputs: Inputs) -> forward.Encoded:
    """Tokens and pooled features of `pixels`, by letters."""
    known = {key: key in inputs for key in MODALITIES}
    kinds: dict[str, dict[str, Any]] = {"knowledge": {}, "interface": {}}
    for key in (key for key, given in known.items() if given):
      kinds[MODALITIES[key].kind][key] = inputs[key]
    encoded = forward.encode(
      *(self.model, params, kinds["knowledge"], kinds["interface"], {}),
      pad=self.pad,
    )
    for key in inputs:  # a head may be that of another modality
      letter, head = MODALITIES[key].letter, MODALITIES[key].head
      if head not in encoded.tokens:
        encoded = encoded.also(head, of=letter)
    return encoded

  def embed(
    self, params: Params, inputs: Inputs, letters: str = ""
  ) -> Float[Array, "B E"]:
    """Unit-norm embeddings in the joint space.

    Args:
      params: of the model.
      inputs: of `pixels`.
      letters: of the head, such as "va"; "": of the one modality given.

    Raises:
      ValueError: for several modalities without letters.
    """
    if not letters:
      if len(inputs) != 1:
        raise ValueError(
          f"{', '.join(inputs)}: name the head, such as letters='va'."
        )
      letters = MODALITIES[next(iter(inputs))].letter
    encoded = self.encode(params, inputs)
    return forward.embed(self.model, params, encoded, (letters,))[letters]

  def context(self, params: Params, inputs: Inputs, letters: str) -> ContextKV:
    """Keys and values of a context, for `match`.

    Args:
      params: of the model.
      inputs: of `pixels`.
      letters: of the context, in its order.
    """
    encoded = self.encode(params, inputs)
    return forward.project(self.model, params, encoded, letters)

  def match(
    self, params: Params, ids: Int[Array, "R L"], context: ContextKV
  ) -> Float[Array, " R"]:
    """Probability in [0, 1] that texts belong to a context.

    Args:
      params: of the model.
      ids: token ids, as `pixels` gives them for texts.
      context: of `context`.
    """
    return forward.match_probability(self.model, params, ids, context)
