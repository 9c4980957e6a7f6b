"""Preprocessing of a modality, set by a config: options, mode, sizes, pixels.

The only place that resolves the input options of a modality, for loading,
training, evaluation, inference and export.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from mico_jax.config import Config, InputConfig
from mico_jax.modalities import (
  MODALITIES,
  UNSTATED,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  Stated,
  as_columns,
)
from mico_jax.modalities.augmentation import Augmentation
from mico_jax.modalities.sampling import CHUNK


def input_config(config: Config, key: str) -> InputConfig:
  """Input options of a modality: the config's, else those of its record."""
  return config.data.inputs.get(key, MODALITIES[key].default_input)


def mode_of(config: Config, key: str, *, train: bool) -> Mode:
  """The preprocessing mode of a modality in training or evaluation.

  Raises:
    ValueError: for an unknown mode, listing the known ones.
  """
  options = input_config(config, key)
  if not train and options.eval_mode:
    return MODALITIES[key].mode(options.eval_mode)
  return MODALITIES[key].mode(options.mode, train=train)


def geometry(
  config: Config,
  key: str,
  *,
  stated: Stated = UNSTATED,
  frame_rate: float = 0.0,
  draft: bool = False,
) -> Geometry:
  """Sizes for decoding and preprocessing of a modality.

  Args:
    config: of the run.
    key: modality.
    stated: of the sample; needed for decoding only.
    frame_rate: of its frames without times, per second; 0: unknown.
    draft: whether JPEG may be decoded at a reduced size, as in training.
  """
  options = input_config(config, key)
  return Geometry(
    frames=options.frames,
    size=config.model.vision.image_size,
    audio=config.data.audio,
    unit=stated.unit,
    rate=stated.rate,
    channels=stated.channels,
    columns=as_columns(config.data.columns.get(key, ())),
    max_pixels=config.data.max_pixels,
    sampling=options.sampling,
    fps=options.fps,
    stride=options.stride,
    frame_rate=frame_rate,
    draft=options.draft if draft else 0.0,
  )


def samplings(
  config: Config, keys: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
  """How modalities choose their frames, where it is not by chunks.

  Returns:
    {"sampling": modality -> fields of `Geometry`}, or {} if all use chunks,
    as stored by checkpoints of before there were others.
  """
  table = {}
  for key in keys:
    if MODALITIES[key].kind == "knowledge":
      g = geometry(config, key)
      if g.sampling != CHUNK:
        table[key] = {
          name: getattr(g, name) for name in ("sampling", "fps", "stride")
        }
  return {"sampling": table} if table else {}


def host_array(
  modality: Modality,
  mode: Mode,
  decoded: Any,
  geometry: Geometry,
  rng: np.random.Generator | None,
  augment: Augmentation | None = None,
) -> Shaped[np.ndarray, "..."]:
  """The array of a decoded sample that is sent to the device.

  Args:
    modality: of the sample.
    mode: preprocessing.
    decoded: sample returned by `modality.decode`.
    geometry: of the modality.
    rng: draws what the mode itself draws; None: deterministic.
    augment: transforms of the sample, for modes with stages; None: none.

  Raises:
    DecodeError: for tokens of a custom embedding that are all padding or not
      finite.
  """
  more = {"augment": augment} if augment is not None and mode.stages else {}
  array = mode.host(decoded, geometry, rng, **more)
  embedding = modality.embedding
  if isinstance(embedding, CustomEmbedding) and embedding.valid is not None:
    frames = mode.to_pixels(array, geometry=geometry, xp=np)
    mask = embedding.valid_tokens(frames, xp=np)
    if mask is not None and not mask.any():
      raise DecodeError(f"no token of this {modality.key} is valid.")
    if not np.isfinite(frames).all():  # spoils gradients even where masked
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
  """Normalised inputs: modality -> float32 [B T Y X 3].

  Args:
    config: of the run.
    inputs: modality -> array from the host.
    keys: modalities to normalise; texts have no pixels and are left out.
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
