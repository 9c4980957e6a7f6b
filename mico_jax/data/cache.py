"""Cache of decoded media in memory, for small data sets.

Decoding a clip of three seconds takes longer than a small model's step on it.
With a few hundred files, later epochs need not decode again. Samples are kept
before augmentation, so batches are the same with and without the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from mico_jax.modalities import DecodeError
from mico_jax.modalities.spatial import ArrayClip
from mico_jax.modalities.video_file import VideoClip

MIB = 1 << 20


class DecodedCache:
  """Keeps decoded samples up to a limit and never evicts one.

  Every sample is read once per epoch, so no choice of samples to keep is better
  than the first ones.
  """

  def __init__(self, limit_mib: int):
    """Makes an empty cache.

    Args:
      limit_mib: most decoded data to keep, in MiB; 0: none.
    """
    self._limit = limit_mib * MIB
    self._bytes = 0
    self._kept: dict[Hashable, Any] = {}

  def __contains__(self, name: Hashable) -> bool:
    """Whether a sample is kept."""
    return name in self._kept

  def __len__(self) -> int:
    """How many samples are kept."""
    return len(self._kept)

  def get(self, name: Hashable, decode: Callable[[], Any]) -> Any:
    """The kept sample, or a decoded one, which is kept if there is room.

    Args:
      name: identifies the sample and how it is decoded.
      decode: decodes the sample; its errors pass through.
    """
    if name in self._kept:
      return self._kept[name]
    decoded = decode()
    if self._bytes < self._limit:
      whole = _whole(decoded, self._limit - self._bytes)
      if whole is not None:
        self._bytes += _size(whole)
        self._kept[name] = decoded = whole
    return decoded


def _size(decoded: Any) -> int:
  array = decoded.frames if isinstance(decoded, ArrayClip) else decoded
  return array.nbytes


def _whole(decoded: Any, room: int) -> Any:
  """The sample as arrays if they fit into `room` bytes; else None."""
  if isinstance(decoded, VideoClip):
    if decoded.nbytes > room:
      return None
    try:
      frames = decoded.take(range(len(decoded)))
      return ArrayClip(frames, decoded.duration)
    except DecodeError:  # cut short, but the frames in use may be there
      return None
  if isinstance(decoded, (np.ndarray, ArrayClip)) and _size(decoded) <= room:
    return decoded
  return None
