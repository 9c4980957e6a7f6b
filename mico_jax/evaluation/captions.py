"""Captions and answers that the model writes.

Both are written as `config.generation` says; the length penalty of answers is 1
and their length that of answers in training. What is drawn depends on the seed
and the number of the item (of the question), not on batches. Generation runs in
one compiled loop per batch size; texts are compared after decoding. Token
accuracy is that of the captioning objective: the share of scored tokens that
are predicted right from the true text to their left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from mico_jax import rng
from mico_jax.aliases import Params
from mico_jax.config import GenerationConfig
from mico_jax.data.language import max_length
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.inference.writing import ANSWER_PENALTY
from mico_jax.kernels.cross_entropy import IGNORE
from mico_jax.models import ContextKV, MiCo, nucleus
from mico_jax.models.decoding import generate
from mico_jax.objectives import sampling


def _make_write(
  model: MiCo, info: TokenizerInfo, settings: GenerationConfig
) -> Any:
  """Compiled (params, context, prompt, rows, length, penalty) -> ids."""

  def write(
    params: Params,
    context: ContextKV,
    prompt: Int[Array, "B Q"] | None,
    rows: Int[Array, " B"],
    max_new_tokens: int,
    penalty: float,
  ) -> Int[Array, "B L"]:
    written = generate(
      model,
      params,
      context,
      tokens=info,
      max_new_tokens=max_new_tokens,
      num_beams=settings.num_beams,
      length_penalty=penalty,
      nucleus=nucleus.of(settings, rows),
      prompt=prompt,
    )
    skip = 1 if prompt is None else prompt.shape[1]
    return written.sequences[:, 0, skip:]

  return jax.jit(write, static_argnums=(4, 5))


def _make_hits(model: MiCo, info: TokenizerInfo, mask_prob: float) -> Any:
  """Compiled (params, context, rows, ids, keys) -> hits and scored tokens."""

  def count(
    params: Params,
    context: ContextKV,
    rows: Int[Array, " B"],
    ids: Int[Array, "B L"],
    keys: Key[Array, " B"],
  ) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    read, labels = sampling.scored_tokens(
      keys,
      ids,
      info=info,
      prob=mask_prob,
      next_token=model.tower.next_token,
    )
    hidden = model.text(
      params, read, attention="causal", context=context.take(rows)
    )
    predicted = jnp.argmax(model.lm_logits(params, hidden), axis=-1)
    scored = labels != IGNORE
    hits = scored & (predicted.astype(labels.dtype) == labels)
    return hits.sum(axis=1), scored.sum(axis=1)

  return jax.jit(count)


class Writer:
  """Writes captions and answers for a gallery.

  Attributes:
    embedder: the model with its parameters.
  """

  def __init__(self, embedder: Embedder):
    """Makes the compiled functions; computes nothing yet."""
    self.embedder = embedder
    model, config = embedder.model, embedder.config
    info = embedder.tokenizer.info
    settings = config.generation
    self._write = embedder.compiled(
      "write", lambda: _make_write(model, info, settings)
    )
    self._token_hits = embedder.compiled(
      "token_hits",
      lambda: _make_hits(model, info, config.objectives.captioning.mask_prob),
    )

  def captions(
    self,
    gallery: Gallery,
    letters: str,
    items: Int[np.ndarray, " M"],
  ) -> list[str]:
    """One caption for each of the items.

    Args:
      gallery: made with `keep_batches`.
      letters: of the context.
      items: indices in the gallery.
    """
    embedder = self.embedder
    settings = embedder.config.generation
    room = embedder.config.model.text.max_positions - 1
    length = min(settings.max_new_tokens, room)
    penalty = settings.length_penalty
    written: dict[int, str] = {}
    wanted = {int(i) for i in items}
    for start, context in embedder.contexts(gallery, letters):
      here = range(start, start + embedder.batch_size)
      if wanted.isdisjoint(here):
        continue
      rows = np.asarray(here, np.int32)
      ids = np.asarray(
        self._write(embedder.params, context, None, rows, length, penalty)
      )
      for i in wanted.intersection(here):
        written[i] = self._decode(ids[i - start])
    return [written[int(i)] for i in items]

  def answers(
    self,
    gallery: Gallery,
    letters: str,
    items: Int[np.ndarray, " M"],
    questions: Sequence[str],
  ) -> list[str]:
    """The answer to one question about each of the items.

    Args:
      gallery: made with `keep_batches`.
      letters: of the context.
      items: indices in the gallery; one with several questions repeats.
      questions: one for each of `items`.
    """
    embedder = self.embedder
    info = embedder.tokenizer.info
    table = embedder.config.data.tokenizer
    length = max_length(table, ("answer",)) - 1
    asked = embedder.encode_texts(questions, "question")
    size = embedder.batch_size
    out = [""] * len(questions)
    for start, context in embedder.contexts(gallery, letters):
      inside = (items >= start) & (items < start + size)
      mine = np.flatnonzero(inside)
      for first in range(0, len(mine), size):
        rows = mine[first : first + size]
        prompt = np.full((size, asked.shape[1] + 1), info.pad, np.int32)
        prompt[:, 0] = info.cls  # rows without a question
        prompt[:, -1] = info.cls
        prompt[: len(rows), :-1] = asked[rows]
        places = np.zeros(size, np.int32)
        places[: len(rows)] = items[rows] - start
        numbers = np.zeros(size, np.int32)
        numbers[: len(rows)] = rows
        ids = np.asarray(
          self._write(
            embedder.params,
            context.take(jnp.asarray(places)),
            prompt,
            numbers,
            length,
            ANSWER_PENALTY,
          )
        )
        for place, row in enumerate(rows):
          out[row] = self._decode(ids[place])
    return out

  def token_accuracy(
    self,
    gallery: Gallery,
    letters: str,
    items: Int[np.ndarray, " M"],
    texts: Sequence[str],
    kind: str,
    *,
    seed: int = 0,
  ) -> Float[np.ndarray, " M"]:
    """Share of scored tokens that are predicted right, in [0, 1], per item.

    Args:
      gallery: made with `keep_batches`.
      letters: of the context.
      items: indices in the gallery.
      texts: the true text of each item.
      kind: caption kind.
      seed: of the masks, which are keyed by it and the item.
    """
    embedder = self.embedder
    ids = embedder.encode_texts(texts, kind)
    row_of = {int(item): row for row, item in enumerate(items)}
    size = embedder.batch_size
    out = np.zeros(len(texts), np.float64)
    for start, context in embedder.contexts(gallery, letters):
      here = [i for i in range(start, start + size) if i in row_of]
      if not here:
        continue
      chosen = [row_of[i] for i in here] + [row_of[here[0]]] * (
        size - len(here)
      )
      rows = [i - start for i in here] + [0] * (size - len(here))
      keys = rng.row_keys(
        seed,
        jnp.zeros((), jnp.int32),
        jnp.asarray(start + np.asarray(rows), jnp.int32),
      )
      hits, scored = self._token_hits(
        embedder.params,
        context,
        np.asarray(rows, np.int32),
        ids[chosen],
        keys,
      )
      share = np.asarray(hits) / np.maximum(np.asarray(scored), 1)
      out[chosen[: len(here)]] = share[: len(here)]
    return out

  def _decode(self, ids: Int[np.ndarray, " L"]) -> str:
    """The text before the first separator token."""
    info = self.embedder.tokenizer.info
    ends = np.flatnonzero(ids == info.sep)
    return self.embedder.tokenizer.decode(ids[: ends[0]] if len(ends) else ids)
