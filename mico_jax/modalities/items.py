"""Inputs of a user's call, such as `embed(image=[...])`, as lists of items.

Used by checkpoints and by the folders that are exported from them.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Modality,
  Stated,
  file_spec,
)
from mico_jax.modalities.files import written


@dataclass(frozen=True)
class Item:
  """One input of one modality.

  Attributes:
    value: path, bytes, raw array, Pillow image, text, or a function that
      returns one of these.
    unit: of the values of a depth map ("metre", "millimetre", "relative") or of
      another modality that has `Modality.units`.
    name: for error messages and tables.
    file: whether the value of a text modality is a path instead of the text.
    rate: samples of a series per second, in Hz; 0: its file says it.
    channels: names of its channels in their order; (): its file says them, or
      they are those of the modality.
  """

  value: Any
  unit: str = ""
  name: str = ""
  file: bool = False
  rate: float = 0.0
  channels: tuple[str, ...] = ()


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

  A single text, path, URL, content of a file, open file, Pillow image, (array,
  rate) pair of a sound or series, or array of one input becomes a list of one.
  An array of texts or paths is a list. Open files are read to their end.

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
  if _is_open_file(values):
    return [_content(values)]
  if not isinstance(values, Iterable) or isinstance(values, (Mapping, Set)):
    raise ValueError(
      f"{key} must be a list of inputs, got {type(values).__name__}."
    )
  modality = MODALITIES.get(key)  # an exported folder may lack a record
  if modality is not None and _has_rate(modality, values):
    return [values]
  values = values if isinstance(values, Sequence) else list(values)
  if any(map(_is_open_file, values)):
    return [_content(v) if _is_open_file(v) else v for v in values]
  return values


def _is_open_file(value: Any) -> bool:
  """Whether a value is a file that is open for reading, or like one."""
  return callable(getattr(value, "read", None))


def _content(file: Any) -> Any:
  """What is left to read of an open file, with its name if it has one."""
  content = file.read()
  if not isinstance(content, bytes):
    raise ValueError(
      f"an open file of {type(content).__name__}; open it in mode 'rb'."
    )
  name = getattr(file, "name", "")
  return Item(content, name=name) if isinstance(name, str) and name else content


def _has_rate(modality: Modality, value: Any) -> bool:
  """Whether a value is (array, rate in Hz)."""
  return (
    modality.rated
    and isinstance(value, tuple)
    and len(value) == 2
    and isinstance(value[1], numbers.Real)
  )


def _array_as_list(key: str, array: Shaped[np.ndarray, "..."]) -> Sequence[Any]:
  if array.dtype.kind in "USO":
    return array.reshape(-1).tolist()
  modality = MODALITIES[key]
  # Axes of an input without frames; a sound is [samples].
  plain = 1 if key == "audio" else len(modality.spec.dims) - 1
  maps = modality.spec.dims == ("T", "Y", "X") and not modality.rated
  channel = maps and array.ndim > 1 and array.shape[-1] == 1
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
  in a list of frames; so do those of other modalities of which something is
  stated ("imu:g,deg/s@50:walk.npy", see `mico_jax.modalities.files`).

  Args:
    key: modality.
    value: as the user wrote it.

  Raises:
    ValueError: for the path of a map without a unit, and for frames of
      different units.
  """
  if isinstance(value, Item):
    return value
  modality = MODALITIES[key]
  if modality.kind == "interface":
    return Item(value, name=str(value)[:40])
  if isinstance(value, (str, os.PathLike)):
    text = os.fspath(value)
    if not modality.stated:
      return Item(text, name=text)
    spec = file_spec(text if text.startswith(f"{key}:") else f"{key}:{text}")
    return Item(
      *(spec.path, spec.unit, spec.path),
      rate=spec.rate,
      channels=spec.channels,
    )
  several = isinstance(value, (list, tuple)) and not modality.rated
  if modality.units and several and value:
    frames = [as_item(key, v) for v in value]
    if len(units := {f.unit for f in frames}) > 1:
      raise ValueError(f"frames of one {key} clip differ in unit: {units}.")
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


def stated_of(modality: Modality, item: Item, value: Any, unit: str) -> Stated:
  """What is stated of an input, or holds of a bare array of floats.

  Such an array is in the unit that the mode expects, and a series has the rate
  of its modality and all its channels in their order, unless it says otherwise.

  Args:
    modality: of the input.
    item: the input.
    value: of the item, or its content.
    unit: that bare arrays are taken to have, such as "metre".

  Raises:
    ValueError: for anything else without a unit, unless its file may say it.
  """
  stated = Stated(item.unit, item.rate, item.channels)
  if item.unit or not (modality.units or modality.rate):
    return stated
  pair = _has_rate(modality, value)
  several = isinstance(value, (list, tuple)) and not modality.rated
  arrays = value[:1] if pair else value if several else [value]
  if all(
    hasattr(x, "__array__") and as_array(x).dtype.kind == "f" for x in arrays
  ):
    rate = item.rate if pair else item.rate or modality.rate
    return Stated(unit, rate, item.channels)
  is_file = isinstance(value, (str, bytes, os.PathLike)) or callable(value)
  if modality.in_file and is_file:
    return stated
  raise ValueError(
    f"{modality.key} without a unit; write {written(modality)}, or give an "
    f"array of floats in {unit} (an Item with a unit says another one)."
  )


def check_channels(
  key: str, said: Sequence[str], trained: Sequence[str]
) -> None:
  """Refuses channels other than those of the training.

  Args:
    key: of a modality with `needs_channels`.
    said: that are stated of an input.
    trained: of the model's sources; (): unknown.

  Raises:
    ValueError: if both are there and differ.
  """
  if said and trained and [*said] != [*trained]:
    raise ValueError(
      f"{key} with {len(said)} channels {', '.join(said)[:80]}; the model was "
      f"trained on {len(trained)}, {', '.join(trained)[:80]}."
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
