"""Choice of the texts of a group: caption, negatives, question.

The caption kind of a group is drawn with the weights of `tasks.*.texts`, or
follows from its letters (`default_kind`). If a record has no caption of that
kind, another kind takes its place (`fallback`). Evaluation takes the kind of
the largest weight and its first text.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from mico_jax.config import Config, ConfigError, TaskConfig, TokenizerConfig
from mico_jax.data.records import Record
from mico_jax.modalities import (
  MODALITIES,
  WHOLE,
  Caption,
  DecodeError,
  by_letter,
  has_words,
  letters,
  shown,
)
from mico_jax.modalities.words import decode_text
from mico_jax.printing import known_names

ALT_TEXT = "alt_text"  # alternative text of a picture on a web page
JOINED = "joined"  # the captions of the single modalities, one after another
STORY = "story"  # of a whole sample with subtitles


def caption_kinds() -> tuple[Caption, ...]:
  """Captions of single modalities, one of each kind, in table order."""
  captions = [m.caption for m in MODALITIES.values() if m.caption]
  return tuple({caption.kind: caption for caption in captions}.values())


def fallback(kind: str) -> tuple[str, ...]:
  """Caption kinds that replace a missing one, the first available counts."""
  captions = caption_kinds()
  general = (*(c.kind for c in captions if c.general), ALT_TEXT)
  if kind == STORY:
    return (WHOLE, *general)
  if kind == WHOLE:
    return (JOINED, *general)
  return next((c.fallback for c in captions if c.kind == kind), (WHOLE,))


def default_kind(group: str) -> str:
  """The caption kind of a group for which `tasks.*.texts` names none.

  Modalities of one kind: that kind (image and video: "vision"); others: "omni",
  or "story" if subtitles are among them.
  """
  context = letters(group)
  kinds = {by_letter(letter).caption_kind for letter in context}
  if len(kinds) == 1:
    return kinds.pop()
  return STORY if has_words(context) else WHOLE


def kinds_of(task: TaskConfig, group: str) -> dict[str, float]:
  """Caption kinds of a group and their weights."""
  return dict(task.texts.get(group) or {default_kind(group): 1.0})


def max_length(config: TokenizerConfig, kinds: Sequence[str]) -> int:
  """Tokens of a text slot for any of `kinds`, special tokens included."""
  table = config.max_length
  default = table.get("default", 40)

  def length(kind: str) -> int:
    if kind in (STORY, JOINED):
      return table.get(kind, table.get(WHOLE, default))
    return table.get(kind, default)

  return max(length(kind) for kind in kinds)


def check_lengths(config: Config) -> None:
  """Checks that every length of the tokenizer is that of some text.

  Raises:
    ConfigError: for a kind that no text of the config is of.
  """
  known = [c.kind for c in caption_kinds()]
  known += [k for m in MODALITIES.values() for k in m.text_kinds]
  known += ["default", "question", "answer", WHOLE, STORY, JOINED, ALT_TEXT]
  for task in config.tasks.values():
    known += [kind for kinds in task.texts.values() for kind in kinds]
  for source in config.data.sources.values():
    known += source.captions
  for kind in config.data.tokenizer.max_length:
    if kind not in known:
      raise ConfigError(
        f"data.tokenizer.max_length names {kind!r}, which is no kind of text "
        f"here; {known_names(kind, dict.fromkeys(known))}"
      )


def _available(
  record: Record, kinds: Mapping[str, float]
) -> tuple[list[str], list[float]]:
  names, weights = [], []
  for kind in sorted(kinds):
    if kinds[kind] <= 0:
      continue
    chain = (kind, *fallback(kind))
    choice = next((k for k in chain if k in record.captions), None)
    if kind == JOINED and JOINED not in record.captions:
      choice = JOINED
    if choice is not None:
      names.append(choice)
      weights.append(kinds[kind])
  return names, weights


def _joined(record: Record) -> tuple[str, ...]:
  """The first captions of all single modalities, joined to one text."""
  kinds = [caption.kind for caption in caption_kinds()]
  texts = [record.captions[k][0] for k in kinds if k in record.captions]
  return (" ".join(texts),) if texts else ()


def possible_texts(
  record: Record, kinds: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
  """Caption kind -> all texts that `choose_text` may draw.

  Args:
    record: the sample.
    kinds: caption kind -> weight.
  """
  names, _ = _available(record, kinds)
  found = {n: record.captions.get(n) or _joined(record) for n in names}
  return {name: texts for name, texts in found.items() if texts}


def choose_text(
  record: Record,
  kinds: Mapping[str, float],
  rng: np.random.Generator | None = None,
) -> tuple[str, str]:
  """A caption of a record, and its kind.

  Args:
    record: the sample.
    kinds: caption kind -> weight.
    rng: draws the kind and one of its texts; None: the kind of the largest
      weight and its first text.

  Raises:
    DecodeError: if the record has no such caption, or an empty one.
  """
  names, weights = _available(record, kinds)
  if not names:
    raise DecodeError(
      f"no caption of kind {' or '.join(sorted(kinds))}; the sample has "
      f"{', '.join(record.captions) or 'none'} (see the source's captions)."
    )
  if rng is None:
    kind = names[int(np.argmax(weights))]
  else:
    # In Python: there are few, and NumPy's calls would cost more.
    total, draw = sum(weights), rng.random()
    share = [part / total for part in itertools.accumulate(weights)]
    kind = names[min(bisect.bisect_left(share, draw), len(names) - 1)]
  texts = record.captions.get(kind) or _joined(record)
  if not texts:
    raise DecodeError(f"the sample has no caption of kind {kind!r}.")
  text = texts[0 if rng is None else int(rng.integers(len(texts)))]
  try:
    return decode_text(text), kind
  except DecodeError as error:
    raise DecodeError(f"caption of kind {kind!r}: {error}") from error


def is_settled(record: Record, kinds: Mapping[str, float]) -> bool:
  """Whether `choose_text` gives the same whatever it draws."""
  names, _ = _available(record, kinds)
  return len(names) == 1 and len(record.captions.get(names[0], ())) == 1


def and_joined(text: str, other: str) -> str:
  """Two texts as one: "a dog barks." and "rain" give "a dog barks and rain".

  Args:
    text: the first.
    other: the second; "", or one equal to the first: that is left out.
  """
  if not other or other == text:
    return text
  return f"{text.rstrip(' .')} and {other}"


def choose_negatives(
  record: Record,
  kind: str,
  count: int,
  rng: np.random.Generator | None = None,
) -> list[str]:
  """Up to `count` different explicit negatives of a caption kind.

  Args:
    record: the sample.
    kind: of the caption that they contradict.
    count: K, `data.num_negatives`.
    rng: draws the texts; None: the first ones.
  """
  if count == 0 or kind not in record.negatives:
    return []
  texts = record.negatives[kind]
  if rng is not None:
    texts = [texts[i] for i in rng.permutation(len(texts))]
  return [decode_text(t) for t in texts[:count]]


def choose_question(
  record: Record,
  groups: Sequence[str],
  rng: np.random.Generator | None = None,
) -> tuple[str, str] | None:
  """A question that every group can answer, and its answer; None: no such.

  An image is taken to show what a video shows. That is wrong for questions on
  motion, which the letters of a question cannot tell apart.
  """
  seen = [shown(letters(group)) for group in groups]
  common = frozenset.intersection(*seen) if seen else frozenset()
  fitting = [
    (question, answer)
    for question, answer, needs in record.questions
    if set(needs) <= common
  ]
  if not fitting:
    return None
  question, answer = fitting[
    0 if rng is None else int(rng.integers(len(fitting)))
  ]
  return decode_text(question), decode_text(answer)
