"""Data source of a folder of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.records import Record, make_record, matches, media_fields
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.storage import Storage
from mico_jax.modalities import MODALITIES, DecodeError


class TfdsSource(SourceKind):
  """A folder written by TFDS in ArrayRecord format.

  `path` is the folder of one version (it holds `dataset_info.json`), `split` a
  TFDS split ("train", "test[:10%]"). `fields` maps modalities and `captions`
  kinds to feature names; unset, features with a modality's key are used.
  """

  kind: ClassVar = "tfds"

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Opens the split.

    Raises:
      ConfigError: if the folder is no dataset in ArrayRecord format.
    """
    del storage  # TFDS reads through etils.epath itself
    import tensorflow_datasets as tfds

    try:
      builder = tfds.builder_from_directory(config.path)
      data: Any = builder.as_data_source(split=config.split)
    except Exception as error:
      text = " ".join(str(error).split())[:200]
      raise ConfigError(
        f"data.sources.{name}: {config.path!r} is no TFDS folder with a split "
        f"{config.split!r} in array_record format: {text}"
      ) from error
    self._data = data
    self._features = dict(builder.info.features.items())
    self._config = config
    counts = {s: i.num_examples for s, i in builder.info.splits.items()}
    text = json.dumps(
      [builder.info.full_name, config.split, counts, len(self._data)],
      sort_keys=True,
    )
    self.sha256 = hashlib.sha256(text.encode()).hexdigest()
    self._kept: list[int] | None = None
    if config.where:
      self._kept = [i for i in range(len(self._data)) if self._wanted(i)]

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._data) if self._kept is None else len(self._kept)

  def record(self, index: int) -> Record:
    """Record of sample `index`.

    Raises:
      DecodeError: if the example is broken.
    """
    if self._kept is not None:
      index = self._kept[index]
    return guarded(lambda: self._record(int(index)), reads=True)

  def _record(self, index: int) -> Record:
    example = self._data[index]
    media = {}
    for key, name in media_fields(self._config).items():
      if name in example:
        media[key] = _media(key, example[name], self._features[name])
    fields = _plain(example)
    return make_record(
      f"{self._config.split}-{index}", fields, media, self._config
    )

  def _wanted(self, index: int) -> bool:
    """Whether an example passes `where`; broken ones do, to be reported."""
    try:
      fields = guarded(lambda: _plain(self._data[index]), reads=True)
    except DecodeError:
      return True
    return matches(fields, self._config, use_split=False)


def _media(key: str, value: Any, feature: Any) -> Callable[[], Any]:
  rate = getattr(feature, "sample_rate", None)
  if MODALITIES[key].rated and isinstance(value, np.ndarray) and rate:
    return lambda: (_sound(value), rate)
  if isinstance(value, np.ndarray) and value.ndim and value.shape[-1] == 1:
    return lambda: value[..., 0]
  return lambda: value


def _sound(value: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
  """Samples as int16, which TFDS stores in wider integers."""
  return value.astype(np.int16) if value.dtype.kind == "i" else value


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
  """Texts and numbers of an example as Python values."""
  fields: dict[str, Any] = {}
  for name, value in example.items():
    if isinstance(value, (bytes, str, int, float)):
      fields[name] = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
      fields[name] = list(value)
    elif np.ndim(value) == 0 and hasattr(value, "item"):
      fields[name] = value.item()
  return fields
