"""Decoding of captions and answers in a compiled loop: greedy, beams, nucleus.

A step reads the last chosen token and keeps its keys and values. Behind it a
masked language model reads a [MASK], whose prediction is chosen and which is
not kept (`TextTower.decoding_ids`). Beams of a row share its context without a
copy.

Beam rules are those of the library that the official MiCo code decodes with
(transformers 4.31): a hypothesis scores its summed log-probabilities over
length ** penalty, where the length includes the prompt and not the final [SEP].
Later versions leave the prompt out and give other scores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mico_jax.aliases import Params, TextIds
from mico_jax.models import ContextKV, KVCache, MiCo
from mico_jax.models.nucleus import Nucleus
from mico_jax.models.selection import largest

WORST = -1e9  # score of a beam that must not be chosen


class Generation(NamedTuple):
  """Decoded texts, best first.

  Attributes:
    sequences: prompt and chosen tokens, then pad ids.
    scores: summed log-probabilities over length ** length_penalty.
    steps: decoding steps taken.
    step_logits: logits of each step (one beam, on request), else None.
  """

  sequences: Int[Array, "B R L"]
  scores: Float[Array, "B R"]
  steps: Int[Array, ""]
  step_logits: Float[Array, "B steps V"] | None = None


class _Decoder(NamedTuple):
  """Constants of all decoding steps."""

  model: MiCo
  params: Params
  context: ContextKV | None
  tokens: TextIds
  prompt_visible: Bool[Array, "B S"]  # over all cache positions
  prompt_length: int
  max_length: int
  rows: int  # decoded rows per item: the beams

  def step(
    self, last: Int[Array, " R"], cache: KVCache, position: Int[Array, ""]
  ) -> tuple[Float[Array, "R V"], KVCache]:
    """Logits behind the token `last` at `position`, and the updated cache."""
    slots = jnp.arange(self.prompt_visible.shape[1])[None]
    written = (slots >= self.prompt_length) & (slots <= position)
    visible = jnp.repeat(self.prompt_visible, self.rows, axis=0) | written
    return self.model.decode_step(
      self.params,
      last,
      cache,
      position=position,
      visible=visible,
      mask_id=self.tokens.mask,
      context=self.context,
    )


def generate(
  model: MiCo,
  params: Params,
  context: ContextKV | None,
  *,
  tokens: TextIds,
  max_new_tokens: int,
  num_beams: int = 1,
  length_penalty: float = 1.0,
  num_return: int = 1,
  nucleus: Nucleus | None = None,
  prompt: Int[Array, "B Q"] | None = None,
  prompt_mask: Bool[Array, "B Q"] | None = None,
  batch_size: int | None = None,
  return_logits: bool = False,
) -> Generation:
  """Decodes texts; put it into one `jax.jit`.

  Args:
    model: the model.
    params: its parameters.
    context: the context to describe; None: none.
    tokens: special token ids.
    max_new_tokens: most tokens to choose, [SEP] included.
    num_beams: beams kept; 1: greedy.
    length_penalty: exponent of the length in the score of a hypothesis.
    num_return: hypotheses per item, at most `num_beams`.
    nucleus: draws the tokens, with one beam; None: the most probable ones. The
      score is that of the text under the model, whatever the nucleus.
    prompt: tokens to continue (a question, then [CLS]), all but the last read
      with the tower's own attention; None: [CLS].
    prompt_mask: true at valid prompt tokens; None: not pad, the last always.
    batch_size: number of items, if there is neither context nor prompt.
    return_logits: keep the logits of every step (one beam only).

  Raises:
    ValueError: for settings that do not fit together.
  """
  if num_return > num_beams:
    raise ValueError(f"{num_return=} is larger than {num_beams=}.")
  if return_logits and num_beams > 1:
    raise ValueError("return_logits is for num_beams=1.")
  if nucleus is not None and num_beams > 1:
    raise ValueError(f"a nucleus is sampled with num_beams=1, got {num_beams}.")
  decoder, prompt, cache = _start(
    (model, params, context, tokens),
    prompt,
    prompt_mask,
    batch_size=batch_size,
    new=max_new_tokens,
    rows=num_beams,
  )
  if num_beams == 1:
    return _one_beam(
      decoder, prompt, cache, length_penalty, nucleus, return_logits
    )
  return _beam_search(decoder, prompt, cache, length_penalty, num_return)


def _start(
  parts: tuple[MiCo, Params, ContextKV | None, TextIds],
  prompt: Int[Array, "B Q"] | None,
  prompt_mask: Bool[Array, "B Q"] | None,
  *,
  batch_size: int | None,
  new: int,
  rows: int,
) -> tuple[_Decoder, Int[Array, "B Q"], KVCache]:
  """Decoder, prompt and cache before the first of `new` tokens."""
  model, _, context, tokens = parts
  if prompt is None:
    batch = _batch_size(context, batch_size)
    prompt = jnp.full((batch, 1), tokens.cls)
  prompt = prompt.astype(jnp.int32)
  if prompt_mask is None:
    prompt_mask = (prompt != tokens.pad).at[:, -1].set(True)
  length = prompt.shape[1]
  total = length + new
  if total > model.config.text.max_positions:
    raise ValueError(
      f"prompt of {length} and {new} more tokens exceed "
      f"config.model.text.max_positions={model.config.text.max_positions}."
    )
  slots = total - 1  # the last chosen token is never read
  visible = jnp.pad(prompt_mask, ((0, 0), (0, slots - length)))
  decoder = _Decoder(*parts, visible, length, total, rows)
  return decoder, prompt, _prefill(decoder, prompt, prompt_mask, slots)


def text_log_probability(
  model: MiCo,
  params: Params,
  context: ContextKV | None,
  ids: Int[Array, "B L"],
  *,
  tokens: TextIds,
  prompt: Int[Array, "B Q"] | None = None,
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
  """Log-probability of given texts as what the model writes, in nats.

  Args:
    model: the model.
    params: its parameters.
    context: the context to describe; None: none.
    ids: tokens of the texts behind the prompt, the final [SEP] included, then
      pad ids, which count nothing.
    tokens: special token ids.
    prompt: see `generate`.

  Returns:
    The sum over the tokens of each text, and whether each of its tokens is the
    most probable one behind those before it.

  Raises:
    ValueError: for a text beyond the tower's positions.
  """
  decoder, prompt, cache = _start(
    (model, params, context, tokens),
    prompt,
    None,
    batch_size=ids.shape[0],
    new=ids.shape[1],
    rows=1,
  )
  before = jnp.concatenate([prompt[:, -1:], ids[:, :-1]], axis=1)
  first = decoder.prompt_length - 1

  def read(
    cache: KVCache, step: tuple[Array, Array, Array]
  ) -> tuple[KVCache, tuple[Array, Array]]:
    at, last, target = step
    logits, cache = decoder.step(last, cache, first + at)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    value = jnp.take_along_axis(logprobs, target[:, None], axis=-1)[:, 0]
    return cache, (value, jnp.argmax(logprobs, axis=-1) == target)

  steps = (jnp.arange(ids.shape[1]), before.T, ids.T)
  _, (values, best) = jax.lax.scan(read, cache, steps)
  counts = tokens.pad != ids.T
  total = jnp.sum(jnp.where(counts, values, 0.0), axis=0)
  return total, jnp.all(best | ~counts, axis=0)


def make_generator(model: MiCo, **options: Any) -> Callable[..., Generation]:
  """A compiled `generate` of fixed options.

  Args:
    model: the model.
    **options: those of `generate` but the arrays.

  Returns:
    Function of (params, context, prompt=None, prompt_mask=None).
  """

  @jax.jit
  def run(
    params: Params,
    context: ContextKV | None,
    prompt: Int[Array, "B Q"] | None = None,
    prompt_mask: Bool[Array, "B Q"] | None = None,
  ) -> Generation:
    return generate(
      model,
      params,
      context,
      prompt=prompt,
      prompt_mask=prompt_mask,
      **options,
    )

  return run


def _batch_size(context: ContextKV | None, batch_size: int | None) -> int:
  if context is not None:
    return context.keys.shape[1]
  if batch_size is None:
    raise ValueError("generate needs a context, a prompt or batch_size.")
  return batch_size


def _prefill(
  decoder: _Decoder,
  prompt: Int[Array, "B Q"],
  prompt_mask: Bool[Array, "B Q"],
  slots: int,
) -> KVCache:
  """Cache of the whole prompt but its last token, one copy per beam."""
  cache = decoder.model.tower.empty_cache(len(prompt), slots)
  if prompt.shape[1] > 1:
    _, filled = decoder.model.text(
      decoder.params,
      prompt[:, :-1],
      mask=prompt_mask[:, :-1],
      context=decoder.context,
      return_kv=True,
    )
    start = (0, 0, 0, 0, 0)
    cache = jax.tree.map(
      lambda c, f: jax.lax.dynamic_update_slice(c, f.astype(c.dtype), start),
      cache,
      filled,
    )
  return jax.tree.map(lambda c: jnp.repeat(c, decoder.rows, axis=1), cache)


def _one_beam(
  decoder: _Decoder,
  prompt: Int[Array, "B Q"],
  cache: KVCache,
  length_penalty: float,
  nucleus: Nucleus | None,
  return_logits: bool,
) -> Generation:
  tokens, length = decoder.tokens, decoder.prompt_length
  batch, new = prompt.shape[0], decoder.max_length - length
  vocabulary = decoder.model.config.text.vocab_size
  padding = ((0, 0), (0, new))
  state = {
    "step": jnp.int32(0),
    "sequences": jnp.pad(prompt, padding, constant_values=tokens.pad),
    "cache": cache,
    "done": jnp.zeros(batch, bool),
    "score": jnp.zeros(batch, jnp.float32),
    "length": jnp.full(batch, length, jnp.int32),
    "logits": jnp.zeros((new if return_logits else 0, batch, vocabulary)),
  }

  def unfinished(s: dict[str, Any]) -> Bool[Array, ""]:
    return (s["step"] < new) & ~jnp.all(s["done"])

  def advance(s: dict[str, Any]) -> dict[str, Any]:
    position = length - 1 + s["step"]
    last = jax.lax.dynamic_index_in_dim(
      s["sequences"], position, axis=1, keepdims=False
    )
    logits, cache = decoder.step(last, s["cache"], position)
    logits = logits.astype(jnp.float32)
    if nucleus is None:
      choice = largest(logits, 1)[1][:, 0]
    else:
      choice = nucleus.draw(logits, s["step"])
    logprob = jnp.take_along_axis(
      jax.nn.log_softmax(logits, axis=-1), choice[:, None], axis=-1
    )[:, 0]
    going = ~s["done"]
    choice = jnp.where(going, choice, tokens.pad)
    ended = choice == tokens.sep
    s = dict(s)
    if return_logits:
      s["logits"] = jax.lax.dynamic_update_index_in_dim(
        s["logits"], logits, s["step"], axis=0
      )
    s["sequences"] = jax.lax.dynamic_update_index_in_dim(
      s["sequences"], choice, position + 1, axis=1
    )
    s["score"] = s["score"] + jnp.where(going, logprob, 0.0)
    s["length"] = s["length"] + (going & ~ended).astype(jnp.int32)
    return s | {
      "step": s["step"] + 1,
      "cache": cache,
      "done": s["done"] | ended,
    }

  state = jax.lax.while_loop(unfinished, advance, state)
  score = state["score"] / state["length"].astype(jnp.float32) ** length_penalty
  return Generation(
    state["sequences"][:, None],
    score[:, None],
    state["step"],
    jnp.swapaxes(state["logits"], 0, 1) if return_logits else None,
  )


def _beam_search(
  decoder: _Decoder,
  prompt: Int[Array, "B Q"],
  cache: KVCache,
  length_penalty: float,
  num_return: int,
) -> Generation:
  tokens, length = decoder.tokens, decoder.prompt_length
  batch, beams, total = prompt.shape[0], decoder.rows, decoder.max_length
  padded = jnp.pad(
    prompt, ((0, 0), (0, total - length)), constant_values=tokens.pad
  )
  state = {
    "step": jnp.int32(0),
    "sequences": jnp.repeat(padded[:, None], beams, axis=1),
    "cache": cache,
    # The first step may leave from the first beam only: all are equal.
    "scores": jnp.full((batch, beams), WORST).at[:, 0].set(0.0),
    "done": jnp.zeros(batch, bool),
    "kept": jnp.full((batch, beams, total), tokens.pad, jnp.int32),
    "kept_scores": jnp.full((batch, beams), -jnp.inf),
  }

  def unfinished(s: dict[str, Any]) -> Bool[Array, ""]:
    return (s["step"] < total - length) & ~jnp.all(s["done"])

  advance = functools.partial(_beam_step, decoder, length_penalty)
  state = jax.lax.while_loop(unfinished, advance, state)
  # Beams still open count as hypotheses of their full length.
  final = state["scores"] / float(total) ** length_penalty
  for beam in range(beams):
    state = _keep(
      state,
      state["sequences"][:, beam],
      jnp.where(state["done"], -jnp.inf, final[:, beam]),
    )
  scores, order = jax.lax.top_k(state["kept_scores"], num_return)
  sequences = jnp.take_along_axis(state["kept"], order[:, :, None], axis=1)
  return Generation(sequences, scores, state["step"])


def _keep(
  state: dict[str, Any],
  sequence: Int[Array, "B L"],
  score: Float[Array, " B"],
) -> dict[str, Any]:
  """Puts a hypothesis in the place of the worst kept one, if it is better.

  An empty place scores -inf; so does a hypothesis that must not be kept.
  """
  slot = jnp.argmin(state["kept_scores"], axis=1)
  better = score > jnp.min(state["kept_scores"], axis=1)
  slots = jnp.arange(state["kept_scores"].shape[1])[None]
  here = better[:, None] & (slots == slot[:, None])
  return state | {
    "kept": jnp.where(here[:, :, None], sequence[:, None], state["kept"]),
    "kept_scores": jnp.where(here, score[:, None], state["kept_scores"]),
  }


def _beam_step(
  decoder: _Decoder, length_penalty: float, state: dict[str, Any]
) -> dict[str, Any]:
  """Extends every beam by one token."""
  tokens = decoder.tokens
  batch, beams, total = state["sequences"].shape
  position = decoder.prompt_length - 1 + state["step"]
  last = jax.lax.dynamic_index_in_dim(
    state["sequences"], position, axis=2, keepdims=False
  )
  logits, cache = decoder.step(last.reshape(-1), state["cache"], position)
  logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  logprobs = logprobs.reshape(batch, beams, -1)
  vocabulary = logprobs.shape[-1]
  candidates = (logprobs + state["scores"][:, :, None]).reshape(batch, -1)
  # One beam ends at most once, so 2 x beams hold enough that go on.
  scores, flat = largest(candidates, 2 * beams)
  source, token = flat // vocabulary, (flat % vocabulary).astype(jnp.int32)
  ended = token == tokens.sep
  at_end = jnp.arange(total)[None] == position + 1

  current = (position + 1).astype(jnp.float32)  # length without [SEP]
  going = ~state["done"]
  for rank in range(beams):
    sequence = jnp.take_along_axis(
      state["sequences"], source[:, rank][:, None, None], axis=1
    )[:, 0]
    sequence = jnp.where(at_end, tokens.sep, sequence)
    score = scores[:, rank] / current**length_penalty
    valid = going & ended[:, rank]
    state = _keep(state, sequence, jnp.where(valid, score, -jnp.inf))

  order = jnp.argsort(ended, axis=1, stable=True)[:, :beams]
  new_scores, token, source = (
    jnp.take_along_axis(x, order, axis=1) for x in (scores, token, source)
  )
  sequences = jnp.take_along_axis(
    state["sequences"], source[:, :, None], axis=1
  )
  sequences = jnp.where(at_end[None], token[:, :, None], sequences)
  rows = (jnp.arange(batch)[:, None] * beams + source).reshape(-1)
  # Done when no open beam can still beat the worst kept hypothesis.
  attainable = scores[:, 0] / (current + 1.0) ** length_penalty
  worst = jnp.min(state["kept_scores"], axis=1)
  full = jnp.isfinite(worst)
  return state | {
    "step": state["step"] + 1,
    "sequences": sequences,
    "scores": new_scores,
    "cache": jax.tree.map(lambda c: jnp.take(c, rows, axis=1), cache),
    "done": state["done"] | (full & (worst >= attainable)),
  }
