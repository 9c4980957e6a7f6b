"""Options of the contrastive objective."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import ConfigError, ContrastiveConfig, ObjectivesConfig
from mico_jax.models import build
from mico_jax.objectives import select
from mico_jax.testing import objective_contract as tiny
from mico_jax.train.state import init_params
from mico_jax.train.step import make_loss


def setup(**options):
  config = tiny.tiny_config({"contrastive": ("tva",)})
  contrastive = ContrastiveConfig(**options)
  config = dataclasses.replace(
    config, objectives=ObjectivesConfig(contrastive=contrastive)
  )
  model = build(config.model)
  params = init_params(model, config, jax.random.key(0))
  loss = make_loss(model, config, config.tasks["main"], tiny.TOKENIZER)

  def value(params, batch):
    arrays = jax.tree.map(jnp.asarray, batch)
    return loss(params, arrays, step=jnp.zeros((), jnp.int32))[0]

  return jax.jit(jax.value_and_grad(value)), params


def loss_of(groups, batch):
  loss, params = setup(explicit_negatives=groups)
  return float(loss(params, batch)[0])


def test_explicit_negatives_count_for_the_named_groups_alone():
  batch = tiny.fake_batch(negatives=2)
  without = loss_of((), batch)
  assert loss_of(("tv",), batch) == without
  assert loss_of(("tva",), batch) > without
  # A negative that is not there (all padding) is no key.
  batch["negative_text"]["tva"] = np.zeros_like(batch["negative_text"]["tva"])
  np.testing.assert_allclose(loss_of(("tva",), batch), without, rtol=1e-6)


def test_sigmoid_form_learns_its_bias():
  loss, params = setup(form="sigmoid", label_smoothing=0.0)
  batch = tiny.fake_batch()
  value, grads = loss(params, batch)
  assert params["objective"]["contrastive"]["bias"] == -10
  # So low a bias takes every pair for a negative: 10 nats for the true one.
  np.testing.assert_allclose(value, 10, atol=1 / 0.07)
  assert grads["objective"]["contrastive"]["bias"] < -0.5
  assert np.any(grads["contrastive_head"]["va"]["kernel"] != 0)


@pytest.mark.parametrize(
  ("option", "match"),
  [
    ({"form": "hinge"}, "contrastive.form='hinge' is not one of 'softmax'"),
    ({"backend": "best"}, "contrastive.backend='best' is not one of 'auto'"),
    ({"gather_dtype": "int8"}, "gather_dtype='int8' is not one of"),
  ],
)
def test_unknown_names_are_config_errors(option, match):
  config = tiny.tiny_config({"contrastive": ("tva",)})
  options = ObjectivesConfig(contrastive=ContrastiveConfig(**option))
  with pytest.raises(ConfigError, match=match):
    select(options, config.tasks["main"])
