"""A temperature of each head, and clipping of each task."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import OptimizerConfig, TaskConfig
from mico_jax.models import build
from mico_jax.objectives import Inputs, select, total_loss
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  tiny_config,
)
from mico_jax.train import encode, step
from mico_jax.train.optimizer import make_optimizer

HEAD = build(dataclasses.replace(TINY_MODEL, temperature="head"))
LOGS = {"v": 0.3, "a": -0.5, "va": 0.1, "d": 0.0}


def params(base=0.1, **changes):
  logs = {f"{h}_temperature": jnp.float32(x) for h, x in LOGS.items()}
  logs |= {f"{h}_temperature": jnp.float32(x) for h, x in changes.items()}
  return {"temperature": jnp.float32(base), "temperature_log": logs}


def test_parameters():
  shared = build(TINY_MODEL).abstract_params()
  own = HEAD.abstract_params()
  heads = [h for h in TINY_MODEL.heads if h != "t"]
  logs = own.pop("temperature_log")
  assert sorted(logs) == sorted(f"{h}_temperature" for h in heads)
  assert jax.tree.structure(own) == jax.tree.structure(shared)
  flat = {"temperature_log": {k: jnp.zeros(()) for k in logs}}
  decay = make_optimizer(OptimizerConfig(), flat, 10).decay
  assert set(jax.tree.leaves(decay)) == {0.0}


def test_temperatures_of_contexts():
  value = lambda *contexts: float(HEAD.temperature(params(), contexts))
  assert value() == pytest.approx(0.1)
  assert value("va") == pytest.approx(0.1 * np.exp(0.1))
  assert value("i") == value("v")  # an image has a video's head
  assert value("v", "a") == pytest.approx(0.1 * np.exp(-0.1))
  cold = params(base=0.01, va=-3.0)
  assert float(HEAD.temperature(cold, ("va",))) == pytest.approx(0.01)
  shared = build(TINY_MODEL)
  assert float(shared.temperature(params(), ("va",))) == pytest.approx(0.1)
  plan = encode.make_plan(
    select(
      tiny_config().objectives, TaskConfig(objectives={"contrastive": ("v:a",)})
    )
  )
  assert set(encode.temperatures(HEAD, params(), plan)) == {
    *("temperature", "temperature/v", "temperature/a")
  }


@pytest.mark.parametrize(
  ("group", "heads"), [("v:a", {"v", "a"}), ("va:d", {"va", "d"})]
)
def test_a_loss_moves_the_factors_of_its_heads(group, heads):
  rng = np.random.default_rng(0)
  draw = lambda: jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)
  unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
  features = {c: unit(draw()) for c in group.split(":")}
  chosen = select(
    tiny_config().objectives, TaskConfig(objectives={"contrastive": (group,)})
  )

  def loss(params):
    inputs = Inputs(
      model=HEAD,
      params=params,
      batch={"row": jnp.arange(4), "weight": jnp.ones(4)},
      tokenizer=TOKENIZER,
      row_keys=jax.vmap(jax.random.key)(jnp.arange(4)),
      train=True,
      letters_to_key={"v": "video", "a": "audio", "d": "depth"},
      features=features,
    )
    return total_loss(chosen, inputs)[0]

  grads = jax.grad(loss)(params())
  moved = {
    name.removesuffix("_temperature")
    for name, g in grads["temperature_log"].items()
    if g != 0
  }
  assert moved == heads
  assert grads["temperature"] != 0
  # By the chain rule: d/d log factor = T/2 d/dT for each of the two heads.
  value = HEAD.temperature(params(), group.split(":"))
  slope = grads["temperature"] * params()["temperature"]
  for head in heads:
    got = grads["temperature_log"][f"{head}_temperature"]
    np.testing.assert_allclose(2 * got, slope, rtol=1e-5)
  assert float(value) > 0


def test_the_floor_holds_for_every_head():
  low = step._floor_temperature(params(base=0.002, va=-4.0, d=2.0), 0.01)
  assert float(low["temperature"]) == pytest.approx(0.01)
  assert float(HEAD.temperature(low, ("va",))) == pytest.approx(0.01)
  logs = low["temperature_log"]
  assert float(logs["va_temperature"]) == pytest.approx(0.0, abs=1e-6)
  assert float(logs["d_temperature"]) == pytest.approx(2.0)
  warm = step._floor_temperature(params(base=0.05, va=-4.0), 0.01)
  assert float(warm["temperature_log"]["va_temperature"]) == pytest.approx(
    np.log(0.2)
  )


def test_tasks_clip_their_own_steps():
  weights = {"a": jnp.zeros(4)}
  grads = {"a": jnp.full((4,), 2.0)}  # of norm 4
  optimizer = make_optimizer(
    OptimizerConfig(clip_norm=1.0, weight_decay=0.0, no_decay=()), weights, 10
  )

  def first_moment(clip_norm):
    own = step.of_task(optimizer, TaskConfig(clip_norm=clip_norm))
    _, state = own.update(grads, own.init(weights), weights, step=jnp.int32(0))
    return float(jnp.linalg.norm(jax.tree.leaves(state)[1]))

  rest = 0.1  # 1 - b1
  assert first_moment(-1.0) == pytest.approx(rest * 1.0)
  assert first_moment(2.5) == pytest.approx(rest * 2.5)
  assert first_moment(0.0) == pytest.approx(rest * 4.0)
