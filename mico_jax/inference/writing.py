"""Texts that a checkpoint writes, and how probable it finds given ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mico_jax.aliases import Params
from mico_jax.config import MAX_BEAMS, Config, GenerationConfig, to_dict
from mico_jax.data.language import max_length
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.modalities.items import Search, search_options
from mico_jax.models import ContextKV, MiCo
from mico_jax.models.decoding import (
  Generation,
  generate,
  text_log_probability,
)
from mico_jax.models.nucleus import Nucleus, row_keys

ANSWER_PENALTY = 1.0  # length penalty of answers, of the official protocol
_ROUND = 8  # given texts are padded to a multiple of so many tokens


def _options(settings: GenerationConfig, given: dict[str, Any]) -> Search:
  defaults = {**to_dict(settings), "most_beams": MAX_BEAMS}
  return search_options(defaults, **given)


class TextWriter:
  """Writes behind contexts, with the tokenizer and config of a checkpoint."""

  def __init__(self, model: MiCo, config: Config, tokenizer: Tokenizer):
    """Compiles nothing yet."""
    self.model, self.config, self.tokenizer = model, config, tokenizer
    self._compiled = functools.lru_cache(8)(self._make_write)
    self._probability = jax.jit(
      lambda params, context, ids, prompt: text_log_probability(
        model, params, context, ids, tokens=tokenizer.info, prompt=prompt
      )
    )

  def captioning(self, settings: GenerationConfig, **given: Any) -> Search:
    """Checked options of a caption; see `search_options`."""
    found = _options(settings, given)
    room = self.config.model.text.max_positions - 1
    return found._replace(max_new_tokens=min(found.max_new_tokens, room))

  def answering(self, settings: GenerationConfig, **given: Any) -> Search:
    """Checked options of an answer: as long as answers in training."""
    table = self.config.data.tokenizer
    length = max_length(table, ("answer",)) - 1
    defaults = {"max_new_tokens": length, "length_penalty": ANSWER_PENALTY}
    chosen = {k: v for k, v in given.items() if v is not None}
    found = _options(settings, defaults | chosen)
    room = self.config.model.text.max_positions - self._prompt_length
    return found._replace(max_new_tokens=min(found.max_new_tokens, room))

  @property
  def _prompt_length(self) -> int:
    return max_length(self.config.data.tokenizer, ("question",)) + 1

  def prompts(self, questions: Sequence[str]) -> Int[np.ndarray, "N Q"]:
    """Token ids of questions, each followed by [CLS]."""
    length = self._prompt_length - 1
    rows = [self.tokenizer.encode(text, length) for text in questions]
    asked = np.asarray(rows, np.int32).reshape(-1, length)
    return np.pad(
      asked, ((0, 0), (0, 1)), constant_values=self.tokenizer.info.cls
    )

  def targets(self, texts: Sequence[str]) -> Int[np.ndarray, "N L"]:
    """Token ids of whole texts without [CLS], with [SEP], padded."""
    encode = self.tokenizer.encode
    rows = [
      np.asarray(encode(text, 2 * len(text.encode()) + 8))[1:] for text in texts
    ]
    pad = self.tokenizer.info.pad
    longest = max([int((row != pad).sum()) for row in rows], default=0)
    out = np.full((len(rows), -(-longest // _ROUND) * _ROUND), pad, np.int32)
    for place, row in zip(out, rows, strict=True):
      place[: min(len(row), len(place))] = row[: len(place)]
    return out

  def write(
    self,
    params: Params,
    context: ContextKV,
    search: Search,
    rows: Int[np.ndarray, " B"],
    prompt: Int[np.ndarray, "B Q"] | None = None,
  ) -> Generation:
    """Writes a text for each row of a context.

    Args:
      params: of the model.
      context: to describe.
      search: from `captioning` or `answering`.
      rows: numbers of the rows, which key what is drawn.
      prompt: of `prompts`; None: a caption.
    """
    run = self._compiled(*search[:3])
    how = None
    if search.top_p > 0:
      keys = row_keys(search.seed, jnp.asarray(rows))
      how = Nucleus(search.top_p, search.temperature, keys)
    return run(params, context, prompt, how)

  def _make_write(
    self, max_new_tokens: int, num_beams: int, length_penalty: float
  ) -> Any:
    def write(
      params: Params,
      context: ContextKV,
      prompt: Int[Array, "B Q"] | None,
      nucleus: Nucleus | None,
    ) -> Generation:
      return generate(
        self.model,
        params,
        context,
        tokens=self.tokenizer.info,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        nucleus=nucleus,
        prompt=prompt,
      )

    return jax.jit(write)

  def texts(self, ids: Int[np.ndarray, "B L"], prompt_length: int) -> list[str]:
    """What was written behind the prompt, before the first [SEP]."""
    out = []
    for row in np.asarray(ids)[:, prompt_length:]:
      ends = np.flatnonzero(row == self.tokenizer.info.sep)
      out.append(self.tokenizer.decode(row[: ends[0]] if len(ends) else row))
    return out

  def log_probability(
    self,
    params: Params,
    context: ContextKV,
    ids: Int[np.ndarray, "B L"],
    prompt: Int[np.ndarray, "B Q"] | None,
  ) -> tuple[Float[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
    """See `mico_jax.models.decoding.text_log_probability`; in nats."""
    total, best = self._probability(params, context, ids, prompt)
    return np.asarray(total), np.asarray(best)
