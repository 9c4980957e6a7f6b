"""`mico-jax data sheet`: draws the inputs of a model as one picture.

Each sample is a row of frames, depth, normals, spectrograms and captions, after
decoding and preprocessing in the deterministic modes.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Real, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from mico_jax.config import Config, ConfigError
from mico_jax.data.records import Record
from mico_jax.data.samples import geometry, load_inputs
from mico_jax.data.sources import Source, open_source
from mico_jax.modalities import (
  KNOWLEDGE,
  MODALITIES,
  DecodeError,
  Scale,
  by_letter,
  preprocessing,
)

CELL = 112  # side of a tile in pixels
GAP = 6  # pixels
_TEXT = 480  # width of the captions in pixels
_LETTERS = 78  # of a line of captions
_HEAD = 16  # height of a title in pixels
_LABELS = 30  # width of the labels beside a tile in pixels
_TEXT_SIZE, _SMALL, _LINE = 11, 9, 15  # of fonts and lines in pixels
_GREY = "#555555"
# A perceptual dark-to-bright ramp (violet, teal, yellow) for scalar maps.
_RAMP = np.array(
  [
    (0.07, 0.03, 0.2),
    (0.25, 0.2, 0.5),
    (0.13, 0.5, 0.55),
    (0.4, 0.78, 0.4),
    (0.98, 0.9, 0.2),
  ],
)


def colour_map(x: Real[np.ndarray, "Y X"]) -> UInt8[np.ndarray, "Y X 3"]:
  """Colours of a scalar map, from dark for its minimum to bright."""
  x = x.astype(np.float32)
  low, high = float(x.min()), float(x.max())
  x = (x - low) / (high - low) if high > low else np.zeros_like(x)
  at = np.linspace(0, 1, len(_RAMP))
  rgb = np.stack([np.interp(x, at, _RAMP[:, c]) for c in range(3)], -1)
  return np.rint(rgb * 255).astype(np.uint8)


def drawable(
  config: Config, key: str, array: Shaped[np.ndarray, "T ..."]
) -> Shaped[np.ndarray, "T Y *X"]:
  """What `tiles_of` draws of an input.

  Args:
    config: of the run.
    key: of the modality.
    array: of the host.

  Returns:
    The array, or, where its mode has another shape, the pixels made of it.
  """
  mode = preprocessing.mode_of(config, key, train=False)
  if mode.shape is None:
    return array
  sizes = geometry(config, key)
  return mode.to_pixels(array, geometry=sizes, xp=np)[..., 0]


def scale_of(config: Config, key: str) -> Scale:
  """What the axes and colours of `tiles_of` mean.

  Args:
    config: of the run.
    key: of the modality.
  """
  scale = MODALITIES[key].scale
  if scale is None:
    return Scale()
  mode = preprocessing.mode_of(config, key, train=False)
  return scale(geometry(config, key), mode)


def tiles_of(
  key: str, array: Shaped[np.ndarray, "T Y *X"], unit: str = ""
) -> list[tuple[str, UInt8[np.ndarray, "..."]]]:
  """Titles and pictures of a modality, one per frame or slice.

  Args:
    key: of the modality.
    array: frames as the device gets them.
    unit: of their values; "": none, or not known.

  Returns:
    Pictures [Y, X, 3], or what `Modality.draw` makes of a frame.
  """
  modality, out = MODALITIES[key], []
  for t, frame in enumerate(array):
    name = key if len(array) == 1 else f"{key} {t + 1}"
    if modality.units:
      name = f"{name} {frame.min():.3g}..{frame.max():.3g} {unit}".rstrip()
    if modality.draw is not None:
      frame = modality.draw(frame)
    if frame.ndim < 3:
      frame = colour_map(np.atleast_2d(frame))
    out.append((name, frame))
  return out


def _captions(record: Record, width: int) -> list[str]:
  lines = [record.id]
  for kind in sorted(record.captions):
    text = f"{kind}: {record.captions[kind][0]}"
    lines += textwrap.wrap(text, width, subsequent_indent="  ")
  if record.questions:
    question, answer, _ = record.questions[0]
    lines += textwrap.wrap(f"Q: {question} A: {answer}", width)
  if record.negatives.get("omni"):
    text = f"false: {record.negatives['omni'][0]}"
    lines += textwrap.wrap(text, width, subsequent_indent="  ")
  return lines


@dataclasses.dataclass(frozen=True)
class _Tile:
  """One picture of a row.

  Attributes:
    title: above it.
    picture: to draw.
    scale: what its axes and colours mean.
    limits: the values of the darkest and the brightest colour.
  """

  title: str
  picture: UInt8[np.ndarray, "Y X 3"]
  scale: Scale
  limits: tuple[float, float]


def _tiles(config: Config, key: str, array: np.ndarray) -> list[_Tile]:
  scale, frames = scale_of(config, key), drawable(config, key, array)
  limits = [(float(x.min()), float(x.max())) for x in frames]
  return [
    # A colour bar says the range, where there is one.
    _Tile(
      title.partition(" " if scale.values and len(limits) == 1 else "\n")[0],
      *(picture, scale, limit),
    )
    for (title, picture), limit in zip(
      tiles_of(key, frames), limits, strict=True
    )
  ]


def _row_of(
  config: Config, source: str, record: Record, keys: Sequence[str]
) -> tuple[list[_Tile], list[str]]:
  """Pictures and lines of text of a record."""
  tiles: list[_Tile] = []
  lines = _captions(record, _LETTERS)
  wrap = lambda text: textwrap.wrap(text, _LETTERS)
  try:
    broken: dict[str, str] = {}
    inputs = load_inputs(config, record, source, keys, None, broken=broken)
    for reason in broken.values():
      lines += wrap(f"broken: {reason}")
    for key in keys:
      head = by_letter(MODALITIES[key].head).key
      if key in inputs and (head == key or head not in inputs):
        tiles += _tiles(config, key, inputs[key])
  except DecodeError as error:
    lines += wrap(f"broken: {error}")
  return tiles, lines


class _Pen:
  """Draws texts in a font whose spaces are as wide as they ought to be.

  matplotlib brings the font; the one that comes with Pillow sets words so
  closely at this size that they run together.
  """

  def __init__(self, sheet: Image.Image):
    import matplotlib

    place = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
    self._draw = ImageDraw.Draw(sheet)
    self._fonts = {
      size: ImageFont.truetype(place / "DejaVuSans.ttf", size)
      for size in (_SMALL, _TEXT_SIZE)
    }

  def text(
    self, x: float, y: float, text: str, *, small: bool = False, anchor="la"
  ) -> None:
    """Writes lines; `anchor` as in Pillow."""
    font = self._fonts[_SMALL if small else _TEXT_SIZE]
    fill = _GREY if small else "black"
    spacing = _LINE - _TEXT_SIZE - 2
    self._draw.text(
      *((x, y), text),
      fill=fill,
      font=font,
      anchor=None if "\n" in text else anchor,
      spacing=spacing,
    )

  def line(self, *ends: tuple[float, float]) -> None:
    """Draws a thin line."""
    self._draw.line(ends, fill=_GREY)


def _draw_tile(
  sheet: Image.Image, pen: _Pen, x: int, y: int, tile: _Tile
) -> None:
  """Draws a tile with title, ticks and colour bar; `x` is its left edge."""
  pen.text(x, y, tile.title)
  top = y + _HEAD
  picture = Image.fromarray(tile.picture)
  near = Image.Resampling.NEAREST
  sheet.paste(picture.resize((CELL, CELL), near), (x, top))
  below = top + CELL
  if tile.scale.up is not None:
    for place, label in tile.scale.up.ticks:
      at = below - place * CELL
      pen.line((x - 4, at), (x - 1, at))
      pen.text(x - 5, at, label, small=True, anchor="rm")
    pen.text(x - 5, top, tile.scale.up.unit, small=True, anchor="rt")
  if tile.scale.right is not None:
    for place, label in tile.scale.right.ticks:
      last = place == 1.0
      text = f"{label} {tile.scale.right.unit}" if last else label
      anchor = "rt" if last else "lt" if place == 0 else "mt"
      pen.text(x + place * CELL, below + 3, text, small=True, anchor=anchor)
  if tile.scale.values:
    bar = colour_map(np.linspace(0, 1, CELL)[None])
    line = below + (16 if tile.scale.right is not None else 4)
    sheet.paste(Image.fromarray(bar).resize((CELL, 5), near), (x, line))
    low, high = (f"{value:.3g}" for value in tile.limits)
    pen.text(x, line + 8, low, small=True, anchor="lt")
    high = f"{high} {tile.scale.values}"
    pen.text(x + CELL, line + 8, high, small=True, anchor="rt")


def draw_records(
  config: Config,
  records: Sequence[tuple[str, Record]],
  *,
  keys: Sequence[str] = KNOWLEDGE,
) -> Image.Image:
  """Draws records, one per row; broken ones with the reason.

  Maps whose record says what they measure have a colour bar with its unit, and
  ticks of their axes.

  Args:
    config: of the run.
    records: name of the source and record of each sample.
    keys: modalities to draw.
  """
  rows = [_row_of(config, source, record, keys) for source, record in records]
  columns = max((len(tiles) for tiles, _ in rows), default=0)
  # The first tile of a column that has labels at its left makes room for all.
  lefts = [
    _LABELS * any(len(t) > i and t[i].scale.up is not None for t, _ in rows)
    for i in range(columns)
  ]
  heights = [
    max(
      _HEAD + CELL + max((_foot(t.scale) for t in tiles), default=0),
      _LINE * len(lines) + _HEAD,
    )
    + GAP
    for tiles, lines in rows
  ]
  width = GAP + sum(lefts) + columns * (CELL + GAP) + _TEXT
  sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
  pen = _Pen(sheet)
  y = GAP
  for (tiles, lines), height in zip(rows, heights, strict=True):
    x = GAP
    for i, tile in enumerate(tiles):
      _draw_tile(sheet, pen, x + lefts[i], y, tile)
      x += lefts[i] + CELL + GAP
    x = GAP + sum(lefts) + columns * (CELL + GAP)
    pen.text(x, y, "\n".join(lines))
    y += height
  return sheet


def _foot(scale: Scale) -> int:
  """Pixels below a tile."""
  return 14 * (scale.right is not None) + 24 * bool(scale.values)


def draw_sheet(
  config: Config,
  out: str | pathlib.Path,
  n: int = 8,
  *,
  source_name: str = "",
  indices: Sequence[int] | None = None,
) -> pathlib.Path:
  """Draws the first samples of a source to a PNG.

  Args:
    config: of the run.
    out: path of the PNG.
    n: number of samples.
    source_name: a source of the config; "": the first one.
    indices: samples to draw instead of the first `n`.

  Returns:
    The path written.

  Raises:
    ConfigError: without a data source, or for an unknown one.
  """
  if not config.data.sources:
    raise ConfigError("the config has no data.sources to draw.")
  name = source_name or next(iter(config.data.sources))
  source: Source = open_source(config, name)
  records = []
  for i in range(min(n, len(source))) if indices is None else indices:
    try:
      records.append((name, source.record(i)))
    except DecodeError as error:
      records.append((name, Record(f"{name}[{i}]: {error}")))
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  draw_records(config, records).save(path, optimize=True)
  return path
