"""Search of an index with texts, files, or sums of both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.inference.batching import Batching
from mico_jax.inference.index import Hit, Index
from mico_jax.modalities import items


class SearchMethods(Batching):
  """Methods of `OmniModel` that search.

  Attributes:
    embed_dim: size of the joint space.
    fingerprint: hash of the checkpoint's manifest; "" without one.
  """

  fingerprint: str

  @property
  def embed_dim(self) -> int: ...  # noqa: D102  # of `OmniModel`

  def embed(self, **inputs: Any) -> dict[str, Float[np.ndarray, "N E"]]:
    """See `OmniModel`."""
    raise NotImplementedError

  def search(
    self,
    index: Index | str | os.PathLike[str],
    text: str | Sequence[str] | None = None,
    *,
    k: int = 10,
    modality: str = "",
    **inputs: Any,
  ) -> list[list[Hit]]:
    """The items of an index that are most similar to each query.

    Args:
      index: of `mico_jax.Index.open`, or the folder of one.
      text: what is looked for; None: other inputs alone.
      k: how many items; fewer if there are fewer.
      modality: of the items; "": any.
      **inputs: lists by modality, aligned with the texts: the query is the sum
        of the embeddings, made unit-norm.

    Returns:
      For each query its hits, best first.

    Raises:
      ValueError: for an index of another checkpoint, no query, or a modality
        that the checkpoint or the index lacks.
      DecodeError: for an input that cannot be read.
    """
    found = index if isinstance(index, Index) else Index.open(index)
    if found.fingerprint != self.fingerprint and found.fingerprint:
      raise ValueError(
        f"the index was made by another checkpoint ({found.checkpoint}, "
        f"{found.fingerprint[:12]}); this one is {self.fingerprint[:12]}. "
        "Embeddings of different checkpoints are not comparable."
      )
    given = inputs if text is None else {"text": text, **inputs}
    return found.search(self.query(**given), k, modality)

  def query(self, **inputs: Any) -> Float[np.ndarray, "N E"]:
    """Unit-norm embeddings to search with.

    Args:
      **inputs: lists by modality, aligned: a query is the sum of the embeddings
        of its row.

    Raises:
      ValueError: for no inputs, a modality that the checkpoint lacks, or inputs
        that cancel each other.
      DecodeError: for an input that cannot be read.
    """
    rows = {key: items.as_list(key, values) for key, values in inputs.items()}
    items.lengths_of(rows)
    total = np.add.reduce(list(self.embed(**rows).values()))
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    if not (norm > 1e-6).all():
      raise ValueError("the inputs of a query cancel each other; use fewer.")
    return total / norm
