"""Pictures of items in `examples.json`, chosen for a measurement."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mico_jax.modalities import MODALITIES, by_letter

_MAX_SIDE = 1024  # of a picture that is drawn, in pixels


def shown_keys(item: Mapping[str, Any], letters: str) -> set[str]:
  """The modalities of an item that a measurement has seen.

  Args:
    item: of `examples.json`.
    letters: of the measurement.

  Returns:
    Keys of the modalities, and of those that serve where one is missing, as an
    image for a video.
  """
  keys = {key for key, m in MODALITIES.items() if m.letter in letters}
  there = {tile["modality"] for tile in item.get("tiles") or ()}
  return keys | {
    key
    for key, m in MODALITIES.items()
    if m.head in letters and by_letter(m.head).key not in there
  }


def one_tile_each(
  item: Mapping[str, Any], letters: str, field: str = "tiles"
) -> list[Mapping[str, Any]]:
  """The first picture of each modality of a measurement, in its order.

  Args:
    item: of `examples.json`.
    letters: of the measurement.
    field: of the item: "tiles", or "attention", which few items have.
  """
  first: dict[str, Mapping[str, Any]] = {}
  wanted = shown_keys(item, letters)
  for tile in item.get(field) or ():
    if tile["modality"] in wanted:
      head = MODALITIES[tile["modality"]].head
      first.setdefault(head, tile)
  order = lambda head: letters.index(head) if head in letters else len(letters)
  return [first[head] for head in sorted(first, key=order)]


def picture_of(tile: Mapping[str, Any]) -> UInt8[np.ndarray, "Y X 3"]:
  """The pixels of a picture.

  Args:
    tile: of an item.

  Raises:
    ValueError: if it is no JPEG of at most 1024 pixels a side.
  """
  from PIL import Image

  try:
    data = base64.b64decode(tile["jpeg"], validate=True)
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
      if max(image.size) > _MAX_SIDE:
        raise ValueError(
          f"a picture of {image.size} pixels; expected at most {_MAX_SIDE}."
        )
      return np.asarray(image.convert("RGB"))
  except (OSError, KeyError, TypeError, binascii.Error) as error:
    raise ValueError(f"an example's picture is no JPEG: {error}") from None
