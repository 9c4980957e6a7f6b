"""Options of the contrastive objective."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.config import ContrastiveConfig, ObjectivesConfig
from mico_jax.models import build
from mico_jax.testing import objective_contract as tiny
from mico_jax.train.state import init_params
from mico_jax.train.step import make_loss


def loss_of(groups, batch):
  config = tiny.tiny_config({"contrastive": ("tva",)})
  contrastive = ContrastiveConfig(explicit_negatives=groups)
  config = dataclasses.replace(
    config, objectives=ObjectivesConfig(contrastive=contrastive)
  )
  model = build(config.model)
  params = init_params(model, config, jax.random.key(0))
  loss = make_loss(model, config, config.tasks["main"], tiny.TOKENIZER)
  arrays = jax.tree.map(jnp.asarray, batch)
  return float(loss(params, arrays, step=jnp.zeros((), jnp.int32))[0])


def test_explicit_negatives_count_for_the_named_groups_alone():
  batch = tiny.fake_batch(negatives=2)
  without = loss_of((), batch)
  assert loss_of(("tv",), batch) == without
  assert loss_of(("tva",), batch) > without
  # A negative that is not there (all padding) is no key.
  batch["negative_text"]["tva"] = np.zeros_like(batch["negative_text"]["tva"])
  np.testing.assert_allclose(loss_of(("tva",), batch), without, rtol=1e-6)
