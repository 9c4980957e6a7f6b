"""From what a user hands in to the arrays a checkpoint's model takes.

Files, bytes and raw arrays of every modality are decoded and preprocessed as
the checkpoint's config says, in the deterministic evaluation modes.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from mico_jax.config import Config
from mico_jax.data import samples
from mico_jax.data.faults import guarded
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  file_spec,
)

TEXT_KINDS = ("default", "omni")  # a query may be as long as either


@dataclass(frozen=True)
class Item:
  """One input: what it is and where it comes from.

  Attributes:
    value: path, bytes, raw array, text, or a function that gives one.
    depth_unit: of a depth map: "metre", "millimetre" or "relative".
    name: for error messages and tables.
    file: `value` is a path even where the modality is a text.
  """

  value: Any
  depth_unit: str = ""
  name: str = ""
  file: bool = False


def as_item(key: str, value: Any) -> Item:
  """Wraps one entry of `embed(image=[...])`.

  A depth map given by path may say its unit: "mm:d.png", "depth:mm:d.png".
  """
  if isinstance(value, Item):
    return value
  if MODALITIES[key].kind == "interface":
    return Item(value, name=str(value)[:40])
  if isinstance(value, (str, os.PathLike)):
    text = os.fspath(value)
    if key == "depth" and ":" in text:
      spec = file_spec(text if text.startswith("depth:") else f"depth:{text}")
      return Item(spec.path, spec.depth_unit, spec.path)
    return Item(text, name=text)
  return Item(value, name=f"<{type(value).__name__}>")


def read_file(path: str) -> bytes:
  """Content of a local or remote file.

  Raises:
    DecodeError: if it cannot be read, with the reason.
  """
  try:
    return epath.Path(path).read_bytes()
  except FileNotFoundError:
    raise DecodeError("no such file.") from None
  except IsADirectoryError:
    raise DecodeError("is a folder, expected a file.") from None
  except OSError as e:
    reason = e.strerror or type(e).__name__
    raise DecodeError(f"cannot be read: {reason}.") from e


class Preparer:
  """Decodes and preprocesses inputs for one config.

  Attributes:
    config: of the checkpoint.
    tokenizer: of the checkpoint.
    keys: modalities the model can take, interface ones included.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self.config = config
    self.tokenizer = tokenizer
    self.keys = enabled_keys(config)
    lengths = config.data.tokenizer.max_length
    # Captions of any length embed alike; only the padding differs.
    self._text_length = max(
      [lengths[kind] for kind in TEXT_KINDS if kind in lengths] or [40]
    )
    self._subtitle_length = lengths.get("subtitle", self._text_length)

  def max_length(self, key: str) -> int:
    """Tokens of a text or subtitle."""
    return self._subtitle_length if key == "subtitle" else self._text_length

  def mode(self, key: str) -> Mode:
    """The evaluation preprocessing of a modality."""
    return samples.mode_of(self.config, key, train=False)

  def depth_unit(self) -> str:
    """The unit the depth mode works in: "relative" or "metre"."""
    return "relative" if "relative" in self.mode("depth").name else "metre"

  def geometry(self, key: str, depth_unit: str = "") -> Geometry:
    """Sizes and units for decoding one sample of a modality."""
    if key == "depth" and not depth_unit:
      depth_unit = self.depth_unit()
    return Geometry(
      frames=samples.input_config(self.config, key).frames,
      size=self.config.model.vision.image_size,
      audio=self.config.data.audio,
      depth_unit=depth_unit,
      max_pixels=self.config.data.max_pixels,
    )

  def describe(self) -> dict[str, Any]:
    """Preprocessing of every modality, for the manifest."""
    table = {}
    for key in self.keys:
      if MODALITIES[key].kind != "knowledge":
        continue
      table[key] = {
        "frames": samples.input_config(self.config, key).frames,
        "train": samples.mode_of(self.config, key, train=True).name,
        "eval": self.mode(key).name,
      }
      if key == "depth":
        table[key]["unit"] = self.depth_unit()
    return table

  def check_key(self, key: str) -> Modality:
    """The record of a modality that the model can take.

    Raises:
      ValueError: listing the ones it can.
    """
    if key not in self.keys:
      raise ValueError(
        f"this checkpoint takes no {key!r} input; it takes: "
        f"{', '.join(self.keys)}."
      )
    return MODALITIES[key]

  def prepare_one(self, key: str, value: Any) -> np.ndarray:
    """Decodes and preprocesses one input.

    Raises:
      DecodeError: in one line that starts with the input's name.
    """
    modality = self.check_key(key)
    item = as_item(key, value)
    try:
      if modality.kind == "interface":
        raw = read_file(item.value) if item.file else item.value
        text = modality.decode(raw, self.geometry(key))
        return self.tokenizer.encode(text, self.max_length(key))
      raw = item.value() if callable(item.value) else item.value
      if isinstance(raw, str):
        raw = read_file(raw)
      elif isinstance(raw, (list, tuple)) and all(
        isinstance(r, (str, os.PathLike)) for r in raw
      ):
        raw = [read_file(os.fspath(r)) for r in raw]
      geometry = self.geometry(key, item.depth_unit)
      decoded = modality.decode(raw, geometry)
      return self.mode(key).host(decoded, geometry, None)
    except ValueError as e:  # DecodeError is one.
      raise DecodeError(f"{item.name}: {e}") from e

  def prepare(
    self, key: str, values: Sequence[Any]
  ) -> tuple[np.ndarray | None, list[int], list[DecodeError]]:
    """Prepares several inputs in threads.

    Returns:
      The stacked arrays of the good inputs (None if there are none), the
      indices of those, and the errors of the others in order.
    """
    self.check_key(key)

    def attempt(value: Any) -> np.ndarray | DecodeError:
      try:
        return guarded(
          lambda: self.prepare_one(key, value), as_item(key, value).name
        )
      except DecodeError as e:
        return e

    threads = max(self.config.data.num_threads, 1)
    if threads == 1 or len(values) == 1:
      results = [attempt(v) for v in values]
    else:
      with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(attempt, values))
    arrays, kept, errors = [], [], []
    for i, result in enumerate(results):
      if isinstance(result, DecodeError):
        errors.append(result)
      else:
        arrays.append(result)
        kept.append(i)
    return (np.stack(arrays) if arrays else None), kept, errors


def enabled_keys(config: Config) -> tuple[str, ...]:
  """Modalities that a config's model has tables and a head for."""
  model = config.model
  found = []
  for key, modality in MODALITIES.items():
    if modality.kind != "knowledge":
      continue
    head = modality.head_letter or modality.letter
    context = modality.context_type
    if context == "normal" and model.normals_as == "depth":
      head, context = "d", "depth"
    if head in model.heads and context in model.frame_table:
      found.append(key)
  interface = [
    key
    for key, m in MODALITIES.items()
    if m.kind == "interface" and m.letter in model.heads
  ]
  return (*found, *interface)


def lengths_of(inputs: Mapping[str, Sequence[Any]]) -> int:
  """The common length of aligned lists.

  Raises:
    ValueError: if they differ or there are none.
  """
  sizes = {key: len(values) for key, values in inputs.items()}
  if not sizes:
    raise ValueError("no inputs given, e.g. image=['photo.jpg'].")
  if len(set(sizes.values())) > 1:
    raise ValueError(f"aligned lists must have the same length, got {sizes}.")
  return next(iter(sizes.values()))
