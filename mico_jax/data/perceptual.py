"""Perceptual hash of pictures, and the groups of pictures that look alike.

The hash is the difference hash of 64 bits: the picture, upright and over white,
is reduced to 9 x 8 grey pixels (Pillow's box filter), and each bit says whether
a pixel is brighter than its right neighbour, row by row. Pictures of equal
hashes, or of hashes that differ in at most `distance` bits, look alike. A flat
picture has no differences and thus no hash.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

_BANDS = 4  # parts of a hash; of hashes with fewer differing bits one is equal
MAX_DISTANCE = _BANDS - 1
_MOST_PIXELS = 120_000_000


def difference_hash(data: bytes) -> int | None:
  """The hash of a picture; None for what is no picture, or flat.

  Args:
    data: content of a file.
  """
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(data)) as image:
      if image.width * image.height > _MOST_PIXELS:
        return None
      image.draft("L", (64, 64))
      upright = ImageOps.exif_transpose(image)
      if "A" in upright.getbands() or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        upright = Image.alpha_composite(ground, rgba)
      grey = upright.convert("L").resize((9, 8), Image.Resampling.BOX)
  except Exception:  # Pillow raises many kinds; `data verify` names them
    return None
  pixels = np.asarray(grey, np.int16)
  bits = (pixels[:, :-1] > pixels[:, 1:]).ravel()
  if not np.diff(pixels, axis=1).any():
    return None
  return int.from_bytes(np.packbits(bits).tobytes(), "big")


def alike(hashes: Mapping[int, int], distance: int = 0) -> list[list[int]]:
  """Groups of pictures that look alike, directly or through others.

  Args:
    hashes: index -> hash.
    distance: most bits in which two hashes differ, 0 to `MAX_DISTANCE`.

  Returns:
    Sorted indices of each group of at least two, in the order of the first.
  """
  if not 0 <= distance <= MAX_DISTANCE:
    raise ValueError(f"{distance=} must be from 0 to {MAX_DISTANCE}.")
  by_hash: dict[int, list[int]] = {}
  for index, value in hashes.items():
    by_hash.setdefault(value, []).append(index)
  values = list(by_hash)
  parents = list(range(len(values)))

  def root(i: int) -> int:
    while parents[i] != i:
      parents[i] = parents[parents[i]]
      i = parents[i]
    return i

  if distance:
    for band in range(_BANDS):
      for places in _equal_bands(values, band):
        for n, i in enumerate(places):
          for j in places[n + 1 :]:
            if (values[i] ^ values[j]).bit_count() <= distance:
              parents[root(j)] = root(i)
  groups: dict[int, list[int]] = {}
  for i, value in enumerate(values):
    groups.setdefault(root(i), []).extend(by_hash[value])
  return sorted(sorted(g) for g in groups.values() if len(g) > 1)


def _equal_bands(values: Sequence[int], band: int) -> list[list[int]]:
  """Places of the hashes that are equal in a part."""
  places: dict[int, list[int]] = {}
  for i, value in enumerate(values):
    places.setdefault(value >> (16 * band) & 0xFFFF, []).append(i)
  return [group for group in places.values() if len(group) > 1]
