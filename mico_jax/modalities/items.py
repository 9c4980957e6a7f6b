"""What a user hands in: how many inputs it is, and what is said of each.

Checkpoints and the folders that they are exported to ask here alike.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.modalities import MODALITIES, DecodeError, file_spec


@dataclass(frozen=True)
class Item:
  """One input: what it is and where it comes from.

  Attributes:
    value: path, bytes, raw array, Pillow image, text, or a function that gives
      one.
    depth_unit: of a depth map: "metre", "millimetre" or "relative".
    name: for error messages and tables.
    file: `value` is a path even where the modality is a text.
  """

  value: Any
  depth_unit: str = ""
  name: str = ""
  file: bool = False


def as_array(raw: Any) -> Any:
  """The NumPy array of what holds one (PyTorch, JAX, pandas); else `raw`.

  Raises:
    ValueError: for a masked array, whose hidden values would count.
  """
  if isinstance(raw, np.generic) or not hasattr(raw, "__array__"):
    return raw
  if isinstance(raw, np.ma.MaskedArray):
    raise ValueError(
      "a masked array: what it hides would count; fill it first (depth: "
      "array.filled(0), which means no reading)."
    )
  if hasattr(raw, "detach"):  # of PyTorch
    raw = raw.detach().cpu()
    raw = raw.float() if "bfloat16" in str(raw.dtype) else raw
  array = np.asarray(raw)
  return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def as_list(key: str, values: Any) -> Sequence[Any]:
  """The inputs of a modality that a user gives; a bare one is a list of one.

  Bare are a text, a path, the content of a file, a Pillow image, an (array,
  rate) pair of sound, and an array of one input. An array that may be several
  inputs or several frames of one is refused; an array of texts or paths is a
  list.

  Raises:
    ValueError: saying what to write.
  """
  if isinstance(values, (str, bytes, os.PathLike, Image.Image, Item)):
    return [values]
  if hasattr(values, "__array__"):  # also of JAX, PyTorch, pandas
    return _array_as_list(key, as_array(values))
  if not isinstance(values, Sequence):
    raise ValueError(
      f"{key} must be a list of inputs, got {type(values).__name__}."
    )
  if (
    key == "audio"
    and isinstance(values, tuple)
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
  kind = f"<{type(value).__name__}>"
  try:
    return as_item(key, value).name or kind
  except ValueError:
    plain = isinstance(value, (str, os.PathLike))
    return os.fspath(value)[:80] if plain else kind


def check_bare_depth(value: Any, unit: str) -> None:
  """Checks depth that comes without a unit.

  Args:
    value: of one input.
    unit: "metre" or "relative": what such arrays are read as.

  Raises:
    ValueError: unless it is an array of floats, or a list of such.
  """
  arrays = value if isinstance(value, (list, tuple)) else [value]
  floats = all(
    hasattr(x, "__array__") and as_array(x).dtype.kind == "f" for x in arrays
  )
  if not floats:
    raise ValueError(
      "depth without a unit; write mm:FILE, m:FILE or relative:FILE, or give "
      f"an array of floats in {unit} (an Item with a unit says another one)."
    )


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


def search_options(
  settings: Mapping[str, Any],
  max_new_tokens: int | None,
  num_beams: int | None,
  length_penalty: float | None,
) -> tuple[int, int, float]:
  """What a search for captions is bounded and weighed by.

  Args:
    settings: `max_new_tokens`, `num_beams` and `length_penalty` for those of
      the others that are None, and `most_beams`.
    max_new_tokens: at least 1.
    num_beams: from 1 to `most_beams`.
    length_penalty: a finite number.

  Raises:
    ValueError: for other values.
  """
  counts = []
  for name, value, most in (
    ("max_new_tokens", max_new_tokens, math.inf),
    ("num_beams", num_beams, settings["most_beams"]),
  ):
    value = settings[name] if value is None else value
    whole = int(value) if isinstance(value, numbers.Integral) else 0
    if not 1 <= whole <= most:
      upper = "" if math.isinf(most) else f" and at most {most}"
      raise ValueError(
        f"{name}={value!r}: must be a whole number of at least 1{upper}."
      )
    counts.append(whole)
  penalty = settings["length_penalty"]
  penalty = penalty if length_penalty is None else length_penalty
  if not isinstance(penalty, numbers.Real) or not math.isfinite(penalty):
    raise ValueError(f"length_penalty={penalty!r}: must be a finite number.")
  return counts[0], counts[1], float(penalty)
