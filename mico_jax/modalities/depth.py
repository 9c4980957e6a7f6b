"""Depth: metres, or relative in [0, 1]; the two never mix in one source."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from mico_jax.modalities.base import ArraySpec, DecodeError, Geometry, Modality
from mico_jax.modalities.base import Mode as _Mode
from mico_jax.modalities.media import open_image
from mico_jax.modalities.spatial import (
  IMAGENET,
  ArrayClip,
  Clip,
  Place,
  crop_flip,
  modes,
  normalise,
  place_clip,
  resize_bilinear,
  resize_nearest,
  squash,
)

FAR = 100.0  # metres; readings beyond are clipped
UNITS = ("metre", "millimetre", "relative")


def _read(raw: Any, geometry: Geometry) -> np.ndarray:
  if isinstance(raw, np.ndarray):
    return raw
  if not isinstance(raw, bytes):
    raise DecodeError(f"expected a depth file or array, got {type(raw)}.")
  if raw[:6] == b"\x93NUMPY":
    try:
      return np.load(io.BytesIO(raw), allow_pickle=False)
    except ValueError as error:
      raise DecodeError(f"not a readable .npy file: {error}") from error
  with open_image(raw, geometry) as image:
    if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
      raise DecodeError(
        "depth must be one channel (8 or 16-bit PNG, .npy), got "
        f"{image.mode!r}."
      )
    return np.asarray(image)


def decode_depth(raw: Any, geometry: Geometry) -> Clip:
  """Depth in the unit that travels, float32 [T, Y, X]; 0 means no reading."""
  if geometry.depth_unit not in UNITS:
    raise ValueError(
      f"depth without a unit (depth_unit={geometry.depth_unit!r}); set the "
      f"source's depth_unit, or write depth:mm:FILE. Known: {', '.join(UNITS)}."
    )
  if isinstance(raw, (list, tuple)):
    if not raw:
      raise DecodeError("the list of depth frames is empty.")
    return ArrayClip(
      np.concatenate([decode_depth(r, geometry).take([0]) for r in raw])
    )
  array = _read(raw, geometry)
  array = array[None] if array.ndim == 2 else array
  if array.ndim != 3 or 0 in array.shape or array.dtype.kind not in "uif":
    raise DecodeError(f"depth must be [Y, X] numbers, got {array.shape}.")
  depth = array.astype(np.float32)
  if geometry.depth_unit == "millimetre":
    depth /= 1000.0
  elif geometry.depth_unit == "relative" and array.dtype.kind in "ui":
    depth /= float(np.iinfo(array.dtype).max if array.itemsize < 4 else 65535)
  limit = 1.0 if geometry.depth_unit == "relative" else FAR
  if not np.isfinite(depth).all() or depth.min() < 0:
    raise DecodeError("depth holds negative or non-finite values.")
  if limit == 1.0 and depth.max() > 1.0:
    raise DecodeError(f"relative depth exceeds 1 (largest {depth.max():.3g}).")
  return ArrayClip(np.minimum(depth, limit))


def _mode(name: str, place: Place, *, relative: bool, about: str) -> _Mode:
  def host(
    clip: Clip, geometry: Geometry, rng: np.random.Generator | None = None
  ) -> np.ndarray:
    if relative != (geometry.depth_unit == "relative"):
      raise ValueError(
        f"depth mode {name!r} does not fit a source whose depth_unit is "
        f"{geometry.depth_unit!r}; set data.inputs.depth.mode."
      )
    frames, _ = place_clip(clip, geometry, rng, place, resize_nearest)
    return frames.astype(np.float16)

  def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
    del geometry
    x = array.astype(xp.float32)
    if not relative:  # logarithmic: a centimetre counts more when near
      x = xp.log1p(x) / float(np.log1p(FAR))
    x = 2.0 * x[..., None] - 1.0
    return xp.broadcast_to(x, (*x.shape[:-1], 3))

  recipe = {
    "kind": "depth",
    "place": place.__name__,
    "resize": resize_nearest.__name__,
    "values": "linear" if relative else "log",
    "far": 1.0 if relative else FAR,
  }
  return _Mode(name, host, to_pixels, description=about, recipe=recipe)


def _released_host(
  clip: Clip, geometry: Geometry, rng: np.random.Generator | None = None
) -> np.ndarray:
  if geometry.depth_unit != "relative":
    raise ValueError(
      "depth mode 'relative_mico_demo' takes relative depth, not "
      f"{geometry.depth_unit!r}; write depth:relative:FILE."
    )

  def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_bilinear(x[..., None], size)[..., 0]

  return place_clip(clip, geometry, rng, squash, resize)[0].astype(np.float32)


def _released_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  """Depth as the grey picture that the released encoder was shown."""
  del geometry
  x = array.astype(xp.float32)[..., None]
  return normalise(xp.broadcast_to(x, (*x.shape[:-1], 3)), IMAGENET, xp)


def example_depth(geometry: Geometry, seed: int) -> Clip:
  """A tilted plane with a bump, in the source's unit."""
  y, x = np.mgrid[0 : geometry.size, 0 : geometry.size] / geometry.size
  plane = 0.4 + 0.3 * y + 0.2 * np.sin(5 * x + seed)
  plane = plane * (1.0 if geometry.depth_unit == "relative" else 6.0)
  return ArrayClip(np.repeat(plane[None], geometry.frames, 0).astype("float32"))


DEPTH = Modality(
  key="depth",
  letter="d",
  kind="knowledge",
  spec=ArraySpec(("T", "Y", "X"), "float16", "metre or 0..1", (0, FAR)),
  decode=decode_depth,
  modes=modes(
    _mode("metric", squash, relative=False, about="log(1 + m), up to 100 m"),
    _mode("relative", squash, relative=True, about="0..1 to -1..1"),
    _mode("metric_crop_flip", crop_flip, relative=False, about="and crop_flip"),
    _mode(
      "relative_crop_flip", crop_flip, relative=True, about="and crop_flip"
    ),
    _Mode(
      "relative_mico_demo",
      _released_host,
      _released_pixels,
      description="relative depth as a grey image of image mode mico_demo",
      dtype="float32",
      recipe={
        "kind": "depth",
        "place": squash.__name__,
        "resize": resize_bilinear.__name__,
        "values": "picture",
        "far": 1.0,
        "mean": IMAGENET[0],
        "std": IMAGENET[1],
      },
    ),
  ),
  default_mode="metric",
  example=example_depth,
  context_type="depth",
  notes="untyped 16-bit PNGs are refused: say depth:mm:FILE.png",
)
