"""From what a user hands in to the arrays a checkpoint's model takes.

Files, bytes and raw arrays of every modality are decoded and preprocessed as
the checkpoint's config says, in the deterministic evaluation modes.
"""

from __future__ import annotations

import concurrent.futures
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mico_jax.config import Config
from mico_jax.data import samples
from mico_jax.data.remote import Storage
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.failures import is_transient
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  file_spec,
)

TEXT_KINDS = ("default", "omni")  # a query may be as long as either
_STORAGE = Storage()


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


def as_list(key: str, values: Any) -> Sequence[Any]:
  """The inputs of a modality that a user gives; a bare one is a list of one.

  Bare are a text, a path, the content of a file, an (array, rate) pair of
  sound, and an array of one input. An array that may be several inputs or
  several frames of one is refused; an array of texts or paths is a list.

  Raises:
    ValueError: saying what to write.
  """
  if isinstance(values, (str, bytes, os.PathLike, Item)):
    return [values]
  if hasattr(values, "__array__"):  # also of JAX, PyTorch, pandas
    return _array_as_list(key, np.asarray(values))
  if not isinstance(values, Sequence):
    raise ValueError(
      f"{key} must be a list of inputs, got {type(values).__name__}."
    )
  if (
    isinstance(values, tuple)
    and len(values) == 2
    and isinstance(values[1], numbers.Real)
  ):
    return [values]
  return values


def _array_as_list(key: str, array: np.ndarray) -> Sequence[Any]:
  if array.dtype.kind in "USO":
    return array.reshape(-1).tolist()
  modality = MODALITIES[key]
  # What one input without frames has; a sound is [samples].
  plain = 1 if key == "audio" else len(modality.spec.dims) - 1
  channel = key == "depth" and array.ndim > 1 and array.shape[-1] == 1
  several = array.ndim - channel > plain and len(array) > 1
  if several and (array.ndim - channel > plain + 1 or key != "video"):
    raise ValueError(
      f"{key}: an array {list(array.shape)} may be {len(array)} inputs or one "
      f"of several frames; write {key}=list(array) or {key}=[array]."
    )
  return [array]


def as_item(key: str, value: Any) -> Item:
  """Wraps one entry of `embed(image=[...])`.

  The path of a depth map says its unit: "mm:d.png", "depth:m:d.npy"; so does
  each one of a list of frames.

  Raises:
    ValueError: for a depth map whose path does not, or whose frames differ.
  """
  if isinstance(value, Item):
    return value
  if MODALITIES[key].kind == "interface":
    return Item(value, name=str(value)[:40])
  if isinstance(value, (str, os.PathLike)):
    text = os.fspath(value)
    if key == "depth":
      spec = file_spec(text if text.startswith("depth:") else f"depth:{text}")
      return Item(spec.path, spec.depth_unit, spec.path)
    return Item(text, name=text)
  if key == "depth" and isinstance(value, (list, tuple)) and value:
    frames = [as_item(key, v) for v in value]
    if len(units := {f.depth_unit for f in frames}) > 1:
      raise ValueError(f"frames of one depth clip differ in unit: {units}.")
    return Item([f.value for f in frames], units.pop(), frames[0].name)
  return Item(value, name=f"<{type(value).__name__}>")


def name_of(key: str, value: Any) -> str:
  """What an input is called in messages."""
  try:
    return as_item(key, value).name
  except ValueError:
    return str(value)[:80]


def check_finite(
  values: np.ndarray, given: Mapping[str, Sequence[Any]], what: str
) -> None:
  """Checks the rows that a model gave for aligned inputs.

  Raises:
    DecodeError: naming the first input whose row is not finite.
  """
  bad = np.flatnonzero(not_finite(values))
  if len(bad):
    names = [name_of(key, rows[bad[0]]) for key, rows in given.items()]
    raise DecodeError(f"{' + '.join(names)}: {what} {NOT_FINITE}")


NOT_FINITE = (
  "of the model is not finite; its values or the parameters are out of range."
)


def not_finite(values: np.ndarray) -> np.ndarray:
  """Which rows hold a NaN or an infinity."""
  axes = tuple(range(1, values.ndim))
  return np.asarray(~np.isfinite(values).all(axis=axes))


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
    try:
      item = as_item(key, value)
      if modality.kind == "interface":
        raw = _STORAGE.read(item.value) if item.file else item.value
        text = modality.decode(raw, self.geometry(key))
        return self.tokenizer.encode(text, self.max_length(key))
      raw = _read(item.value() if callable(item.value) else item.value)
      if key == "depth" and not item.depth_unit:
        self._check_bare_depth(item.value)
      geometry = self.geometry(key, item.depth_unit)
      decoded = modality.decode(raw, geometry)
      return self.mode(key).host(decoded, geometry, None)
    except Exception as e:  # whatever the content of a file makes of decoders
      if is_transient(e):
        raise
      text = " ".join(str(e).split())
      if not isinstance(e, ValueError):  # DecodeError is one.
        text = f"cannot be used: {type(e).__name__}: {text[:200]}"
      name = name_of(key, value)
      if not text.startswith(f"{name}: "):
        text = f"{name}: {text}"
      raise DecodeError(text) from e

  def _check_bare_depth(self, value: Any) -> None:
    """Raises ValueError unless depth without a unit is an array of floats."""
    arrays = value if isinstance(value, (list, tuple)) else [value]
    if not all(
      isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in arrays
    ):
      raise ValueError(
        "depth without a unit; write mm:FILE, m:FILE or relative:FILE, or give "
        f"an array of floats in {self.depth_unit()} "
        "(mico_jax.inputs.Item(value, unit) says another one)."
      )

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
        return self.prepare_one(key, value)
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


def _read(raw: Any) -> Any:
  """The content of a path or of a list that holds some; else as given."""
  if isinstance(raw, (list, tuple)):
    return (list if isinstance(raw, list) else tuple)(map(_read, raw))
  if isinstance(raw, (str, os.PathLike)):
    return _STORAGE.read(os.fspath(raw))
  if isinstance(raw, np.generic) or not hasattr(raw, "__array__"):
    return raw
  return np.asarray(raw)  # of JAX or PyTorch as well


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


def as_lists(inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
  """`as_list` of each modality."""
  return {key: as_list(key, values) for key, values in inputs.items()}


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
