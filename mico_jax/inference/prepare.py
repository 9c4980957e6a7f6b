"""From what a user hands in to the arrays a checkpoint's model takes.

Files, bytes and raw arrays of every modality are decoded and preprocessed as
the checkpoint's config says, in the deterministic evaluation modes.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.config import Config
from mico_jax.data.faults import guarded
from mico_jax.data.guard import Guard
from mico_jax.data.storage import Storage
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  as_configured,
  preprocessing,
)
from mico_jax.modalities.items import (
  NOT_FINITE,
  Item,
  as_array,
  as_item,
  as_list,
  check_bare_depth,
  check_finite,
  lengths_of,
  name_of,
  not_finite,
  search_options,
)

_LENGTH = 40  # tokens of a text where the config names none


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
    self._storage = Storage.of(config.data)

  def max_length(self, key: str) -> int:
    """Tokens of a text or subtitle: those of its longest kind.

    Captions of any length embed alike; only the padding differs.
    """
    lengths = self.config.data.tokenizer.max_length
    for name in (key, "text"):
      kinds = MODALITIES[name].text_kinds
      if known := [lengths[kind] for kind in kinds if kind in lengths]:
        return max(known)
    return _LENGTH

  def mode(self, key: str) -> Mode:
    """The evaluation preprocessing of a modality."""
    return preprocessing.mode_of(self.config, key, train=False)

  def geometry(self, key: str, depth_unit: str = "") -> Geometry:
    """Sizes and units for decoding one sample of a modality."""
    unit = depth_unit or self.mode(key).unit
    return preprocessing.geometry(self.config, key, depth_unit=unit)

  def describe(self) -> dict[str, Any]:
    """Preprocessing of every modality, for the manifest."""
    table = {}
    for key in self.keys:
      if MODALITIES[key].kind != "knowledge":
        continue
      table[key] = {
        "frames": preprocessing.input_config(self.config, key).frames,
        "train": preprocessing.mode_of(self.config, key, train=True).name,
        "eval": self.mode(key).name,
      }
      if self.mode(key).unit:
        table[key]["unit"] = self.mode(key).unit
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
      item = guarded(lambda: as_item(key, value))
      raw = guarded(lambda: self._read(modality, item), reads=True)
      return guarded(lambda: self._prepared(modality, item, raw))
    except DecodeError as error:
      name, text = name_of(key, value), str(error)
      if text.startswith(f"{name}: "):
        raise
      raise DecodeError(f"{name}: {text}") from error

  def _read(self, modality: Modality, item: Item) -> Any:
    """The content of an input, from where it lies."""
    if modality.kind == "interface":
      return self._storage.read(item.value) if item.file else item.value
    value = item.value() if callable(item.value) else item.value
    return _contents(value, self._storage)

  def _prepared(self, modality: Modality, item: Item, raw: Any) -> np.ndarray:
    key = modality.key
    if modality.kind == "interface":
      text = modality.decode(raw, self.geometry(key))
      return self.tokenizer.encode(text, self.max_length(key))
    if modality.units and not item.depth_unit:
      check_bare_depth(item.value, self.mode(key).unit)
    geometry = self.geometry(key, item.depth_unit)
    decoded = modality.decode(raw, geometry)
    return preprocessing.travelling(
      modality, self.mode(key), decoded, geometry, None
    )

  def prepare(
    self, key: str, values: Sequence[Any]
  ) -> tuple[np.ndarray | None, list[int], list[DecodeError]]:
    """Prepares several inputs in threads.

    Returns:
      The stacked arrays of the good inputs (None if there are none), the
      indices of those, and the errors of the others in order.

    Raises:
      StalledDecoder: if one takes longer than `data.timeout`; its `index` is
        the place in `values`.
      TransientError: for storage or memory that stays short.
    """
    decoded = self.check_key(key).kind != "interface"

    results: dict[int, np.ndarray | DecodeError] = {}
    todo = iter(range(len(values)))  # taken from by all threads, one at a time

    def work(guard: Guard) -> None:
      for i in todo:
        guard.at(key, i, name_of(key, values[i]))
        try:
          results[i] = self.prepare_one(key, values[i])
        except DecodeError as e:
          results[i] = e

    def watched(_: int) -> None:
      guard = Guard(self.config.data.timeout)
      if decoded:
        guard.run(lambda: work(guard))
      else:
        work(guard)

    threads = min(max(self.config.data.num_threads, 1), len(values))
    if threads <= 1:
      watched(0)
    else:
      with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(watched, range(threads)))
    arrays, kept, errors = [], [], []
    for i, result in sorted(results.items()):
      if isinstance(result, DecodeError):
        errors.append(result)
      else:
        arrays.append(result)
        kept.append(i)
    return (np.stack(arrays) if arrays else None), kept, errors


def _contents(raw: Any, storage: Storage) -> Any:
  """The content of a path or of a list that holds some; else as given."""
  if isinstance(raw, (list, tuple)):
    kind = list if isinstance(raw, list) else tuple
    return kind(_contents(item, storage) for item in raw)
  if isinstance(raw, (str, os.PathLike)):
    return storage.read(os.fspath(raw))
  return as_array(raw)


def enabled_keys(config: Config) -> tuple[str, ...]:
  """Modalities that a config's model has tables and a head for."""
  model = config.model
  found = []
  for key, modality in MODALITIES.items():
    if modality.kind != "knowledge":
      continue
    read = as_configured(modality, model)
    if read.head in model.heads and read.context_type in model.frame_table:
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


__all__ = [
  "NOT_FINITE",
  "Item",
  "Preparer",
  "as_item",
  "as_list",
  "as_lists",
  "check_finite",
  "enabled_keys",
  "lengths_of",
  "name_of",
  "not_finite",
  "search_options",
]
