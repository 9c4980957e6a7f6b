"""Similarity and matching of texts and files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, DecodeError, file_spec
from mico_jax.modalities.items import NOT_FINITE, Item, as_list


@runtime_checkable
class Scorer(Protocol):
  """What `score` needs of a model; `OmniModel` has it."""

  preparer: Preparer
  batch_size: int

  def embed(self, **inputs: Any) -> dict[str, Float[np.ndarray, "N E"]]:
    """Unit-norm embeddings of inputs, by modality."""
    ...

  def embed_arrays(
    self, arrays: Mapping[str, np.ndarray], letters: str
  ) -> Float[np.ndarray, "N E"]:
    """Unit-norm embeddings of prepared inputs."""
    ...

  def match_arrays(
    self,
    ids: Int[np.ndarray, "Q L"],
    arrays: Mapping[str, np.ndarray],
    letters: str,
  ) -> Float[np.ndarray, "N Q"]:
    """Probability in [0, 1] that inputs match texts."""
    ...


@dataclass(frozen=True)
class Scores:
  """Scores of files against texts.

  Attributes:
    files: names, one per row; without those that failed.
    texts: one per column.
    similarity: cosine of the embeddings, in [-1, 1].
    matching: probability that text and file match, in [0, 1].
    failed: names of files that were left out, and the reasons.
  """

  files: tuple[str, ...]
  texts: tuple[str, ...]
  similarity: Float[np.ndarray, "F Q"]
  matching: Float[np.ndarray, "F Q"]
  failed: tuple[tuple[str, str], ...] = ()


def score(
  model: Scorer,
  texts: Sequence[str],
  files: Sequence[Any],
  *,
  skip: bool,
) -> Scores:
  """See `OmniModel.score`."""
  files = [files] if isinstance(files, (str, os.PathLike)) else files
  if not all(isinstance(f, (str, os.PathLike)) for f in files):
    raise ValueError("score takes paths of files; embed and match take data.")
  specs = [file_spec(os.fspath(f)) for f in files]
  items = [
    Item(
      *(spec.path, spec.unit, os.fspath(file), True, spec.rate, spec.channels)
    )
    for spec, file in zip(specs, files, strict=True)
  ]
  return score_items(model, texts, [s.key for s in specs], items, skip=skip)


def score_items(
  model: Scorer,
  texts: Sequence[str],
  keys: Sequence[str],
  items: Sequence[Item],
  *,
  skip: bool,
) -> Scores:
  """Scores every text against every item.

  Args:
    model: of a checkpoint.
    texts: at least one.
    keys: modality of each item.
    items: at least one, with names.
    skip: whether to leave out items that cannot be used; see `OmniModel.score`.

  Raises:
    DecodeError: for a text or item that cannot be used.
  """
  texts = as_list("text", texts)
  if not len(texts) or not len(items):
    raise ValueError("score needs at least one text and one file.")
  names = [item.name for item in items]
  queries = model.embed(text=texts)["text"]
  ids = np.stack([model.preparer.prepare_one("text", t) for t in texts])
  similarity = np.full((len(items), len(texts)), np.nan, np.float32)
  matching = similarity.copy()
  failed: dict[int, str] = {}
  for key in dict.fromkeys(keys):
    model.preparer.check_key(key)
    rows = [i for i, other in enumerate(keys) if other == key]
    for start in range(0, len(rows), model.batch_size):
      chosen = rows[start : start + model.batch_size]
      array, kept, errors = model.preparer.prepare(
        key, [items[i] for i in chosen]
      )
      if errors and not skip:
        raise errors[0]
      good = [chosen[k] for k in kept]
      bad = [i for i in chosen if i not in set(good)]
      failed.update(zip(bad, map(str, errors), strict=True))
      if array is not None:
        arrays, letter = {key: array}, MODALITIES[key].letter
        similarity[good] = model.embed_arrays(arrays, letter) @ queries.T
        matching[good] = model.match_arrays(ids, arrays, letter)
  rows = [i for i in range(len(names)) if i not in failed]
  whole = np.concatenate([similarity, matching], axis=1)
  for i in [i for i in rows if not np.isfinite(whole[i]).all()]:
    failed[i] = f"{names[i]}: the score {NOT_FINITE}"
  rows = [i for i in rows if i not in failed]
  if failed and not (skip and rows):
    first = failed[min(failed)]
    none = f"none of {len(names)} files could be used; the first: "
    raise DecodeError(none + first if skip and len(names) > 1 else first)
  return Scores(
    tuple(names[i] for i in rows),
    tuple(texts),
    similarity[rows],
    matching[rows],
    tuple((names[i], failed[i]) for i in sorted(failed)),
  )
