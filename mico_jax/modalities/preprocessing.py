"""How a config says that a modality is read: options, mode, sizes, pixels.

The only place that resolves the input options of a modality: loading,
training, evaluation, inference and export ask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.config import Config, InputConfig
from mico_jax.modalities import (
  MODALITIES,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Modality,
  Mode,
)


def input_config(config: Config, key: str) -> InputConfig:
  """How a modality is read: the config's entry, else its record's."""
  return config.data.inputs.get(key, MODALITIES[key].default_input)


def mode_of(config: Config, key: str, *, train: bool) -> Mode:
  """The preprocessing of a modality in training or evaluation.

  Raises:
    ValueError: for an unknown mode, listing the known ones.
  """
  options = input_config(config, key)
  if not train and options.eval_mode:
    return MODALITIES[key].mode(options.eval_mode)
  return MODALITIES[key].mode(options.mode, train=train)


def geometry(config: Config, key: str, *, depth_unit: str = "") -> Geometry:
  """Sizes for decoding and transforms of a modality.

  Args:
    config: of the run.
    key: modality.
    depth_unit: of the sample; decoding alone asks for it.
  """
  return Geometry(
    frames=input_config(config, key).frames,
    size=config.model.vision.image_size,
    audio=config.data.audio,
    depth_unit=depth_unit,
    max_pixels=config.data.max_pixels,
  )


def host_array(
  modality: Modality,
  mode: Mode,
  decoded: Any,
  geometry: Geometry,
  rng: np.random.Generator | None,
) -> np.ndarray:
  """What of a decoded sample travels to the device.

  Args:
    modality: of the sample.
    mode: preprocessing.
    decoded: by `modality.decode`.
    geometry: of the modality.
    rng: draws the augmentation; None: deterministic.

  Raises:
    DecodeError: of tokens that may be padding: if all are, or not finite.
  """
  array = mode.host(decoded, geometry, rng)
  own = modality.embedding
  if isinstance(own, CustomEmbedding) and own.valid is not None:
    frames = mode.to_pixels(array, geometry=geometry, xp=np)
    mask = own.valid_tokens(frames, xp=np)
    if mask is not None and not mask.any():
      raise DecodeError(f"no token of this {modality.key} is valid.")
    if not np.isfinite(frames).all():  # would spoil gradients, though masked
      raise DecodeError(
        f"this {modality.key} has values that are not finite (in padding?)."
      )
  return array


def to_pixels(
  config: Config,
  inputs: Mapping[str, Any],
  keys: Sequence[str],
  *,
  train: bool,
  xp: Any,
) -> dict[str, Any]:
  """Normalises what travelled: modality key -> float32 [B T Y X 3].

  Args:
    config: of the run.
    inputs: modality key -> what travelled.
    keys: of the modalities; those of the interface have no pixels.
    train: whether the modes are those of training.
    xp: `numpy` or `jax.numpy`.

  Raises:
    KeyError: if an input is missing.
  """
  return {
    key: mode_of(config, key, train=train).to_pixels(
      inputs[key], geometry=geometry(config, key), xp=xp
    )
    for key in keys
    if MODALITIES[key].kind == "knowledge"
  }
