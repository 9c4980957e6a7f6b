"""Values of Hugging Face data sets, which harnesses hand over, as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mico_jax.inference.omni_model import OmniModel
from mico_jax.modalities import sampling


def as_input(model: OmniModel, key: str, value: Any) -> Any:
  """A value of a data set as an input of `OmniModel.embed`.

  Args:
    model: a loaded checkpoint.
    key: modality.
    value: a Pillow image, a path, a {"array", "sampling_rate"} or a {"bytes",
      "path"} mapping, or a decoder of torchcodec.

  Raises:
    ValueError: for a video decoder where the checkpoint takes frames by time.
  """
  if isinstance(value, Mapping) and "sampling_rate" in value:
    return np.asarray(value["array"], np.float32), int(value["sampling_rate"])
  if isinstance(value, Mapping) and "bytes" in value:  # datasets, undecoded
    return value["bytes"] if value["bytes"] is not None else value["path"]
  if hasattr(value, "get_all_samples"):  # torchcodec.decoders.AudioDecoder
    samples = value.get_all_samples()
    return samples.data.numpy().T, int(samples.sample_rate)
  if hasattr(value, "get_frames_at"):  # torchcodec.decoders.VideoDecoder
    return _frames(model, key, value)
  return value


def _frames(model: OmniModel, key: str, decoder: Any) -> Any:
  """The frames [T, Y, X, 3] of a video that the checkpoint would take.

  Raises:
    ValueError: for a checkpoint that takes frames by time.
  """
  geometry = model.preparer.geometry(key)
  if geometry.sampling != sampling.CHUNK:
    raise ValueError(
      f"the checkpoint takes frames by {geometry.sampling!r}; of decoded "
      f"videos only {sampling.CHUNK!r} can."
    )
  indices = sampling.sample_frames(len(decoder), geometry.frames)
  frames = decoder.get_frames_at([int(i) for i in indices]).data.numpy()
  return np.moveaxis(frames, 1, -1) if frames.shape[1] == 3 else frames
