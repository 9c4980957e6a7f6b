"""Depth and normals: maps of a picture, by an estimator given by name."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice, Items, Range, Text
from mico_jax.data.build.models import check_model, model
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import BatchStage, span_of
from mico_jax.data.build.stages.captions import middle_frame, shows_pictures
from mico_jax.data.build.stages.frames import NO_PICTURES, shown_at, shrunk
from mico_jax.modalities import DecodeError, Modality
from mico_jax.modalities.depth import DEPTH
from mico_jax.modalities.normal import NORMAL
from mico_jax.modalities.spatial import IMAGENET

_SIGNS = tuple("".join(s) for s in itertools.product("+-", repeat=3))
Stats = Annotated[
  tuple[Annotated[float, Range(-10.0, 10.0)], ...], Items(only=(3,))
]


@dataclasses.dataclass(frozen=True)
class MapsOptions:
  """Who estimates, and of which frames."""

  # onnx:FILE, hf:NAME (depth alone) or python:MODULE:FUNCTION
  model: Annotated[str, Text(0, 4096, "name")] = ""
  # maps a second, as `frames.fps`; 0: one of the middle of the clip
  fps: Annotated[float, Range(0.0, 240.0, "frames/s")] = 0.0
  # onnx: sides of its input; 0: the graph's
  size: Annotated[int, Range(0, 4096, "pixels")] = 0
  # onnx: of pixels in 0..1
  mean: Stats = IMAGENET[0]
  std: Stats = IMAGENET[1]
  # hf: such as "cuda:0"; "": its own choice
  device: Annotated[str, Text(0, 64, "name")] = ""
  # of the shorter side of the stored map; 0: as estimated
  stored: Annotated[int, Range(0, 4096, "pixels")] = 256
  # clips per call
  batch: Annotated[int, Range(1, 4096)] = 4


@dataclasses.dataclass(frozen=True)
class DepthOptions(MapsOptions):
  """And what the values are."""

  # what the model gives: "relative" (larger is farther), "inverse" (larger is
  # nearer, as Depth Anything and MiDaS), or "metre"
  values: Annotated[str, Choice("", "relative", "inverse", "metre")] = ""


@dataclasses.dataclass(frozen=True)
class NormalOptions(MapsOptions):
  """And what the values are."""

  # range of what the model gives: (n + 1) / 2 or n itself
  values: Annotated[str, Choice("", "0..1", "-1..1")] = ""
  # of x (right), y (up) and z (to the camera) in what the model gives
  signs: Annotated[str, Choice(*_SIGNS)] = "+++"


class _Maps(BatchStage):
  """What depth and normals share."""

  modality: ClassVar[Modality]
  kinds: ClassVar[tuple[str, ...]] = ("onnx", "python")
  task: ClassVar[str] = ""

  def check(self) -> None:
    """See `Stage`."""
    check_model(self.name, self.options.model, self.kinds)
    if not self.options.values:
      raise ConfigError(
        f"{self.name}.values: say what {self.options.model} gives "
        f"(--set {self.name}.values=...); see mico-jax data build --help."
      )

  def item(self, row: Row) -> Any:
    """The pictures of a clip."""
    row.media.pop(self.modality.key, None)  # of another maker
    if not shows_pictures(row):
      row.lacks[self.modality.key] = NO_PICTURES
      return None
    if not self.options.fps or row.raw is None:
      return [middle_frame(row)]
    return list(shown_at(row.raw, *span_of(row), self.options.fps))

  def call(self, items: Sequence[Any]) -> Sequence[Any]:
    """The maps of each clip, a list."""
    options = dataclasses.asdict(self.options) | {"task": self.task}
    estimate = model(self.options.model, options)
    maps = iter(estimate([frame for frames in items for frame in frames]))
    return [list(itertools.islice(maps, len(frames))) for frames in items]

  def keep(self, row: Row, images: list[bytes], **how: Any) -> None:
    """Stores pictures, and how they were made."""
    row.media[self.modality.key] = images if len(images) > 1 else images[0]
    how["model"] = self.options.model
    row.fields.setdefault("estimators", {})[self.modality.key] = how

  def checked(self, maps: Sequence[Any], ndim: int) -> list[np.ndarray]:
    """Finite float32 maps.

    Raises:
      DecodeError: for anything else.
    """
    arrays = [np.asarray(x, np.float32) for x in maps]
    for array in arrays:
      if array.ndim != ndim or (ndim == 3 and array.shape[2] != 3):
        raise DecodeError(f"the model gave a map of shape {array.shape}.")
      if not array.size or not np.isfinite(array).all():
        raise DecodeError("the model gave values that are not finite.")
    return arrays

  @property
  def lists(self) -> bool:  # type: ignore[override]
    """See `Stage`: one map is no list."""
    return self.options.fps > 0


class Depth(_Maps):
  """Stores depth as 16-bit PNG: relative over the clip's range, or mm.

  Relative values are scaled from the clip's range to 1/65535..1 (0 would mean
  no reading), farther being larger; range and direction stand in the record.
  """

  name: ClassVar[str] = DEPTH.key
  Options: ClassVar[type] = DepthOptions
  makes: ClassVar[tuple[str, ...]] = (DEPTH.key,)
  modality: ClassVar[Modality] = DEPTH
  kinds: ClassVar[tuple[str, ...]] = ("onnx", "hf", "python")
  task: ClassVar[str] = "depth-estimation"

  def source(self) -> dict[str, Any]:
    """See `Stage`."""
    metric = self.options.values == "metre"
    return {"depth_unit": "millimetre" if metric else "relative"}

  def store(self, row: Row, result: Any) -> None:
    """See `BatchStage`."""
    maps = [
      reduced(x, self.options.stored)
      for x in self.checked([_plain(x) for x in result], 2)
    ]
    how: dict[str, Any] = {"values": self.options.values}
    if self.options.values == "metre":
      counts = [_millimetres(x) for x in maps]
    else:
      low = float(min(x.min() for x in maps))
      high = float(max(x.max() for x in maps))
      how |= {"low": low, "high": high, "normalisation": "range of the clip"}
      counts = [
        _relative(x, low, high, inverse=self.options.values == "inverse")
        for x in maps
      ]
    self.keep(row, [png(x) for x in counts], **how)


class Normal(_Maps):
  """Stores surface normals as PNG of (n + 1) / 2: R right, G up, B near."""

  name: ClassVar[str] = NORMAL.key
  Options: ClassVar[type] = NormalOptions
  makes: ClassVar[tuple[str, ...]] = (NORMAL.key,)
  modality: ClassVar[Modality] = NORMAL

  def store(self, row: Row, result: Any) -> None:
    """See `BatchStage`."""
    signs = np.asarray([1 if s == "+" else -1 for s in self.options.signs])
    images = []
    for array in self.checked(result, 3):
      if self.options.values == "0..1":
        array = 2 * array - 1
      lengths = np.sqrt((array**2).sum(axis=-1))
      if not 0.5 < float(np.median(lengths)) < 1.5:
        raise DecodeError(
          f"normals of median length {float(np.median(lengths)):.3g}; expected "
          f"1: is {self.name}.values={self.options.values} right?"
        )
      unit = signs * array / np.maximum(lengths, 1e-6)[..., None]
      picture = np.rint((unit + 1) * 127.5).clip(0, 255).astype(np.uint8)
      images.append(png(shrunk(picture, self.options.stored)))
    how = {"values": self.options.values, "signs": self.options.signs}
    self.keep(row, images, **how)


def _plain(array: Any) -> Any:
  """[Y, X] of [1, Y, X] or [Y, X, 1]."""
  array = np.asarray(array)
  if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
    return array.reshape([n for n in array.shape if n > 1] or [1, 1])
  return array


def reduced(
  array: Float[np.ndarray, "Y X"], size: int
) -> Float[np.ndarray, "y x"]:
  """A map with a shorter side of `size` at most: every n-th value (no mix)."""
  height, width = array.shape
  scale = min(1.0, size / min(height, width)) if size else 1.0
  rows, columns = (max(1, round(side * scale)) for side in (height, width))
  y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
  x = ((np.arange(columns) + 0.5) * width / columns).astype(int)
  return array[y][:, x]


def _relative(
  array: np.ndarray, low: float, high: float, *, inverse: bool
) -> UInt16[np.ndarray, "Y X"]:
  share = (array - low) / max(high - low, 1e-12)
  share = 1 - share if inverse else share
  return np.rint(1 + share * 65534).astype(np.uint16)


def _millimetres(array: np.ndarray) -> UInt16[np.ndarray, "Y X"]:
  """Raises DecodeError for what is no depth in metres."""
  if array.min() < 0 or array.max() > 1000:
    raise DecodeError(
      f"depth from {array.min():.3g} to {array.max():.3g} m; expected 0 to "
      "1000: are the values metres?"
    )
  return np.rint(np.minimum(array, 65.535) * 1000).astype(np.uint16)


def png(array: UInt8[np.ndarray, "Y X 3"] | UInt16[np.ndarray, "Y X"]) -> bytes:
  """A PNG; equal values give equal bytes."""
  out = io.BytesIO()
  Image.fromarray(array).save(out, "png")
  return out.getvalue()
