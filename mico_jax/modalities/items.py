"""Inputs of a user's call, such as `embed(image=[...])`, as lists of items.

Used by checkpoints and by the folders that are exported from them.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from mico_jax.modalities import MODALITIES, DecodeError, file_spec


@dataclass(frozen=True)
class Item:
  """One input of one modality.

  Attributes:
    value: path, bytes, raw array, Pillow image, text, or a function that
      returns one of these.
    depth_unit: of a depth map: "metre", "millimetre" or "relative".
    name: for error messages and tables.
    file: whether the value of a text modality is a path instead of the text.
  """

  value: Any
  depth_unit: str = ""
  name: str = ""
  file: bool = False


def as_array(raw: Any) -> Any:
  """Converts an array of PyTorch, JAX or pandas to NumPy; others stay as is.

  Raises:
    ValueError: for a masked array, whose masked values would be used.
  """
  if isinstance(raw, np.generic) or not hasattr(raw, "__array__"):
    return raw
  if isinstance(raw, np.ma.MaskedArray):
    raise ValueError(
      "a masked array: its masked values would be used; fill it first (depth: "
      "array.filled(0), which means no value)."
    )
  if hasattr(raw, "detach"):  # of PyTorch
    raw = raw.detach().cpu()
    raw = raw.float() if "bfloat16" in str(raw.dtype) else raw
  array = np.asarray(raw)
  return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def as_list(key: str, values: Any) -> Sequence[Any]:
  """The inputs of a modality as a list.

  A single text, path, content of a file, Pillow image, (array, rate) pair of
  sound, or array of one input becomes a list of one. An array of texts or paths
  is a list.

  Args:
    key: modality.
    values: as the user wrote them.

  Raises:
    ValueError: for other types, and for an array that may be either several
      inputs or several frames of one.
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


def _array_as_list(key: str, array: Shaped[np.ndarray, "..."]) -> Sequence[Any]:
  if array.dtype.kind in "USO":
    return array.reshape(-1).tolist()
  modality = MODALITIES[key]
  # Axes of an input without frames; a sound is [samples].
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

  Paths of depth maps start with their unit, "mm:d.png" or "depth:m:d.npy", also
  in a list of frames.

  Args:
    key: modality.
    value: as the user wrote it.

  Raises:
    ValueError: for the path of a depth map without a unit, and for frames of
      different units.
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
  """Name of an input in messages."""
  kind = f"<{type(value).__name__}>"
  try:
    return as_item(key, value).name or kind
  except ValueError:
    plain = isinstance(value, (str, os.PathLike))
    return os.fspath(value)[:80] if plain else kind


def check_bare_depth(value: Any, unit: str) -> None:
  """Checks that depth without a unit is an array of floats, or a list of them.

  Args:
    value: of one input.
    unit: "metre" or "relative": the unit that such arrays are taken to have.

  Raises:
    ValueError: for anything else.
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
  values: Shaped[np.ndarray, "N ..."],
  inputs: Mapping[str, Sequence[Any]],
  what: str,
) -> None:
  """Checks that the outputs of a model are finite.

  Args:
    values: outputs, one row for each input.
    inputs: modality -> aligned inputs.
    what: of the model the rows are, begins the message.

  Raises:
    DecodeError: naming the first input whose row is not finite.
  """
  bad = np.flatnonzero(not_finite(values))
  if len(bad):
    names = [name_of(key, rows[bad[0]]) for key, rows in inputs.items()]
    raise DecodeError(f"{' + '.join(names)}: {what} {NOT_FINITE}")


NOT_FINITE = (
  "of the model is not finite; its values or the parameters are out of range."
)


def not_finite(
  values: Shaped[np.ndarray, "N ..."],
) -> Bool[np.ndarray, " N"]:
  """Mask of the rows that hold a NaN or an infinity."""
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


class Search(NamedTuple):
  """How a text is written; see `GenerationConfig` for the fields."""

  max_new_tokens: int
  num_beams: int
  length_penalty: float
  top_p: float
  temperature: float
  seed: int


def search_options(settings: Mapping[str, Any], **given: Any) -> Search:
  """Checked options of writing.

  Args:
    settings: defaults of all fields, and `most_beams`.
    **given: fields of `Search`; None: the default.

  Raises:
    ValueError: for values that are not allowed: `max_new_tokens` is at least 1,
      `num_beams` from 1 to `most_beams` and 1 with `top_p` above 0, `top_p` in
      [0, 1], `temperature` above 0, `seed` from 0 to 2**32 - 1.
  """
  found = {
    name: settings[name] if given.get(name) is None else given[name]
    for name in Search._fields
  }
  for name, least, most in (
    ("max_new_tokens", 1, math.inf),
    ("num_beams", 1, settings["most_beams"]),
    ("seed", 0, 2**32 - 1),
  ):
    value = found[name]
    whole = int(value) if isinstance(value, numbers.Integral) else -1
    if not least <= whole <= most:
      upper = "" if math.isinf(most) else f" and at most {most}"
      raise ValueError(
        f"{name}={value!r}: must be a whole number of at least {least}{upper}."
      )
    found[name] = whole
  for name, allowed, what in (
    ("length_penalty", lambda x: True, "a finite number"),
    ("top_p", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    ("temperature", lambda x: x > 0, "a finite number above 0"),
  ):
    value = found[name]
    real = isinstance(value, numbers.Real) and math.isfinite(value)
    if not real or not allowed(value):
      raise ValueError(f"{name}={value!r}: must be {what}.")
    found[name] = float(value)
  if found["top_p"] > 0 and found["num_beams"] > 1:
    raise ValueError(
      f"top_p={found['top_p']} draws tokens, which {found['num_beams']} beams "
      "cannot; use num_beams=1, or top_p=0."
    )
  return Search(**found)
