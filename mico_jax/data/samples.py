"""Arrays of one sample: inputs and texts, loaded from the record of a source.

`load_inputs` decodes and preprocesses media, `load_texts` chooses and encodes
texts. `input_shape` and `TextSlots` give their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from mico_jax.config import Config, TaskConfig
from mico_jax.data import language
from mico_jax.data.cache import DecodedCache
from mico_jax.data.faults import guarded
from mico_jax.data.order import generator
from mico_jax.data.records import Record
from mico_jax.data.statements import stated, without_source
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities import (
  MODALITIES,
  CustomEmbedding,
  DecodeError,
  Geometry,
  Mode,
  by_letter,
  has_text,
  letters,
  preprocessing,
)
from mico_jax.modalities.augmentation import Augmentation


class _Draws:
  """A generator that restarts, so that several consumers draw alike.

  Making a generator costs more than using one, so it is made when it is asked
  for, once.
  """

  def __init__(self, rng_key: tuple[Any, ...] | None, purpose: str):
    self._key, self._purpose = rng_key, purpose
    self._rng: np.random.Generator | None = None
    self._state: Any = None

  def again(self) -> np.random.Generator | None:
    """The generator in its first state; None in evaluation."""
    if self._key is None:
      return None
    if self._rng is None:
      self._rng = generator(*self._key, self._purpose)
      self._state = self._rng.bit_generator.state
    else:
      self._rng.bit_generator.state = self._state
    return self._rng


QUESTIONS = "question_answering"  # objective whose groups get questions


def geometry(
  config: Config, key: str, source: str = "", *, draft: bool = False
) -> Geometry:
  """Sizes for decoding and preprocessing of a modality.

  Args:
    config: of the run.
    key: modality.
    source: data source, for what it states of its samples; "": what the first
      one that states something says.
    draft: as `preprocessing.geometry`.
  """
  rate = 0.0
  if source:
    spec = config.data.sources[source]
    said, rate = stated(spec, key), spec.frame_rate
  else:
    said = without_source(config, key)
  return preprocessing.geometry(
    config, key, stated=said, frame_rate=rate, draft=draft
  )


def groups_of(task: TaskConfig) -> tuple[str, ...]:
  """Groups of all objectives of a task, each once."""
  ordered: dict[str, None] = {}
  for groups in task.objectives.values():
    ordered.update(dict.fromkeys(groups))
  return tuple(ordered)


def text_groups(task: TaskConfig) -> tuple[str, ...]:
  """Groups of a task that compare with a text ("tv", not "v:a")."""
  return tuple(filter(has_text, groups_of(task)))


def keys_of(groups: Sequence[str]) -> tuple[str, ...]:
  """Modalities in the contexts of groups, in table order."""
  wanted = {by_letter(x).key for group in groups for x in letters(group)}
  return tuple(key for key in MODALITIES if key in wanted)


@dataclass(frozen=True)
class ArrayShape:
  """Shape and dtype of an array of a batch."""

  shape: tuple[int, ...]
  dtype: str


def input_shape(config: Config, key: str, *, train: bool = True) -> ArrayShape:
  """Shape (without batch) and dtype of the input array of a modality."""
  modality = MODALITIES[key]
  g = geometry(config, key)
  sizes = {"T": g.frames, "Y": g.size, "X": g.size, "C": 3}
  if modality.embedding == "text":
    sizes["L"] = language.max_length(config.data.tokenizer, modality.text_kinds)
  if isinstance(modality.embedding, CustomEmbedding):
    frame = modality.embedding.frame
    sizes.update(zip(modality.spec.dims[1:], frame, strict=False))
  shape = tuple(sizes[d] for d in modality.spec.dims)
  dtype = ""
  if modality.kind == "knowledge":
    mode = preprocessing.mode_of(config, key, train=train)
    dtype = mode.dtype
    shape = mode.shape(g) if mode.shape else shape
  return ArrayShape(shape, dtype or modality.spec.dtype)


@dataclass
class _InputLoader:
  """Loads the inputs of one sample.

  Attributes:
    config: of the run.
    record: the sample.
    source: name of its source.
    rng_key: keys the draws; None: evaluation.
    augment: of the sample; None: none.
    failed: modality -> reason, of those that could not be read.
  """

  config: Config
  record: Record
  source: str
  rng_key: tuple[Any, ...] | None
  augment: Augmentation | None = None
  failed: dict[str, str] = field(default_factory=dict)

  def media(
    self, keys: Sequence[str], cache: DecodedCache, index: int | None
  ) -> dict[str, np.ndarray]:
    """Files and arrays of the record, decoded and preprocessed for training.

    Args:
      keys: modalities with media; those that the record lacks are left out.
      cache: of decoded media.
      index: of the sample in its source.
    """
    keys = [key for key in keys if key in self.record.media]
    train, draws = self.rng_key is not None, _Draws(self.rng_key, "input")
    # Names a decoded medium in the cache.
    names = {
      key: (
        *(self.source, index, key),
        geometry(self.config, key, self.source, draft=train),
      )
      for key in keys
    }
    raw = self._read([key for key in keys if names[key] not in cache])
    inputs = {}
    for key in keys:
      if key in self.failed:
        continue
      mode = preprocessing.mode_of(self.config, key, train=train)

      def prepare(key: str = key, mode: Mode = mode) -> np.ndarray:
        modality, sizes = MODALITIES[key], names[key][-1]
        decoded = cache.get(
          names[key], lambda: modality.decode(raw[key], sizes)
        )
        return preprocessing.host_array(
          modality, mode, decoded, sizes, draws.again(), self.augment
        )

      array = self._attempt(key, prepare)
      if array is not None:
        inputs[key] = np.zeros_like(array) if self._dropped(key) else array
    return inputs

  def texts(
    self, keys: Sequence[str], tokenizer: Tokenizer | None
  ) -> dict[str, Int[np.ndarray, " L"]]:
    """Token ids of texts that are inputs, such as subtitles."""
    inputs = {}
    for key in keys:
      if not self.record.captions.get(MODALITIES[key].caption_kind):
        continue
      if tokenizer is None:
        raise ValueError(f"{key} needs a tokenizer.")
      ids = self._attempt(key, lambda key=key: self._ids(key, tokenizer))
      if ids is not None:
        inputs[key] = ids
    return inputs

  def _attempt(
    self, key: str, call: Callable[[], Any], *, reads: bool = False
  ) -> Any | None:
    """The result of a call; None, with the reason noted, if it is broken."""
    try:
      return guarded(call, key, reads=reads)
    except DecodeError as error:
      self.failed[key] = str(error)
      return None

  def _read(self, keys: Sequence[str]) -> dict[str, Any]:
    """Raw media by modality; None where they cannot be read."""
    if self.record.read_many is not None:
      return guarded(lambda: self.record.read(keys), reads=True)
    media = self.record.media
    return {key: self._attempt(key, media[key], reads=True) for key in keys}

  def _dropped(self, key: str) -> bool:
    """Whether modality dropout (`data.inputs.*.dropout`) hides it."""
    if self.rng_key is None or key not in self.config.data.inputs:
      return False
    draw = generator(*self.rng_key, "dropout", key).random()
    return draw < self.config.data.inputs[key].dropout

  def _ids(self, key: str, tokenizer: Tokenizer) -> Int[np.ndarray, " L"]:
    rng = None if self.rng_key is None else generator(*self.rng_key, key)
    kind = MODALITIES[key].caption_kind
    text, _ = language.choose_text(self.record, {kind: 1.0}, rng)
    length = input_shape(self.config, key).shape[0]
    return np.asarray(tokenizer.encode(text, length), np.int32)


def load_inputs(
  config: Config,
  record: Record,
  source: str,
  keys: Sequence[str],
  tokenizer: Tokenizer | None,
  *,
  rng_key: tuple[Any, ...] | None = None,
  augment: Augmentation | None = None,
  cache: DecodedCache | None = None,
  index: int | None = None,
  broken: dict[str, str] | None = None,
) -> dict[str, np.ndarray]:
  """Inputs of a sample, decoded and preprocessed: modality -> array.

  Modalities that the sample lacks are left out. With `broken`, so are those
  that cannot be read, as long as one is left.

  Args:
    config: of the run.
    record: the sample.
    source: name of its source.
    keys: modalities to load.
    tokenizer: needed for subtitles.
    rng_key: keys the draws of modes (all modalities draw from equal
      generators); None: evaluation.
    augment: transforms of the sample, in training only; None: none.
    cache: of decoded media; None: none. Needs `index`.
    index: of the sample in its source.
    broken: gets modality -> reason of those that cannot be read; None: the
      first of them is an error.

  Raises:
    DecodeError: naming the modality, if nothing is left (without `broken`: if
      anything is broken).
    TransientError: for storage or memory that stays short.
  """
  if cache is not None and index is None:
    raise ValueError("a cache needs the index of the sample in its source.")
  texts = [key for key in keys if MODALITIES[key].embedding == "text"]
  media = [key for key in keys if key not in texts]
  loader = _InputLoader(config, record, source, rng_key, augment)
  cache = DecodedCache(0) if cache is None else cache
  inputs = loader.media(media, cache, index)
  inputs |= loader.texts(texts, tokenizer)
  failed = loader.failed
  if broken is not None:
    broken.update(failed)
  if failed and (broken is None or not inputs):
    raise DecodeError(next(iter(failed.values())))
  if not inputs and keys:
    raise DecodeError(
      f"the sample has none of {', '.join(keys)}; it has "
      f"{', '.join((*record.media, *record.captions)) or 'nothing'} (see the "
      "source's fields)."
    )
  return inputs


def check_usable(groups: Sequence[str], broken: Mapping[str, str]) -> None:
  """Checks that a partly broken sample is of use to a task.

  It is if at least one group needs none of the broken modalities; for the other
  groups the sample lacks a modality.

  Args:
    groups: of the task.
    broken: modality -> reason.

  Raises:
    DecodeError: if every group needs a broken modality.
  """
  if broken and all(set(keys_of((g,))) & set(broken) for g in groups):
    raise DecodeError("; ".join(broken.values()))


@dataclass(frozen=True)
class TextSlots:
  """Texts in the batches of a task, and their lengths in tokens.

  Attributes:
    groups: group -> length of its text, L.
    kinds: group -> caption kind -> weight.
    negatives: explicit negatives of each group, K.
    question: length of questions; 0: there are none.
    answer: length of answers; 0: there are none.
    asking: groups that are asked questions.
  """

  groups: Mapping[str, int]
  kinds: Mapping[str, Mapping[str, float]]
  negatives: int
  question: int
  answer: int
  asking: tuple[str, ...] = ()

  @classmethod
  def of(
    cls, config: Config, task: TaskConfig, *, longest: int = 0
  ) -> TextSlots:
    """The texts that a task's objectives need.

    Args:
      config: of the run.
      task: of the config.
      longest: most tokens of the texts of groups; 0: as the tokenizer's
        `max_length` says.
    """
    kinds = {g: language.kinds_of(task, g) for g in text_groups(task)}
    table = config.data.tokenizer
    length = lambda kinds: language.max_length(table, tuple(kinds))
    asking = tuple(task.objectives.get(QUESTIONS, ()))
    return cls(
      groups={g: _cut(length(k), longest) for g, k in kinds.items()},
      kinds=kinds,
      negatives=config.data.num_negatives,
      question=language.max_length(table, ("question",)) if asking else 0,
      answer=language.max_length(table, ("answer",)) if asking else 0,
      asking=asking,
    )


def _cut(length: int, longest: int) -> int:
  return min(length, longest) if longest else length


def load_texts(
  record: Record,
  slots: TextSlots,
  tokenizer: Tokenizer,
  *,
  rng_key: tuple[Any, ...] | None = None,
  mixed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Token ids of the texts of a sample, nested as in a batch.

  Groups draw from equal generators, so groups of the same kinds get the same
  text. Missing negatives and questions are padding.

  Args:
    record: the sample.
    slots: texts to load.
    tokenizer: encodes them.
    rng_key: keys the choice of texts; None: evaluation.
    mixed: group -> text of a sample that is mixed in, which is joined to every
      text of that group, explicit negatives too; None: none.

  Returns:
    int32 arrays: "text" (group -> [L]); "negative_text" (group -> [K, L]);
    "question" and "answer" ([L]).

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
    settled = language.is_settled(record, kinds)
    rng = None if settled else draws.again()
    text, kind = language.choose_text(record, kinds, rng)
    also = "" if mixed is None else mixed[group]
    out["text"][group] = encode(language.and_joined(text, also), length)
    if slots.negatives:
      rows = np.full((slots.negatives, length), pad, np.int32)
      rng = None if rng_key is None else generator(*rng_key, "negatives")
      texts = language.choose_negatives(record, kind, slots.negatives, rng)
      for i, negative in enumerate(texts):
        rows[i] = encode(language.and_joined(negative, also), length)
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
