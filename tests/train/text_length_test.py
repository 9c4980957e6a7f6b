"""Padding behind texts changes no loss and no gradient."""

from __future__ import annotations

import jax
import numpy as np

from mico_jax.models import build
from mico_jax.testing.objective_contract import (
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train.state import init_params
from mico_jax.train.step import make_loss


def test_a_bucket_gives_the_loss_and_gradient_of_full_length():
  """All that reads texts: compared, mined, negated, matched and written."""
  names = ("contrastive", "matching", "captioning")
  config = tiny_config(dict.fromkeys(names, ("tva",)))
  model = build(config.model)
  params = init_params(model, config, jax.random.key(0))
  loss = make_loss(model, config, config.tasks["main"], TOKENIZER)
  value = jax.jit(jax.value_and_grad(loss, has_aux=True))
  short = fake_batch(("tva",), length=8, negatives=2)
  pad = lambda ids: np.pad(
    ids, [(0, 0)] * (ids.ndim - 1) + [(0, 5)], constant_values=TOKENIZER.pad
  )
  texts = {
    name: {group: pad(ids) for group, ids in short[name].items()}
    for name in ("text", "negative_text")
  }
  step = np.int32(3)
  (one, (_, aux)), grad = value(params, short, step=step)
  (other, (_, wide)), full = value(params, {**short, **texts}, step=step)
  np.testing.assert_allclose(one, other, rtol=1e-6)
  for name, mined in aux.items():
    np.testing.assert_array_equal(mined, wide[name])
  for got, want in zip(
    jax.tree.leaves(grad), jax.tree.leaves(full), strict=True
  ):
    scale = max(1.0, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * scale)
