"""Decoding with a cache against decoding without one, and against search."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import models
from mico_jax.config import ModelConfig
from mico_jax.models import nucleus, selection
from mico_jax.models.decoding import (
  generate,
  make_generator,
  text_log_probability,
)
from mico_jax.testing.tiny_model import tiny_model

CONFIG = tiny_model(
  vision={"image_size": 4, "depth": 1},
  text={"vocab_size": 7, "width": 12, "mlp_dim": 24, "max_positions": 12},
  embed_dim=ModelConfig.embed_dim,
  heads=("t", "v"),
  frame_table={"video": 1},
)


@dataclasses.dataclass(frozen=True)
class Tokens:
  pad: int = 0
  cls: int = 1
  sep: int = 2
  mask: int = 3


@pytest.fixture(scope="module", params=models.TEXT_ENCODERS)
def setup(request):
  text = dataclasses.replace(CONFIG.text, encoder=request.param)
  model = models.build(dataclasses.replace(CONFIG, text=text))
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  params["text"] = jax.tree.map(
    lambda x: jnp.asarray(x + rng.normal(size=x.shape) * 0.4, jnp.float32),
    params["text"],
  )
  values = jnp.asarray(rng.normal(size=(3, 4, 12)), jnp.float32)
  context = jax.jit(model.project_context)(params, models.Context(values))
  return model, params, context


def _step(model, params, context):
  """Log-probabilities behind given tokens, the whole text read anew."""

  @jax.jit
  def run(ids, prefix):
    if model.tower.next_token:
      read, how = ids, {"attention": "causal"}
    else:
      read = jnp.pad(ids, ((0, 0), (0, 1)), constant_values=Tokens.mask)
      how = {"attention": "prefix_causal", "prefix_length": prefix}
    hidden = model.text(
      params, read, mask=jnp.ones(read.shape, bool), context=context, **how
    )
    return jax.nn.log_softmax(model.lm_logits(params, hidden[:, -1]))

  return lambda ids, prefix: np.asarray(
    run(jnp.asarray(ids), jnp.int32(prefix))
  )


@pytest.mark.parametrize("question", [False, True])
def test_greedy_equals_reading_anew(setup, question):
  model, params, context = setup
  prompt = np.array([[4, 5, 1], [6, 4, 1], [5, 5, 1]])[
    :, None if question else 2 :
  ]
  prompt = prompt if question else np.ones((3, 1), np.int64)
  found = make_generator(
    model, tokens=Tokens(), max_new_tokens=4, return_logits=True
  )(params, context, jnp.asarray(prompt, jnp.int32))
  step = _step(model, params, context)
  ids, done = prompt.astype(np.int32), np.zeros(3, bool)
  for t in range(int(found.steps)):
    logprobs = step(ids, prompt.shape[1] - 1)
    got = jax.nn.log_softmax(found.step_logits[:, t])
    np.testing.assert_allclose(got, logprobs, atol=1e-4)
    choice = np.where(done, Tokens.pad, logprobs.argmax(-1))
    done |= choice == Tokens.sep
    ids = np.concatenate([ids, choice[:, None].astype(np.int32)], axis=1)
  np.testing.assert_array_equal(found.sequences[:, 0, : ids.shape[1]], ids)


def test_wide_beams_find_the_best_text(setup):
  model, params, context = setup
  vocabulary, penalty = CONFIG.text.vocab_size, 0.6
  found = make_generator(
    model,
    tokens=Tokens(),
    max_new_tokens=2,
    num_beams=vocabulary,
    length_penalty=penalty,
    num_return=2,
  )(params, context)
  step = _step(model, params, context)
  ones = np.ones((3, 1), np.int32)
  first = step(ones, 0)
  best = np.full(3, -np.inf)
  for a, b in itertools.product(range(vocabulary), range(vocabulary)):
    if a == Tokens.sep:
      score = first[:, a]  # length 1: the prompt
    else:
      ids = np.concatenate([ones, np.full((3, 1), a, np.int32)], axis=1)
      total = first[:, a] + step(ids, 0)[:, b]
      length = 2 if b == Tokens.sep else 3
      score = total / length**penalty
    best = np.maximum(best, score)
  np.testing.assert_allclose(found.scores[:, 0], best, atol=1e-4)
  assert (np.diff(found.scores, axis=1) <= 0).all()


def test_mistakes_are_named(setup):
  model, params, context = setup
  options = {"tokens": Tokens(), "max_new_tokens": 3}
  with pytest.raises(ValueError, match="batch_size"):
    generate(model, params, None, **options)
  with pytest.raises(ValueError, match="num_return"):
    generate(model, params, context, num_return=2, **options)
  with pytest.raises(ValueError, match="max_positions"):
    generate(model, params, context, tokens=Tokens(), max_new_tokens=20)
  with pytest.raises(ValueError, match="return_logits"):
    generate(model, params, context, num_beams=2, return_logits=True, **options)


def test_a_prompt_may_be_padded_where_positions_count_tokens(setup):
  model, params, context = setup
  if model.tower.learned_positions:
    pytest.skip("its positions are columns")
  run = make_generator(
    model, tokens=Tokens(), max_new_tokens=4, return_logits=True
  )
  write = lambda prompt: run(params, context, jnp.asarray([prompt] * 3))
  padded, plain = write([4, 5, Tokens.pad, Tokens.pad, 1]), write([4, 5, 1])
  steps = int(plain.steps)
  assert int(padded.steps) == steps
  np.testing.assert_allclose(
    padded.step_logits[:, :steps], plain.step_logits[:, :steps], atol=1e-5
  )
  np.testing.assert_array_equal(
    padded.sequences[:, :, 5:], plain.sequences[:, :, 3:]
  )


def _nucleus(logits: np.ndarray, top_p: float) -> np.ndarray:
  """Probabilities of a nucleus in float64, token after token."""
  out = np.zeros(len(logits))
  p = np.exp(logits.astype(np.float64) - logits.max())
  p /= p.sum()
  total = 0.0
  for token in sorted(range(len(p)), key=lambda i: (-p[i], i)):
    if out.any() and total >= top_p:
      break
    out[token], total = p[token], total + p[token]
  return out / out.sum()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 1.0])
def test_drawn_tokens_follow_the_nucleus(top_p):
  logits = np.array([0.3, 2.0, 1.7, -4.0, 1.7, 0.0, -30.0], np.float32)
  draws, temperature = 20000, 0.7
  sampled = nucleus.Nucleus(
    top_p, temperature, nucleus.row_keys(5, jnp.arange(draws))
  ).draw(jnp.tile(logits, (draws, 1)), jnp.int32(3))
  found = np.bincount(np.asarray(sampled), minlength=len(logits)) / draws
  expected = _nucleus(logits / np.float64(temperature), top_p)
  assert (found[expected == 0] == 0).all()
  # Four standard errors.
  limit = 4 * np.sqrt(expected * (1 - expected) / draws)
  assert (np.abs(found - expected) <= limit).all()


def test_sampling_is_of_seed_and_row_and_ends_in_greedy(setup):
  model, params, context = setup

  options = {"tokens": Tokens(), "max_new_tokens": 6}
  run = jax.jit(
    lambda context, how: generate(
      model, params, context, nucleus=how, return_logits=True, **options
    )
  )

  def write(top_p, seed=0, rows=(0, 1, 2), temperature=1.0):
    keys = nucleus.row_keys(seed, jnp.asarray(rows))
    found = run(
      context.take(jnp.asarray(rows)),
      nucleus.Nucleus(top_p, temperature, keys),
    )
    return found, np.asarray(found.sequences[:, 0])

  greedy = make_generator(model, **options)(params, context)
  for near in (write(0.0)[1], write(1e-6)[1], write(1.0, temperature=1e-3)[1]):
    np.testing.assert_array_equal(near, greedy.sequences[:, 0])
  found, texts = write(1.0, seed=1)
  np.testing.assert_array_equal(texts, write(1.0, seed=1)[1])
  assert (texts != write(1.0, seed=2)[1]).any()
  # A row draws the same wherever it stands.
  order = [2, 0, 1]
  np.testing.assert_array_equal(write(1.0, 1, order)[1], texts[order])
  # The score is that of the text, of any nucleus.
  logprobs = np.asarray(jax.nn.log_softmax(found.step_logits, axis=-1))
  for row, text in enumerate(texts):
    ends = np.flatnonzero(text == Tokens.sep)
    stop = int(ends[0]) if len(ends) else len(text) - 1
    total = sum(logprobs[row, t - 1, text[t]] for t in range(1, stop + 1))
    length = stop if len(ends) else stop + 1
    np.testing.assert_allclose(found.scores[row, 0], total / length, atol=1e-5)
  with pytest.raises(ValueError, match="num_beams=1"):
    generate(
      model,
      params,
      context,
      num_beams=2,
      nucleus=nucleus.Nucleus(0.9, 1.0, nucleus.row_keys(0, jnp.arange(3))),
      **options,
    )


def test_the_probability_of_a_text_is_that_of_its_tokens(setup):
  model, params, context = setup
  prompt = np.array([[4, 5, 1], [6, 4, 1], [5, 5, 1]], np.int32)
  ids = np.array([[4, 6, 2], [5, 2, 0], [2, 0, 0]], np.int32)
  step = _step(model, params, context)
  expected = np.zeros(3)
  greedy = np.ones(3, bool)
  for t in range(ids.shape[1]):
    read = np.concatenate([prompt, ids[:, :t]], axis=1)
    logprobs, counts = step(read, 2), ids[:, t] != Tokens.pad
    expected += np.where(counts, logprobs[np.arange(3), ids[:, t]], 0.0)
    greedy &= ~counts | (logprobs.argmax(-1) == ids[:, t])
  weigh = jax.jit(
    lambda ids: text_log_probability(
      model, params, context, ids, tokens=Tokens(), prompt=jnp.asarray(prompt)
    )
  )
  total, best = weigh(jnp.asarray(ids))
  np.testing.assert_allclose(total, expected, atol=1e-4)
  np.testing.assert_array_equal(best, greedy)
  # What greedy decoding writes is the best behind every token.
  write = make_generator(model, tokens=Tokens(), max_new_tokens=3)
  found = write(params, context, jnp.asarray(prompt))
  assert weigh(found.sequences[:, 0, 3:])[1].all()


def test_the_largest_values_are_those_of_a_sort():
  rng = np.random.default_rng(0)
  x = rng.integers(-3, 4, (5, 40)).astype(np.float32)  # ties
  x[1, ::2], x[2] = -np.inf, -1e9
  for count in (1, 6, 20):
    values, places = jax.jit(selection.largest, static_argnums=1)(x, count)
    order = np.argsort(-x, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))
  x[0, 7] = np.nan
  values, places = selection.largest(jnp.asarray(x), 3)
  assert np.isnan(values[0, 0])
  assert (np.asarray(places) < 40).all()
