"""Attention of the encoder as pictures, for a few items of `examples.json`."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from mico_jax import failures
from mico_jax.aliases import Params
from mico_jax.config import Config
from mico_jax.data.identity import tell
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.sheet import drawable, tiles_of
from mico_jax.evaluation.examples import as_jpeg
from mico_jax.evaluation.features import Embedder
from mico_jax.evaluation.shown_items import one_tile_each
from mico_jax.modalities import MODALITIES, DecodeError, preprocessing
from mico_jax.models import MiCo
from mico_jax.models.inspection import attention

ITEMS = 4  # of an evaluation
_DARK = 0.2  # of the brightness is left where nothing is attended to


def add_attention(
  contents: Mapping[str, Any],
  embedder: Embedder,
  source: str,
  records: Sequence[Record | None],
) -> None:
  """Adds `attention` to the items that texts were written for.

  Without such texts, to the items that were found first. Each gets a picture of
  the first frame of each modality, dark where the token that stands for the
  frame attends to nothing in the last block, relative to the largest weight.
  Encoders without attention among all tokens get none.

  Args:
    contents: of `examples.json`, changed in place.
    embedder: the model.
    source: name of the data source.
    records: of the gallery.
  """
  for item, letters in _wanted(contents.get("examples") or ()).items():
    record, shown = records[item], contents["items"][str(item)]
    keys = [
      tile["modality"]
      for tile in one_tile_each(shown, letters)
      if MODALITIES[tile["modality"]].embedding == "patch"
    ]
    if record is None or not keys:
      continue
    try:
      inputs = load_inputs(
        embedder.config, record, source, keys, None, broken={}
      )
      shown["attention"] = [_tile(embedder, key, inputs[key]) for key in inputs]
    except DecodeError:
      continue
    except ValueError:  # an encoder without attention
      return
    except Exception as error:  # such as memory: numbers matter more
      tell(f"no attention in the examples: {failures.describe(error)}")
      return


def _wanted(examples: Sequence[Mapping[str, Any]]) -> dict[int, str]:
  """Items and the letters of their measurement, the first `ITEMS`."""
  written = [x for x in examples if not x["candidates"]]
  found: dict[int, str] = {}
  for example in written or examples:
    entries = [example["query"]] if written else example["answers"][:1]
    for entry in entries:
      if entry.get("item") is not None and len(found) < ITEMS:
        found.setdefault(entry["item"], example["letters"])
  return found


def _maps(
  params: Params,
  arrays: Mapping[str, Array],
  key: str,
  *,
  model: MiCo,
  config: Config,
) -> Float[Array, "B T L"]:
  """Weights of every frame, the mean over the heads of the last block."""
  pixels = preprocessing.to_pixels(config, arrays, (key,), train=False, xp=jnp)
  return attention(model, params, key, pixels[key]).mean(axis=2)


def _tile(embedder: Embedder, key: str, array: np.ndarray) -> dict[str, str]:
  """The first frame of an input under its attention."""
  run = embedder.compiled(
    "attention",
    lambda: jax.jit(
      functools.partial(_maps, model=embedder.model, config=embedder.config),
      static_argnums=2,
    ),
  )
  weights = np.asarray(run(embedder.params, {key: array[None]}, key))[0, 0]
  side = round(len(weights) ** 0.5)
  draw = MODALITIES[key].draw or (lambda frame: frame)
  grid = draw(weights.reshape(side, side))
  title, picture = tiles_of(key, drawable(embedder.config, key, array))[0]
  return {
    "modality": key,
    "title": f"attention on {title}",
    "jpeg": as_jpeg(shaded(picture, grid)),
  }


def shaded(
  picture: UInt8[np.ndarray, "Y X 3"], weights: Float[np.ndarray, "gy gx"]
) -> UInt8[np.ndarray, "y x 3"]:
  """A picture, darker where a map is small.

  Args:
    picture: of any size; it is enlarged to whole patches.
    weights: of its patches, from the upper left one; not negative.
  """
  rows, columns = weights.shape
  each = max(1, -(-picture.shape[0] // rows), -(-picture.shape[1] // columns))
  size = (rows * each, columns * each)
  at = [
    np.arange(n) * old // n for n, old in zip(size, picture.shape, strict=False)
  ]
  large = picture[np.ix_(*at)].astype(np.float32)
  share = weights / max(float(weights.max()), 1e-12)
  share = np.kron(share, np.ones((each, each)))[..., None]
  return np.rint(large * (_DARK + (1 - _DARK) * share)).astype(np.uint8)
