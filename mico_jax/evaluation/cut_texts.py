"""Texts that are longer than a checkpoint reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mico_jax.data.identity import tell
from mico_jax.data.tokenizer import Tokenizer

_TOLD: set[tuple[str, int, int, int]] = set()


def tell_cut(
  tokenizer: Tokenizer,
  texts: Sequence[str],
  ids: Int[np.ndarray, "N L"],
  kind: str,
) -> None:
  """Says on stderr how many texts are cut; once, as both heads read them.

  Args:
    tokenizer: that made the ids.
    texts: whole.
    ids: of each, cut or padded to a length.
    kind: caption kind, which decides the length.
  """
  length, pad = ids.shape[1], tokenizer.info.pad
  longer = lambda i: tokenizer.encode(texts[i], length + 1)[length] != pad
  full = np.flatnonzero(ids[:, -1] != pad)
  cut = [int(i) for i in full if longer(int(i))]
  told = (kind, length, len(cut), len(texts))
  if cut and told not in _TOLD:
    _TOLD.add(told)
    tell(
      f"{len(cut)} of {len(texts)} texts of kind {kind!r} are cut to {length} "
      f"tokens, such as {texts[cut[0]]!r:.60}: what stands behind does not "
      "count (data.tokenizer.max_length of the checkpoint)."
    )
