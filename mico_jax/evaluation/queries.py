"""Groups, texts and labels that the items of a gallery are evaluated with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mico_jax.config import Config, ConfigError
from mico_jax.data import language
from mico_jax.data.records import Record
from mico_jax.data.samples import groups_of
from mico_jax.evaluation.features import Gallery
from mico_jax.modalities import DecodeError, has_text, letters
from mico_jax.world import Scene


def trained(config: Config, objective: str) -> tuple[str, ...]:
  """Context letters of the groups that tasks train an objective on."""
  contexts: dict[str, None] = {}
  for task in config.tasks.values():
    for group in task.objectives.get(objective, ()):
      if has_text(group):
        contexts[letters(group)] = None
  return tuple(contexts)


def evaluated_groups(config: Config) -> tuple[str, ...]:
  """Context letters of `evaluation.groups`, else of the contrastive tasks.

  Raises:
    ValueError: for a letter of no modality.
  """
  named = [letters(group) for group in config.evaluation.groups]
  return tuple(dict.fromkeys(named)) or trained(config, "contrastive")


def kind_of(config: Config, context: str) -> str:
  """The caption kind that queries of a context use.

  The heaviest trained one; among equals the one that its letters call for.
  """
  group = f"t{context}"
  default = language.default_kind(group)
  for task in config.tasks.values():
    if group in groups_of(task):
      kinds = language.kinds_of(task, group)
      return max((w, kind == default, kind) for kind, w in kinds.items())[-1]
  return default


def texts_of(record: Record | None, kind: str, count: int) -> list[str]:
  """The first captions of a record; empty if it has none of the kind.

  Args:
    record: the sample; None: it could not be read.
    kind: caption kind; other kinds stand in as in training.
    count: captions wanted; 0: all.
  """
  if record is None:
    return []
  try:
    first, used = language.choose_text(record, {kind: 1.0})
  except DecodeError:
    return []
  if count == 1 or used not in record.captions:
    return [first]
  texts = record.captions[used]
  return [text for text in texts[: count or len(texts)] if text.strip()]


def described_items(
  gallery: Gallery, context: str, kind: str, count: int, *, limit: int = 0
) -> tuple[Int[np.ndarray, " G"], list[list[str]]]:
  """Items that have all letters of a context and a text, and their texts.

  Args:
    gallery: the items.
    context: letters.
    kind: caption kind.
    count: texts of an item; 0: all.
    limit: only among the first items; 0: all.
  """
  items, texts = [], []
  for i in gallery.usable(context):
    captions = texts_of(gallery.records[i], kind, count)
    if captions and (not limit or i < limit):
      items.append(int(i))
      texts.append(captions)
  return np.asarray(items, np.int64), texts


@dataclasses.dataclass(frozen=True)
class Queries:
  """The texts of a gallery and which items they describe.

  Attributes:
    texts: distinct, in order of first appearance; or every text of every item.
    pairs: number of a text and column of an item that it is a caption of;
      sorted, each once.
    items: indices of the items in their gallery, one per column.
    kind: caption kind.
  """

  texts: list[str]
  pairs: Int[np.ndarray, "P 2"]
  items: Int[np.ndarray, " G"]
  kind: str

  @property
  def relevant(self) -> Bool[np.ndarray, "Q G"]:
    """Whether a text is a caption of the item: for small galleries."""
    out = np.zeros((len(self.texts), len(self.items)), bool)
    out[self.pairs[:, 0], self.pairs[:, 1]] = True
    return out

  @property
  def share(self) -> float:
    """Of all pairs of text and item, those that belong together."""
    return len(self.pairs) / (len(self.texts) * len(self.items))

  def asked(self, *, of_texts: bool) -> Int[np.ndarray, " N"]:
    """Numbers of the texts, or columns of the items, with a right answer."""
    return np.unique(self.pairs[:, 0 if of_texts else 1])

  def first(self, *, of_texts: bool) -> Int[np.ndarray, " N"]:
    """The first item of each text, or the first text of each item.

    Of those that have one, as `asked` gives them.
    """
    one, other = (0, 1) if of_texts else (1, 0)
    _, places = np.unique(self.pairs[:, one], return_index=True)
    return self.pairs[places, other]

  def items_of(self, text: int) -> Int[np.ndarray, " R"]:
    """Columns of the items of a text."""
    ends = np.searchsorted(self.pairs[:, 0], [text, text + 1])
    return self.pairs[ends[0] : ends[1], 1]

  def texts_of(self, column: int) -> Int[np.ndarray, " R"]:
    """Numbers of the texts of an item."""
    return self.pairs[self.pairs[:, 1] == column, 0]


def make_queries(
  texts: Sequence[Sequence[str]],
  items: Int[np.ndarray, " G"],
  kind: str,
  *,
  each: bool = False,
) -> Queries:
  """Collects the distinct texts of items.

  Args:
    texts: those of each item, in the order of `items`; one or more each.
    items: indices of the items in their gallery.
    kind: caption kind.
    each: a text of several items, or twice of one, is as many queries, each
      answered by its own item alone.
  """
  if each:
    flat = [text for captions in texts for text in captions]
    owner = np.repeat(np.arange(len(texts)), [len(t) for t in texts])
    own = np.stack([np.arange(len(flat)), owner], axis=1)
    return Queries(flat, own, np.asarray(items), kind)
  index: dict[str, int] = {}
  found: dict[tuple[int, int], None] = {}
  for column, captions in enumerate(texts):
    for text in captions:
      found[index.setdefault(text, len(index)), column] = None
  pairs = np.asarray(sorted(found), np.int64).reshape(-1, 2)
  return Queries(list(index), pairs, np.asarray(items), kind)


def among(queries: Queries, texts: Sequence[str]) -> Queries:
  """Queries whose texts are a given list instead of the items' captions.

  A text is right for the items of which it is a caption, as `queries` has it;
  spaces at its ends do not count.

  Args:
    queries: of the items.
    texts: the list; of equal ones the first.

  Raises:
    ConfigError: if none is a caption of an item.
  """
  index = {text.strip(): i for i, text in enumerate(dict.fromkeys(texts))}
  pairs = [
    (index[text.strip()], int(column))
    for row, text in enumerate(queries.texts)
    if text.strip() in index
    for column in queries.items_of(row)
  ]
  if not pairs:
    raise ConfigError(
      f"none of the {len(index)} texts, such as {texts[0]!r:.60}, is a caption "
      f"of an item, such as {queries.texts[0]!r:.60}."
    )
  found = np.asarray(sorted(set(pairs)), np.int64)
  return dataclasses.replace(queries, texts=list(index), pairs=found)


def queries_of(
  config: Config,
  gallery: Gallery,
  context: str,
  count: int,
  *,
  each: bool = False,
) -> Queries:
  """Texts of the items that have all letters of a context.

  Args:
    config: of the run.
    gallery: the items.
    context: letters.
    count: texts of an item; 0: all.
    each: see `make_queries`.

  Raises:
    ConfigError: if no item has both.
  """
  kind = kind_of(config, context)
  items, texts = described_items(gallery, context, kind, count)
  if not texts:
    there = [key for key, rows in gallery.present.items() if np.any(rows)]
    raise ConfigError(
      f"evaluation of {context!r}: none of {len(gallery.records)} samples has "
      f"its modalities and a caption of kind {kind!r}; of its modalities there "
      f"are: {', '.join(there) or 'none'}. Set evaluation.groups."
    )
  return make_queries(texts, items, kind, each=each)


def scenes_of(
  gallery: Gallery, items: Sequence[int] | Int[np.ndarray, " G"]
) -> list[Scene] | None:
  """The OmniWorld scenes that items show; None: not all show one."""
  records = [gallery.records[item] for item in items]
  scenes = [r.fields.get("scene") for r in records if r is not None]
  found = [scene for scene in scenes if isinstance(scene, Scene)]
  return found if found and len(found) == len(records) else None


def labels_of(gallery: Gallery, field: str) -> list[Any]:
  """A field of each record; None where it is no text or number, or NaN."""
  values = [None if r is None else r.fields.get(field) for r in gallery.records]
  # Any other value is no label, and its sample is left out.
  return [
    x if isinstance(x, (str, int, float)) and x == x else None for x in values
  ]
