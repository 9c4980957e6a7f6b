"""Masked modelling of knowledge tokens: the paradigm to compare with.

The shared encoder sees a subset of the patches of each frame; a light decoder
(one pre-norm transformer block of half the encoder's width, as in MAE but one
block deep) predicts the hidden patches' pixels, normalised per patch. All
frames of a row hide the same patches, so that a video cannot copy from its
next frame. The decoder's parameters live under
params["objective"]["masked_modelling"] and are dropped for inference.

Source: MAE, arXiv:2111.06377, sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mico_jax import rng
from mico_jax.aliases import Params
from mico_jax.config import MaskedModellingConfig, ModelConfig
from mico_jax.kernels.attention import attention
from mico_jax.modalities import MODALITIES, letters
from mico_jax.objectives.base import Inputs, Need, Objective, Output
from mico_jax.objectives.heads import dense, normed

HEAD_DIM = 32  # of the decoder's attention


def patchify(
  pixels: Float[Array, "*B Y X C"], patch: int
) -> Float[Array, "*B N P"]:
  """Cuts frames into flattened patches, row by row.

  Source: MAE, arXiv:2111.06377, section 3.
  """
  *lead, rows, columns, channels = pixels.shape
  grid_y, grid_x = rows // patch, columns // patch
  split = pixels.reshape(*lead, grid_y, patch, grid_x, patch, channels)
  split = jnp.swapaxes(split, -4, -3)
  return split.reshape(*lead, grid_y * grid_x, patch * patch * channels)


def normalise_patches(patches: Float[Array, "*B P"]) -> Float[Array, "*B P"]:
  """Zero mean and unit variance per patch (flat patches become 0).

  Source: MAE, arXiv:2111.06377, section 3, reconstruction target.
  """
  centred = patches - patches.mean(axis=-1, keepdims=True)
  variance = jnp.square(centred).mean(axis=-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + 1e-6)


def decode(
  params: Params,
  tokens: Float[Array, "B K D"],
  indices: Int[Array, "B K"],
) -> Float[Array, "B N P"]:
  """Predicts the pixels of every patch from the visible ones.

  Source: MAE, arXiv:2111.06377, section 3.

  Args:
    params: the decoder's parameters, see `MaskedModelling.init`.
    tokens: encoder outputs of the visible patches.
    indices: which patches they are.
  """
  position = params["position"]
  total, width = position.shape
  seen = dense(tokens, params["embed"])
  rows = jnp.arange(tokens.shape[0])[:, None]
  empty = params["mask_token"].astype(seen.dtype)[None, None, :]
  x = jnp.broadcast_to(empty, (tokens.shape[0], total, width))
  x = x.at[rows, indices].set(seen)
  x = x + position.astype(x.dtype)[None]
  heads = max(1, width // HEAD_DIM)
  qkv = dense(normed(x, params["norm1"]), params["qkv"])
  q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * heads, -1), 3, axis=2)
  mixed = attention(q, k, v).reshape(x.shape)
  x = x + dense(mixed, params["proj"])
  hidden = jax.nn.gelu(dense(normed(x, params["norm2"]), params["fc1"]))
  x = x + dense(hidden, params["fc2"])
  return dense(normed(x, params["norm"]), params["head"])


@dataclass(frozen=True)
class MaskedModelling(Objective):
  """Squared error of the normalised pixels of hidden patches.

  The value of a row is the mean over hidden patches, frames and the
  modalities of the group that come as pixels.
  """

  config: MaskedModellingConfig = field(default_factory=MaskedModellingConfig)
  name: ClassVar[str] = "masked_modelling"
  needs: ClassVar[frozenset[Need]] = frozenset({"pixels"})
  drops_patches: ClassVar[bool] = True

  def num_visible(self, total: int) -> int:
    """Patches that the encoder sees, at least one and not all."""
    visible = round((1 - self.config.mask_prob) * total)
    return min(max(visible, 1), total - 1)

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """The decoder's parameters."""
    vision = model.vision
    total = (vision.image_size // vision.patch_size) ** 2
    heads = max(1, vision.width // 2 // HEAD_DIM)
    width = heads * HEAD_DIM
    pixels = vision.patch_size**2 * 3
    keys = iter(jax.random.split(key, 8))

    def linear(inputs: int, outputs: int) -> Params:
      kernel = jax.random.normal(next(keys), (inputs, outputs))
      kernel = kernel * (inputs**-0.5)
      return {"kernel": kernel, "bias": jnp.zeros((outputs,))}

    def norm() -> Params:
      return {"scale": jnp.ones((width,)), "bias": jnp.zeros((width,))}

    return {
      "embed": linear(vision.width, width),
      "mask_token": 0.02 * jax.random.normal(next(keys), (width,)),
      "position": 0.02 * jax.random.normal(next(keys), (total, width)),
      "norm1": norm(),
      "qkv": linear(width, 3 * width),
      "proj": linear(width, width),
      "norm2": norm(),
      "fc1": linear(width, 4 * width),
      "fc2": linear(4 * width, width),
      "norm": norm(),
      "head": linear(width, pixels),
    }

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    values = []
    for letter in letters(group):
      modality = inputs.letters_to_key[letter]
      patches = MODALITIES[modality].embedding == "patch"
      if modality in inputs.pixels and patches:
        values.append(self._modality(inputs, modality, group))
    if not values:
      raise ValueError(
        f"masked_modelling has nothing to predict in group {group!r}: it "
        "needs a modality that reaches the encoder as patches."
      )
    return Output(
      values=jnp.stack(values).mean(axis=0),
      weights=inputs.row_weight(group),
      metrics={},
      aux={},
    )

  def _modality(
    self, inputs: Inputs, modality: str, group: str
  ) -> Float[Array, " B"]:
    """Mean squared error of the hidden patches of one modality."""
    pixels = inputs.pixels[modality]
    params = inputs.params["objective"][self.name]
    total = len(params["position"])
    patch = round((params["head"]["bias"].shape[0] // 3) ** 0.5)
    site = f"masked_modelling/{group}/{modality}"
    visible = inputs.row_arrays(self.name, group).get("token_indices")
    if visible is None:
      visible = rng.row_subset(
        inputs.keys(site), total, self.num_visible(total)
      )
    tokens = inputs.model.encode(
      inputs.params,
      modality,
      pixels,
      token_indices=visible,
      row_keys=inputs.dropout_keys(site),
      train=inputs.train,
    )[:, :, 1:]
    batch, frames, count, _ = tokens.shape
    flat = tokens.astype(jnp.float32).reshape(batch * frames, count, -1)
    indices = jnp.repeat(visible, frames, axis=0)
    predicted = decode(params, flat, indices)
    target = normalise_patches(patchify(pixels, patch))
    error = jnp.square(predicted.reshape(target.shape) - target).mean(axis=-1)
    rows = jnp.arange(batch)[:, None]
    hidden = jnp.ones((batch, total), error.dtype).at[rows, visible].set(0)
    hidden = hidden[:, None, :] / (frames * (total - count))
    return (error * hidden).sum(axis=(1, 2))
