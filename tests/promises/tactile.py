"""Sensors of touch: 32 samples of 6 channels, tokens of its own ("signal")."""

from __future__ import annotations

from typing import Any

import numpy as np

from mico_jax.modalities.base import (
  ArraySpec,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Modality,
  Mode,
)

SHAPE = (32, 6)  # samples, channels: forces and torques


def decode(raw: Any, geometry: Geometry) -> np.ndarray:
  """An array [samples, channels] or [T, samples, channels]."""
  array = np.asarray(raw)
  array = array[None] if array.ndim == 2 else array
  if array.shape[1:] != SHAPE:
    raise DecodeError(f"expected a signal {SHAPE}, got {array.shape}.")
  return np.resize(array, (geometry.frames, *SHAPE))


def host(
  signal: np.ndarray, geometry: Geometry, rng: np.random.Generator | None = None
) -> np.ndarray:
  """What travels: as it is, in 16 bits."""
  del geometry, rng
  return signal.astype(np.float16)


def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  """What the embedding takes."""
  del geometry
  return array.astype(xp.float32)


def example(geometry: Geometry, seed: int) -> np.ndarray:
  """Waves of several frequencies."""
  time = np.arange(geometry.frames * SHAPE[0]).reshape(-1, SHAPE[0], 1)
  wave = np.sin(0.1 * (seed + 1) * time * np.arange(1, SHAPE[1] + 1))
  return wave.astype(np.float32)


TACTILE = Modality(
  key="tactile",
  letter="q",
  kind="knowledge",
  spec=ArraySpec(("T", "S", "C"), "float16", "N and Nm", (-20, 20)),
  decode=decode,
  modes={"plain": Mode("plain", host, to_pixels)},
  default_mode="plain",
  example=example,
  embedding=CustomEmbedding(
    "mico_jax.layers.embed:SignalEmbed",
    frame=SHAPE,
    tokens=4,
    torch="mico_jax.interop.torch_template.signal_embed:SignalEmbed",
  ),
  context_type="tactile",
)
