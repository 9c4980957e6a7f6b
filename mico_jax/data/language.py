"""Which text a group reads: caption kinds, negatives, questions.

A group's text is drawn among caption kinds by the weights of `tasks.*.texts`,
or by its letters (`default_kind`). A record without the kind falls back along
`FALLBACK`. Evaluation takes the heaviest kind and its first text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mico_jax.config import TaskConfig, TokenizerConfig
from mico_jax.data.records import Record
from mico_jax.modalities import DecodeError, letters
from mico_jax.modalities.words import decode_text

_BY_LETTERS = {
  "v": "vision",
  "i": "vision",
  "a": "audio",
  "d": "depth",
  "n": "normal",
  "s": "subtitle",
}
# Kind -> kinds to take instead, in turn, when a record lacks it.
FALLBACK: dict[str, tuple[str, ...]] = {
  "vision": ("omni", "alt_text"),
  "audio": ("omni",),
  "depth": ("omni", "vision"),
  "normal": ("omni", "vision"),
  "subtitle": ("omni",),
  "story": ("omni", "vision", "audio", "alt_text"),
  "omni": ("joined", "vision", "audio", "alt_text"),
}


def default_kind(group: str) -> str:
  """The caption kind that a group's letters call for.

  One letter its own kind (image and video "vision"); several "omni", or
  "story" with subtitles among them.
  """
  context = letters(group)
  kinds = {_BY_LETTERS.get(letter, "omni") for letter in context}
  if len(kinds) == 1:
    return kinds.pop()
  return "story" if "s" in context else "omni"


def kinds_of(task: TaskConfig, group: str) -> dict[str, float]:
  """Caption kinds of a group with their weights."""
  return dict(task.texts.get(group) or {default_kind(group): 1.0})


def max_length(config: TokenizerConfig, kinds: Sequence[str]) -> int:
  """Token count of a text slot that may hold any of `kinds`."""
  table = config.max_length
  default = table.get("default", 40)

  def length(kind: str) -> int:
    if kind in ("story", "joined"):
      return table.get(kind, table.get("omni", default))
    return table.get(kind, default)

  return max(length(kind) for kind in kinds)


def _available(
  record: Record, kinds: Mapping[str, float]
) -> tuple[list[str], list[float]]:
  names, weights = [], []
  for kind in sorted(kinds):
    if kinds[kind] <= 0:
      continue
    chain = (kind, *FALLBACK.get(kind, ("omni",)))
    found = next((k for k in chain if k in record.captions), None)
    if kind == "joined" and "joined" not in record.captions:
      found = "joined"
    if found is not None:
      names.append(found)
      weights.append(kinds[kind])
  return names, weights


def _joined(record: Record) -> tuple[str, ...]:
  """The first captions of the single modalities as one text."""
  kinds = ("vision", "audio", "depth", "normal", "subtitle")
  texts = [record.captions[k][0] for k in kinds if k in record.captions]
  return (" ".join(texts),) if texts else ()


def choose_text(
  record: Record,
  kinds: Mapping[str, float],
  rng: np.random.Generator | None = None,
) -> tuple[str, str]:
  """A caption of the record and its kind.

  Args:
    record: the sample.
    kinds: caption kind -> weight.
    rng: draws the kind and among alternatives; None: heaviest and first.

  Raises:
    DecodeError: if the record has no such caption, or it is empty.
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
    share = np.cumsum(weights) / sum(weights)
    kind = names[min(int(np.searchsorted(share, rng.random())), len(names) - 1)]
  texts = record.captions.get(kind) or _joined(record)
  if not texts:
    raise DecodeError(f"the sample has no caption of kind {kind!r}.")
  text = texts[0 if rng is None else int(rng.integers(len(texts)))]
  try:
    return decode_text(text), kind
  except DecodeError as error:
    raise DecodeError(f"caption of kind {kind!r}: {error}") from error


def choose_negatives(
  record: Record,
  kind: str,
  count: int,
  rng: np.random.Generator | None = None,
) -> list[str]:
  """Up to `count` different explicit negatives of a caption kind."""
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

  An image counts as seeing what a video shows, except motion, which the
  questions' own letters cannot tell apart.
  """
  seen = None
  for group in groups:
    own = set(letters(group)) | ({"v"} if "i" in group else set())
    seen = own if seen is None else seen & own
  fitting = [
    (question, answer)
    for question, answer, needs in record.questions
    if set(needs) <= (seen or set())
  ]
  if not fitting:
    return None
  question, answer = fitting[
    0 if rng is None else int(rng.integers(len(fitting)))
  ]
  return decode_text(question), decode_text(answer)
