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
from mico_jax.models.decoding import generate, make_generator
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
