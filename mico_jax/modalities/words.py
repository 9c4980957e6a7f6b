"""Parts shared by the text modalities: decoding, example and mode."""

from __future__ import annotations

from typing import Any

import numpy as np

from mico_jax.modalities.base import Caption, DecodeError, Geometry, Mode

# Captions of images and videos.
SEEN = Caption(
  "vision",
  fields=("vision_caption", "image_caption", "video_caption"),
  fallback=("omni", "alt_text"),
  general=True,
)
_WORDS = "red green blue small large cube ball cone moves rests left right"


def decode_text(raw: Any, geometry: Geometry | None = None) -> str:
  """UTF-8 bytes or a string as one line of text.

  Raises:
    DecodeError: if it is empty or not UTF-8.
  """
  del geometry
  if isinstance(raw, bytes):
    try:
      raw = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      raise DecodeError(
        f"text is not UTF-8: byte {raw[error.start]:#04x} at {error.start}; "
        "save the file as UTF-8."
      ) from error
  if not isinstance(raw, str):
    raise DecodeError(f"expected text, got {type(raw).__name__}: {raw!r:.60}.")
  text = " ".join(raw.split())
  if not text:
    raise DecodeError("the text is empty.")
  if not text.isascii():
    try:
      text.encode("utf-8")
    except UnicodeEncodeError as error:
      raise DecodeError(
        "text is not UTF-8: it holds a lone surrogate."
      ) from error
  return text


def example_text(geometry: Geometry, seed: int) -> str:
  """A short deterministic sentence."""
  del geometry
  words = _WORDS.split()
  return " ".join(words[(seed + 5 * i) % len(words)] for i in range(5))


def text_modes() -> dict[str, Mode]:
  """The only mode of texts: unchanged; the pipeline tokenizes them."""

  def host(
    text: Any, geometry: Geometry, rng: np.random.Generator | None = None
  ) -> Any:
    del geometry, rng
    return text

  def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
    raise NotImplementedError("text has token ids, no pixels.")

  return {"plain": Mode("plain", host, to_pixels, description="as it is")}
