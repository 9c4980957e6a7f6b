"""Contrast of two contexts, without any text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  ContrastiveConfig,
  ObjectivesConfig,
  TaskConfig,
)
from mico_jax.modalities import letters, sides
from mico_jax.models import build
from mico_jax.objectives import Inputs, compute, select, total_loss
from mico_jax.testing.objective_contract import TINY_MODEL, TOKENIZER
from mico_jax.train.encode import make_plan

ROWS = 6
TEMPERATURE = 0.2


def task(**objectives):
  return TaskConfig(batch_size=ROWS, objectives=objectives)


def chosen(group, **options):
  config = ObjectivesConfig(contrastive=ContrastiveConfig(**options))
  return select(config, task(contrastive=(group,)))


def unit(rng):
  x = rng.standard_normal((ROWS, 5))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(first, second, valid, smoothing):
  """Loss and gradients in float64: cross-entropy both ways, by hand."""
  kept = np.flatnonzero(valid)
  a, b = first[kept], second[kept]
  score, n = a @ b.T / TEMPERATURE, len(kept)
  target = np.eye(n) * (1 - smoothing) + smoothing / n
  slope, loss = np.zeros((n, n)), 0.0
  for s, t, back in (
    (score, target, False),
    (score.T, target, True),
  ):
    p = np.exp(s - s.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    loss -= 0.5 * (t * np.log(p)).sum() / n
    d = 0.5 * (p - t) / n
    slope += d.T if back else d
  grads = np.zeros_like(first), np.zeros_like(second)
  grads[0][kept] = slope @ b / TEMPERATURE
  grads[1][kept] = slope.T @ a / TEMPERATURE
  return loss, grads


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("group", ["i:d", "d:i", "id"])
def test_loss_and_gradient(group, smoothing):
  rng = np.random.default_rng(0)
  images, maps = unit(rng), unit(rng)
  there = np.array([1, 1, 0, 1, 1, 1], bool)  # a sample without a map
  objectives = chosen(group, label_smoothing=smoothing)
  model = build(TINY_MODEL)

  def loss(images, maps):
    inputs = Inputs(
      model=model,
      params={"temperature": jnp.float32(TEMPERATURE)},
      batch={
        "row": jnp.arange(ROWS),
        "weight": jnp.ones(ROWS),
        "present": {"depth": jnp.asarray(there)},
        "text": {},
      },
      tokenizer=TOKENIZER,
      row_keys=jax.vmap(jax.random.key)(jnp.arange(ROWS)),
      train=True,
      letters_to_key={"i": "image", "d": "depth"},
      features={"i": images, "d": maps},
    )
    value, metrics, _ = total_loss(objectives, inputs)
    return value, metrics

  (value, metrics), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    jnp.asarray(images, jnp.float32), jnp.asarray(maps, jnp.float32)
  )
  wanted, wanted_grads = reference(images, maps, there, smoothing)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  for got, want in zip(grads, wanted_grads, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert compute(metrics[f"rows/contrastive/{group}"]) == pytest.approx(5 / 6)
  score = images[there] @ maps[there].T
  hits = np.mean(score.argmax(axis=1) == np.arange(5))
  found = {
    name: float(compute(metrics[f"accuracy_to_{name}/contrastive/{group}"]))
    for name in ("first", "context")
  }
  assert found["first" if group == "d:i" else "context"] == pytest.approx(hits)


def test_what_is_encoded():
  plan = make_plan(chosen("va:d"))
  assert plan.features == ("va", "d")
  assert plan.keys == plan.encoded == ("video", "audio", "depth")
  assert plan.texts == plan.text_features == plan.contexts == ()
  both = select(ObjectivesConfig(), task(contrastive=("tva", "v:a")))
  assert make_plan(both).features == ("va", "v", "a")
  assert make_plan(both).texts == ("tva",)
  assert letters("va:d") == "vad"
  assert sides("tva") == sides("t:va") == ("t", "va")


@pytest.mark.parametrize(
  ("objectives", "match"),
  [
    ({"contrastive": ("v",)}, "'v' has no text and does not say what is"),
    ({"contrastive": ("iad",)}, "such as 'i:d' or 'va:d'"),
    ({"contrastive": (":d",)}, "nothing on one side of its colon"),
    ({"contrastive": ("i:d:n",)}, "no modality with letter ':'"),
    ({"contrastive": ("v:va",)}, "different context letters"),
    ({"contrastive": ("v:t",)}, "'t' must come first"),
    ({"matching": ("i:d",)}, "matching needs a text, and group 'i:d' has"),
    ({"captioning": ("id",)}, "captioning needs a text, and group 'id' has"),
    ({"masked_modelling": ("i:d",)}, "write 'id' instead of 'i:d'"),
  ],
)
def test_groups_that_cannot_be_trained(objectives, match):
  with pytest.raises(ConfigError, match=match):
    select(ObjectivesConfig(), task(**objectives))


def test_texts_are_no_negatives_of_contexts():
  with pytest.raises(ConfigError, match="explicit negatives are texts"):
    chosen("i:d", explicit_negatives=("i:d",))
  other = dataclasses.replace(ContrastiveConfig(), explicit_negatives=("tv",))
  select(ObjectivesConfig(contrastive=other), task(contrastive=("i:d", "tv")))
