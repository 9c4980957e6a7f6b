"""`mico-jax data sheet`: draws the inputs of a model as one picture.

Each sample is a row of frames, depth, normals, spectrograms and captions, after
decoding and preprocessing in the deterministic modes.
"""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Real, Shaped, UInt8
from PIL import Image, ImageDraw

from mico_jax.config import Config, ConfigError
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import Source, open_source
from mico_jax.modalities import (
  KNOWLEDGE,
  MODALITIES,
  DecodeError,
  by_letter,
)

CELL = 112  # side of a tile in pixels
GAP = 6  # pixels
_TEXT = 380  # width of the captions in pixels
_HEAD = 18  # height of a title in pixels
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


def tiles_of(
  key: str, array: Shaped[np.ndarray, "T Y *X"]
) -> list[tuple[str, UInt8[np.ndarray, "..."]]]:
  """Titles and pictures of a modality, one per frame or slice.

  Args:
    key: of the modality.
    array: frames as the device gets them.

  Returns:
    Pictures [Y, X, 3], or what `Modality.draw` makes of a frame.
  """
  modality, out = MODALITIES[key], []
  for t, frame in enumerate(array):
    name = key if len(array) == 1 else f"{key} {t + 1}"
    if modality.units:
      name = f"{name} {frame.min():.3g}..{frame.max():.3g}"
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


def draw_records(
  config: Config,
  records: Sequence[tuple[str, Record]],
  *,
  keys: Sequence[str] = KNOWLEDGE,
) -> Image.Image:
  """Draws records, one per row; broken ones with the reason.

  Args:
    config: of the run.
    records: name of the source and record of each sample.
    keys: modalities to draw.
  """
  rows = []
  for source, record in records:
    tiles: list[tuple[str, np.ndarray]] = []
    lines = _captions(record, 60)
    try:
      broken: dict[str, str] = {}
      inputs = load_inputs(config, record, source, keys, None, broken=broken)
      for reason in broken.values():
        lines += textwrap.wrap(f"broken: {reason}", 60)
      for key in keys:
        head = by_letter(MODALITIES[key].head).key
        if key in inputs and (head == key or head not in inputs):
          tiles += tiles_of(key, inputs[key])
    except DecodeError as error:
      lines += textwrap.wrap(f"broken: {error}", 60)
    rows.append((tiles, lines))
  columns = max((len(tiles) for tiles, _ in rows), default=0)
  heights = [
    max(_HEAD + CELL, 12 * len(lines) + _HEAD) + GAP for _, lines in rows
  ]
  width = GAP + columns * (CELL + GAP) + _TEXT
  sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
  draw = ImageDraw.Draw(sheet)
  y = GAP
  for (tiles, lines), height in zip(rows, heights, strict=True):
    for i, (name, array) in enumerate(tiles):
      x = GAP + i * (CELL + GAP)
      draw.text((x, y), name, fill="black")
      tile = Image.fromarray(array).resize(
        (CELL, CELL), Image.Resampling.NEAREST
      )
      sheet.paste(tile, (x, y + _HEAD))
    x = GAP + columns * (CELL + GAP)
    text = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")
    draw.multiline_text((x, y), text, fill="black", spacing=2, font_size=10)
    y += height
  return sheet


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
  draw_records(config, records).save(path)
  return path
