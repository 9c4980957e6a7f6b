"""One sample: from a source's record to the arrays that travel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mico_jax.config import Config, ConfigError, InputConfig, TaskConfig
from mico_jax.data import language
from mico_jax.data.cache import DecodedCache
from mico_jax.data.order import generator
from mico_jax.data.records import Record
from mico_jax.data.sources import Source
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Mode,
  by_letter,
  letters,
)


class _Draws:
  """Generators of equal state, made once (making one costs more than using)."""

  def __init__(self, rng_key: tuple[Any, ...] | None, purpose: str):
    self._rng = None if rng_key is None else generator(*rng_key, purpose)
    self._state = self._rng.bit_generator.state if self._rng else {}

  def again(self) -> np.random.Generator | None:
    """The generator, set back to its start; None in evaluation."""
    if self._rng is not None:
      self._rng.bit_generator.state = self._state
    return self._rng


QUESTIONS = "question_answering"  # the objective that asks


def input_config(config: Config, key: str) -> InputConfig:
  """How a modality is read: the config's entry, else the modality's own."""
  return config.data.inputs.get(key, MODALITIES[key].default_input)


def geometry(config: Config, key: str, source: str = "") -> Geometry:
  """Sizes for decoding and transforms of a modality.

  Args:
    config: of the run.
    key: modality.
    source: data source, for its depth unit; "": the first that names one.
  """
  sources = config.data.sources
  if source:
    spec = sources[source]
    unit = spec.depth_unit or ("metre" if spec.kind == "omniworld" else "")
  else:
    units = [s.depth_unit for s in sources.values() if s.depth_unit]
    unit = units[0] if units else "metre"
  return Geometry(
    frames=input_config(config, key).frames,
    size=config.model.vision.image_size,
    audio=config.data.audio,
    depth_unit=unit,
    max_pixels=config.data.max_pixels,
  )


def mode_of(config: Config, key: str, *, train: bool) -> Mode:
  """The preprocessing of a modality in training or evaluation."""
  spec = input_config(config, key)
  if not train and spec.eval_mode:
    return MODALITIES[key].mode(spec.eval_mode)
  return MODALITIES[key].mode(spec.mode, train=train)


def check_inputs(config: Config) -> None:
  """Checks modalities and modes that the config names.

  Raises:
    ConfigError: naming the known ones.
  """
  for key in config.data.inputs:
    if key not in MODALITIES:
      raise ConfigError(
        f"data.inputs names {key!r}; known: {', '.join(MODALITIES)}."
      )
    try:
      mode_of(config, key, train=True)
      mode_of(config, key, train=False)
    except ValueError as error:
      raise ConfigError(f"data.inputs.{key}: {error}") from error
  for name, task in config.tasks.items():
    for train in (True, False):
      _check_alignment(config, name, keys_of(groups_of(task)), train=train)


def _check_alignment(
  config: Config, task: str, keys: Sequence[str], *, train: bool
) -> None:
  """Pictures of one sample must be cut in one way, or they do not overlap."""
  modes = {k: mode_of(config, k, train=train) for k in keys}
  places = {
    k: mode.recipe["place"]
    for k, mode in modes.items()
    if mode.recipe
    if "place" in mode.recipe
  }
  if len(set(places.values())) > 1:
    kind = "mode" if train else "eval_mode"
    found = ", ".join(
      f"data.inputs.{k}.{kind}={modes[k].name!r} ({place})"
      for k, place in places.items()
    )
    raise ConfigError(
      f"tasks.{task}: pictures of one sample are cut differently and do not "
      f"align: {found}. Choose modes that place alike."
    )


def groups_of(task: TaskConfig) -> tuple[str, ...]:
  """All groups of a task's objectives, in order, once each."""
  found: dict[str, None] = {}
  for groups in task.objectives.values():
    found.update(dict.fromkeys(groups))
  return tuple(found)


def text_groups(task: TaskConfig) -> tuple[str, ...]:
  """The groups of a task that have a text side."""
  return tuple(g for g in groups_of(task) if g.startswith("t"))


def keys_of(groups: Sequence[str]) -> tuple[str, ...]:
  """Modality keys that the contexts of groups need, in table order."""
  wanted = {by_letter(x).key for group in groups for x in letters(group)}
  return tuple(key for key in MODALITIES if key in wanted)


@dataclass(frozen=True)
class ArrayShape:
  """Shape and dtype of one array of a batch."""

  shape: tuple[int, ...]
  dtype: str


def input_shape(config: Config, key: str, *, train: bool = True) -> ArrayShape:
  """Shape (without batch) and dtype of a modality as it travels."""
  modality = MODALITIES[key]
  g = geometry(config, key)
  sizes = {"T": g.frames, "Y": g.size, "X": g.size, "C": 3}
  if modality.embedding == "text":
    sizes["L"] = language.max_length(config.data.tokenizer, (key,))
  # A modality with a tokeniser of its own says the shape of a frame.
  own = modality.extra.get("embedding_shape", ())
  sizes.update(zip(modality.spec.dims[1:], own, strict=False))
  shape = tuple(sizes[d] for d in modality.spec.dims)
  dtype = ""
  if modality.kind == "knowledge":
    dtype = mode_of(config, key, train=train).dtype
  return ArrayShape(shape, dtype or modality.spec.dtype)


def load_inputs(
  config: Config,
  record: Record,
  source: str,
  keys: Sequence[str],
  tokenizer: Tokenizer | None,
  *,
  rng_key: tuple[Any, ...] | None = None,
  cache: DecodedCache | None = None,
) -> dict[str, np.ndarray]:
  """Decoded and transformed inputs; modalities the sample lacks are left out.

  Args:
    config: of the run.
    record: the sample.
    source: name of its source.
    keys: wanted modalities.
    tokenizer: needed for subtitles.
    rng_key: keys the augmentation (all modalities draw from equal
      generators); None: evaluation.
    cache: of decoded media; None: none.

  Raises:
    DecodeError: naming the modality, if one of them is broken.
  """
  train = rng_key is not None
  found = {}
  draws = _Draws(rng_key, "input")
  media = [
    k for k in keys if MODALITIES[k].embedding != "text" and k in record.media
  ]
  cache = DecodedCache(0) if cache is None else cache
  names = {
    k: (source, record.id, k, geometry(config, k, source)) for k in media
  }
  raw = record.read([k for k in media if names[k] not in cache])
  for key in media:
    g = names[key][-1]
    mode = mode_of(config, key, train=train)
    try:
      decoded = cache.get(
        names[key], lambda k=key, g=g: MODALITIES[k].decode(raw[k], g)
      )
      found[key] = mode.host(decoded, g, draws.again())
    except DecodeError as error:
      raise DecodeError(f"{key}: {error}") from error
    if rng_key is not None and key in config.data.inputs:
      draw = generator(*rng_key, "dropout", key).random()
      if draw < config.data.inputs[key].dropout:
        found[key] = np.zeros_like(found[key])
  for key in keys:
    if MODALITIES[key].embedding == "text" and record.captions.get(key):
      if tokenizer is None:
        raise ValueError(f"{key} needs a tokenizer.")
      rng = None if rng_key is None else generator(*rng_key, key)
      text, _ = language.choose_text(record, {key: 1.0}, rng)
      length = input_shape(config, key).shape[0]
      found[key] = np.asarray(tokenizer.encode(text, length), np.int32)
  if not found and keys:
    raise DecodeError(
      f"the sample has none of {', '.join(keys)}; it has "
      f"{', '.join((*record.media, *record.captions)) or 'nothing'} (see the "
      "source's fields)."
    )
  return found


@dataclass(frozen=True)
class TextSlots:
  """The texts a task's batch holds, and their lengths in tokens."""

  groups: Mapping[str, int]  # group -> L
  kinds: Mapping[str, Mapping[str, float]]
  negatives: int  # K
  question: int  # 0: none asked
  answer: int
  asking: tuple[str, ...] = ()

  @classmethod
  def of(cls, config: Config, task: TaskConfig) -> TextSlots:
    """The slots that a task's objectives need."""
    kinds = {g: language.kinds_of(task, g) for g in text_groups(task)}
    table = config.data.tokenizer
    asking = tuple(task.objectives.get(QUESTIONS, ()))
    return cls(
      groups={
        g: language.max_length(table, tuple(k)) for g, k in kinds.items()
      },
      kinds=kinds,
      negatives=config.data.num_negatives,
      question=language.max_length(table, ("question",)) if asking else 0,
      answer=language.max_length(table, ("answer",)) if asking else 0,
      asking=asking,
    )


def load_texts(
  record: Record,
  slots: TextSlots,
  tokenizer: Tokenizer,
  *,
  rng_key: tuple[Any, ...] | None = None,
) -> dict[str, Any]:
  """Token ids of a sample's texts, nested as in a batch.

  Groups draw from equal generators, so groups of the same kinds share a text.
  Missing negatives, and a question nobody can answer, are rows of padding.

  Raises:
    DecodeError: for missing or broken captions.
  """
  encode: Callable[[str, int], np.ndarray] = tokenizer.encode
  pad = tokenizer.info.pad
  out: dict[str, Any] = {"text": {}}
  if slots.negatives:
    out["negative_text"] = {}
  draws = _Draws(rng_key, "text")
  for group, length in slots.groups.items():
    kinds = slots.kinds[group]
    text, kind = language.choose_text(record, kinds, draws.again())
    out["text"][group] = encode(text, length)
    if slots.negatives:
      rows = np.full((slots.negatives, length), pad, np.int32)
      rng = None if rng_key is None else generator(*rng_key, "negatives")
      texts = language.choose_negatives(record, kind, slots.negatives, rng)
      for i, negative in enumerate(texts):
        rows[i] = encode(negative, length)
      out["negative_text"][group] = rows
  if slots.asking:
    rng = None if rng_key is None else generator(*rng_key, "question")
    pair = language.choose_question(record, slots.asking, rng)
    for name, i, length in (
      ("question", 0, slots.question),
      ("answer", 1, slots.answer),
    ):
      out[name] = np.full((length,), pad, np.int32)
      if pair is not None:
        out[name] = encode(pair[i], length)
  return out


def load_sample(
  config: Config,
  source: Source,
  index: int,
  *,
  name: str,
  keys: Sequence[str],
  tokenizer: Tokenizer | None = None,
  train: bool = False,
  epoch: int = 0,
) -> tuple[Record, dict[str, np.ndarray]]:
  """A record and its inputs, augmented if `train`.

  Raises:
    DecodeError: if the sample is broken.
  """
  record = source.record(index)
  key = (config.seed, epoch, record.id) if train else None
  inputs = load_inputs(config, record, name, keys, tokenizer, rng_key=key)
  return record, inputs


def with_inputs(config: Config, **inputs: InputConfig) -> Config:
  """A config with some modalities read differently."""
  merged = {**config.data.inputs, **inputs}
  return dataclasses.replace(
    config, data=dataclasses.replace(config.data, inputs=merged)
  )
