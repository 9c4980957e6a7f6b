"""Preparation of a user's inputs for the model of a checkpoint.

Files, bytes and raw arrays of every modality are decoded and preprocessed by
the checkpoint's config, in its deterministic evaluation modes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mico_jax.config import Config
from mico_jax.data.faults import guarded
from mico_jax.data.guard import Guard
from mico_jax.data.statements import common_channels
from mico_jax.data.storage import Storage
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Modality,
  Mode,
  Stated,
  as_configured,
  has_text,
  letters,
  preprocessing,
)
from mico_jax.modalities.items import (
  NOT_FINITE,
  Item,
  as_array,
  as_item,
  check_channels,
  name_of,
  not_finite,
  stated_of,
)

_LENGTH = 40  # tokens of a text where the config states none


class Preparer:
  """Decodes and preprocesses inputs for one config.

  Attributes:
    config: of the checkpoint.
    tokenizer: of the checkpoint.
    keys: modalities that the model accepts, texts and subtitles included.
  """

  def __init__(self, config: Config, tokenizer: Tokenizer):
    self.config = config
    self.tokenizer = tokenizer
    self.keys = enabled_keys(config)
    self._storage = Storage.of(config.data)

  def max_length(self, key: str) -> int:
    """Tokens of a text or subtitle, the maximum over its kinds of captions.

    The length does not change an embedding, only its padding.
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

  def geometry(self, key: str, stated: Stated | None = None) -> Geometry:
    """Sizes, and what is stated, for decoding one sample of a modality.

    Args:
      key: modality.
      stated: of the sample; None: what holds of bare arrays of floats.
    """
    modality = MODALITIES[key]
    if stated is None:
      stated = Stated(self.mode(key).unit, modality.rate)
    if modality.named and not stated.channels:
      channels = common_channels(self.config, key)
      stated = dataclasses.replace(stated, channels=channels)
    elif modality.needs_channels:
      check_channels(key, stated.channels, common_channels(self.config, key))
    return preprocessing.geometry(self.config, key, stated=stated)

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
      how = preprocessing.samplings(self.config, (key,))
      table[key].update(how.get("sampling", {}).get(key, {}))
    return table

  def check_key(self, key: str) -> Modality:
    """The record of a modality that the model accepts.

    Raises:
      ValueError: for another one, listing those that it accepts.
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
    return self._of_one(key, value, self._prepared)

  def decode_one(self, key: str, value: Any) -> tuple[Any, Geometry]:
    """Decodes one input of a knowledge modality, to look at or listen to.

    Returns:
      What `Modality.decode` gives, and the sizes that it was given.

    Raises:
      DecodeError: in one line that starts with the input's name.
    """
    return self._of_one(key, value, self._decoded)

  def content_of(self, key: str, value: Any) -> Any:
    """The bytes of an input that is a file; another one as it is.

    Raises:
      DecodeError: in one line that starts with the input's name.
    """
    return self._of_one(key, value, lambda modality, item, raw: raw)

  def _of_one(
    self, key: str, value: Any, work: Callable[[Modality, Item, Any], Any]
  ) -> Any:
    """The result of `work` on an input that is read; its errors name it."""
    modality = self.check_key(key)
    try:
      item = guarded(lambda: as_item(key, value))
      raw = guarded(lambda: self._read(modality, item), reads=True)
      return guarded(lambda: work(modality, item, raw))
    except DecodeError as error:
      name, text = name_of(key, value), str(error)
      if text.startswith(f"{name}: "):
        raise
      raise DecodeError(f"{name}: {text}") from error

  def _read(self, modality: Modality, item: Item) -> Any:
    """The content of an input: bytes of a file, or the value itself."""
    if modality.kind == "interface":
      return self._storage.read(item.value) if item.file else item.value
    value = item.value() if callable(item.value) else item.value
    if isinstance(value, str) and item.unit in modality.inline:
      return value.encode()
    return _contents(value, self._storage)

  def _prepared(self, modality: Modality, item: Item, raw: Any) -> np.ndarray:
    key = modality.key
    if modality.kind == "interface":
      text = modality.decode(raw, self.geometry(key))
      return self.tokenizer.encode(text, self.max_length(key))
    decoded, geometry = self._decoded(modality, item, raw)
    return preprocessing.host_array(
      modality, self.mode(key), decoded, geometry, None
    )

  def _decoded(
    self, modality: Modality, item: Item, raw: Any
  ) -> tuple[Any, Geometry]:
    key = modality.key
    stated = stated_of(modality, item, item.value, self.mode(key).unit)
    geometry = self.geometry(key, stated)
    return modality.decode(raw, geometry), geometry

  def prepare(
    self, key: str, values: Sequence[Any]
  ) -> tuple[np.ndarray | None, list[int], list[DecodeError]]:
    """Prepares several inputs in threads.

    Returns:
      The stacked arrays of the usable inputs (None if there are none), their
      indices, and the errors of the others in order.

    Raises:
      StalledDecoder: if one takes longer than `data.timeout` seconds; its
        `index` is its position in `values`.
      TransientError: if storage or memory is not available for long.
    """
    decoded = self.check_key(key).kind != "interface"
    results: dict[int, np.ndarray | DecodeError] = {}
    todo = iter(range(len(values)))  # shared by all threads

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
  """The content of a path, also in lists; other values as they are."""
  if isinstance(raw, (list, tuple)):
    kind = list if isinstance(raw, list) else tuple
    return kind(_contents(item, storage) for item in raw)
  if isinstance(raw, (str, os.PathLike)):
    return storage.read(os.fspath(raw))
  return as_array(raw)


def enabled_keys(config: Config) -> tuple[str, ...]:
  """Modalities that a config's model has tables and a head for."""
  model = config.model
  enabled = []
  for key, modality in MODALITIES.items():
    if modality.kind != "knowledge":
      continue
    read = as_configured(modality, model)
    if read.head in model.heads and read.context_type in model.frame_table:
      enabled.append(key)
  interface = [
    key
    for key, m in MODALITIES.items()
    if m.kind == "interface" and m.letter in model.heads
  ]
  return (*enabled, *interface)


def trained_contexts(config: Config) -> list[str]:
  """Letters of the context of every group of a task, in the tasks' order."""
  # Sorted, since the keys of a stored config come back in order.
  return [
    letters(group)
    for _, task in sorted(config.tasks.items())
    for _, groups in sorted(task.objectives.items())
    for group in groups
    if has_text(group) or ":" not in group
  ]


__all__ = ["NOT_FINITE", "Item", "Preparer", "not_finite"]
