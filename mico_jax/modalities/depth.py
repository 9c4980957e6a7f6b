"""Depth maps in metres, or relative in [0, 1]; a source has one of the two."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from mico_jax.modalities.arrays import as_maps, is_npy, read_npy
from mico_jax.modalities.augmentation import VIEW, Augmentation
from mico_jax.modalities.base import (
  ArraySpec,
  Caption,
  DecodeError,
  Geometry,
  Modality,
  Scale,
)
from mico_jax.modalities.base import Mode as _Mode
from mico_jax.modalities.media import open_image
from mico_jax.modalities.placing import DRAWING
from mico_jax.modalities.spatial import (
  IMAGENET,
  ArrayClip,
  Clip,
  Place,
  augmented_clip,
  crop_flip,
  modes,
  normalise,
  resize_bilinear,
  resize_nearest,
  squash,
)

FAR = 100.0  # metres; values beyond are clipped
NEAR = 0.1  # metres; a map in millimetres must have a value beyond
_SMALLEST = 1e-3  # metres; a nearer reading counts as this in logarithms
_FLAT = 1e-3  # a map that deviates less shows no relief, but noise
UNITS = ("metre", "millimetre", "relative")


def _read(raw: Any, geometry: Geometry) -> Shaped[np.ndarray, "..."]:
  """The values of a depth file or array, in its own unit."""
  if isinstance(raw, np.ndarray):
    return raw
  if not isinstance(raw, (bytes, Image.Image)):
    raise DecodeError(f"expected a depth file or array, got {type(raw)}.")
  if isinstance(raw, bytes) and is_npy(raw):
    return read_npy(raw)
  image = open_image(raw, geometry, values=True)
  if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
    raise DecodeError(
      f"depth must be one channel (8 or 16-bit PNG, .npy), got {image.mode!r}."
    )
  if "transparency" in image.info:
    raise DecodeError("a depth map with a transparent value; 0 is no reading.")
  return np.asarray(image)


def _scale(dtype: np.dtype, unit: str) -> float:
  """The stored value of one metre, or of the whole range of relative depth.

  Raises:
    DecodeError: if values of that dtype cannot be in the unit.
  """
  if dtype.kind == "f":
    return 1000.0 if unit == "millimetre" else 1.0
  if unit == "relative" and dtype in (np.uint8, np.uint16):
    return float(np.iinfo(dtype).max)
  if dtype.kind in "iu" and dtype.itemsize > 1 and unit != "relative":
    return 1000.0 if unit == "millimetre" else 1.0
  raise DecodeError(
    f"depth of {dtype} in unit {unit!r}; expected floats, uint8 or uint16 for "
    "relative depth, or integers of 16 or more bits for metric depth."
  )


def _check_range(
  depth: Float[np.ndarray, "T Y X"], unit: str, *, counts: bool
) -> None:
  """Raises DecodeError for values that cannot be in the declared unit.

  Args:
    depth: in metres, or relative.
    unit: that the source declares.
    counts: whether the map was stored in integers.
  """
  most = float(depth.max())
  if not np.isfinite(depth).all() or depth.min() < 0:
    raise DecodeError("depth holds negative or non-finite values.")
  if unit == "relative":
    if most > 1.0:
      raise DecodeError(f"relative depth exceeds 1 (largest {most:.3g}).")
    return
  if unit == "millimetre" and 0 < most < NEAR:
    raise DecodeError(
      f"depth in millimetres ends at {1000 * most:.3g} mm; if those are "
      "metres, declare them: depth:m:FILE, or depth_unit='metre'."
    )
  if most <= FAR:
    return
  beyond = np.count_nonzero(depth > FAR)
  readings = np.count_nonzero(depth)
  if (counts and unit == "metre") or beyond > 0.9 * readings:
    raise DecodeError(
      f"depth in {unit}s: {beyond} of {readings} readings lie beyond "
      f"{FAR:g} m (largest {most:.6g} m); if those are millimetres, declare "
      "them: depth:mm:FILE, or depth_unit='millimetre'."
    )


def decode_depth(raw: Any, geometry: Geometry) -> Clip:
  """Depth in metres or relative, float32 [T, Y, X]; 0 means no value.

  A minority of values beyond `FAR` is clipped in maps of floats or millimetres.

  Args:
    raw: content of a file, a Pillow image, an array, or a list of frames.
    geometry: with the unit of the source.

  Raises:
    DecodeError: for unreadable maps, several channels, complex, bool and 8-bit
      metric values, and values that do not fit the declared unit.
    ValueError: without a unit.
  """
  unit = geometry.unit
  if unit not in UNITS:
    raise ValueError(
      f"depth without a unit (depth_unit={unit!r}); set the source's "
      f"depth_unit, or write depth:mm:FILE. Known: {', '.join(UNITS)}."
    )
  if isinstance(raw, (list, tuple)):
    if not raw:
      raise DecodeError("the list of depth frames is empty.")
    clips = [decode_depth(r, geometry) for r in raw]
    frames = [clip.take(range(len(clip))) for clip in clips]
    if len(shapes := {f.shape for f in frames}) > 1 or frames[0].shape[0] > 1:
      raise DecodeError(
        f"frames of a list must be single maps of one size, got "
        f"{sorted(shapes)}."
      )
    return ArrayClip(np.concatenate(frames))
  array = as_maps(_read(raw, geometry))
  scale = _scale(array.dtype, unit)
  with np.errstate(over="ignore"):  # infinite values are refused below
    depth = array.astype(np.float32) / np.float32(scale)
  _check_range(depth, unit, counts=array.dtype.kind != "f")
  return ArrayClip(np.minimum(depth, 1.0 if unit == "relative" else FAR))


def _level(x: Any, relative: bool, xp: Any) -> Any:
  """Depth as a grey level: `FAR`, or 1 in relative units, is 1, and 0 is -1."""
  if not relative:  # logarithmic: a centimetre counts more when near
    x = xp.log1p(x) / float(np.log1p(FAR))
  return 2.0 * x - 1.0


def _relief(x: Any, relative: bool, xp: Any) -> Any:
  """Depth standardised within each map, [*B, Y, X] in -3..3.

  Metric depth is compared by its logarithm, whose differences do not depend on
  the size of the scene; relative depth as it is, since it is known up to scale
  and shift. Pixels without a reading are 0 and count nowhere; the level, which
  is -1 there alone, tells them.
  """
  read = (x > 0).astype(xp.float32)
  x = x if relative else xp.log(xp.maximum(x, float(_SMALLEST)))
  total = lambda v: (v * read).sum(axis=(-2, -1), keepdims=True)
  count = xp.maximum(total(read), 1.0)
  x = (x - total(x) / count) * read
  deviation = xp.sqrt(xp.maximum(total(x * x) / count, float(_FLAT) ** 2))
  return xp.clip(x / deviation, -3.0, 3.0)


def _mode(
  name: str,
  place: Place,
  *,
  relative: bool,
  about: str,
  standardised: bool = False,
) -> _Mode:
  seen = place not in DRAWING

  def host(
    clip: Clip,
    geometry: Geometry,
    rng: np.random.Generator | None = None,
    *,
    augment: Augmentation | None = None,
  ) -> np.ndarray:
    if relative != (geometry.unit == "relative"):
      raise ValueError(
        f"depth mode {name!r} does not fit a source whose depth_unit is "
        f"{geometry.unit!r}; set data.inputs.depth.mode."
      )
    frames, view = augmented_clip(
      *(clip, geometry, rng, place, resize_nearest, augment if seen else None)
    )
    return view.hide(frames.astype(np.float16), 0)  # no reading

  def to_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
    del geometry
    x = array.astype(xp.float32)
    level = _level(x, relative, xp)
    if not standardised:
      return xp.broadcast_to(level[..., None], (*level.shape, 3))
    relief = _relief(x, relative, xp)  # twice: most of what a map shows
    return xp.stack([level, relief, relief], axis=-1)

  recipe: dict[str, Any] = {
    "kind": "depth",
    "place": place.__name__,
    "resize": resize_nearest.__name__,
    "values": "linear" if relative else "log",
    "far": 1.0 if relative else FAR,
  }
  if standardised:
    recipe["channels"] = ("level", "standardised", "standardised")
  unit = "relative" if relative else "metre"
  return _Mode(
    *(name, host, to_pixels),
    description=about,
    recipe=recipe,
    unit=unit,
    stages=(VIEW,) * seen,
  )


def _official_host(
  clip: Clip,
  geometry: Geometry,
  rng: np.random.Generator | None = None,
  *,
  augment: Augmentation | None = None,
) -> np.ndarray:
  if geometry.unit != "relative":
    raise ValueError(
      "depth mode 'relative_mico_demo' takes relative depth, not "
      f"{geometry.unit!r}; write depth:relative:FILE."
    )

  def resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return resize_bilinear(x[..., None], size)[..., 0]

  frames, view = augmented_clip(clip, geometry, rng, squash, resize, augment)
  return view.hide(frames.astype(np.float32), 0)


def _official_pixels(array: Any, *, geometry: Geometry, xp: Any) -> Any:
  """Depth as a grey picture in [0, 1], as the official code shows it."""
  del geometry
  x = array.astype(xp.float32)[..., None]
  return normalise(xp.broadcast_to(x, (*x.shape[:-1], 3)), IMAGENET, xp)


def example_depth(geometry: Geometry, seed: int) -> Clip:
  """A tilted plane with a bump, in the source's unit."""
  y, x = np.mgrid[0 : geometry.size, 0 : geometry.size] / geometry.size
  plane = 0.4 + 0.3 * y + 0.2 * np.sin(5 * x + seed)
  plane = plane * (1.0 if geometry.unit == "relative" else 6.0)
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
    *(
      _mode(
        f"{unit}_standardised{suffix}",
        place,
        relative=unit == "relative",
        standardised=True,
        about=f"{unit}, and twice the same standardised per map{more}",
      )
      for unit in ("metric", "relative")
      for suffix, place, more in (
        ("", squash, ""),
        ("_crop_flip", crop_flip, "; crop_flip"),
      )
    ),
    _Mode(
      "relative_mico_demo",
      _official_host,
      _official_pixels,
      description="relative depth as a grey image of image mode mico_demo",
      dtype="float32",
      unit="relative",
      stages=(VIEW,),
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
  native_modes={
    "metre": "metric_standardised",
    "millimetre": "metric_standardised",
    "relative": "relative_standardised",
  },
  example=example_depth,
  context_type="depth",
  caption=Caption("depth", fallback=("omni", "vision")),
  units=UNITS,
  scale=lambda _, mode: Scale(values="m" if mode.unit == "metre" else ""),
  unit_names={"m": "metre", "mm": "millimetre"},
  unit_field="depth_unit",
  notes="untyped 16-bit PNGs are refused: say depth:mm:FILE.png",
)
