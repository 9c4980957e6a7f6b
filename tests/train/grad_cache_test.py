"""Micro-batches give the gradient of the direct step."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.config import (
  ConfigError,
  ContrastiveConfig,
  MatchingConfig,
  ObjectivesConfig,
  OptimizerConfig,
  ParallelConfig,
)
from mico_jax.models import build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train import grad_cache, step
from mico_jax.train.layout import row_partition
from mico_jax.train.state import init_params, init_state

ROWS = 32
ALL = {"contrastive": ("tva",), "matching": ("tva",), "captioning": ("tva",)}
EACH = {
  "captioning": ("tv",),
  "question_answering": ("tv",),
  "masked_modelling": ("tv",),
}


def make_config(objectives, micro_batches, group_rows=2, **text):
  """Every kind of randomness is on."""
  text = {"dropout": 0.1, "depth": 1, **text}
  model = dataclasses.replace(
    TINY_MODEL,
    text=dataclasses.replace(TINY_MODEL.text, **text),
    vision=dataclasses.replace(TINY_MODEL.vision, drop_path_rate=0.1, depth=1),
    matmul_precision="highest",
  )
  config = tiny_config(
    objectives,
    batch_size=ROWS,
    model=model,
    optimizer=OptimizerConfig(learning_rate=1e-3, freeze=("frame_embed",)),
  )
  options = dataclasses.replace(
    config.objectives,
    contrastive=ContrastiveConfig(explicit_negatives=("tva",)),
    matching=MatchingConfig(weight=1.0, group_rows=group_rows),
  )
  config = dataclasses.replace(config, objectives=options)
  train = dataclasses.replace(
    config.train, patch_dropout=0.25, micro_batches=micro_batches
  )
  return dataclasses.replace(config, train=train)


def make_batch(groups=("tva",)):
  batch = fake_batch(groups, rows=ROWS, negatives=1)
  batch["text"][groups[0]][5] = batch["text"][groups[0]][20]
  batch["present"]["audio"][[2, 9, 10, 11]] = False
  batch["weight"][7] = 0.5
  return batch


def direct(config, batch):
  model = build(config.model)
  params = init_params(model, config, jax.random.key(0))
  loss = step.make_loss(model, config, config.tasks["main"], TOKENIZER)
  run = jax.jit(step.direct_gradient(loss, lambda p: p))
  return run(params, batch, step=jnp.int32(3))


def in_parts(config, batch, devices):
  model = build(config.model)
  params = init_params(model, config, jax.random.key(0))
  mesh = make_mesh(ParallelConfig(), jax.devices()[:devices])
  rules = step.sharding.rules_by_name(config.parallel.rules)
  run = grad_cache.make_gradient(
    model,
    config,
    config.tasks["main"],
    TOKENIZER,
    partition=row_partition(mesh, rules),
  )
  return jax.jit(run)(params, put_batch(batch, mesh), step=jnp.int32(3))


def check_equal(got, wanted):
  (value, (metrics, aux)), grads = got
  (wanted_value, (wanted_metrics, wanted_aux)), wanted_grads = wanted
  np.testing.assert_allclose(value, wanted_value, rtol=1e-5)
  assert set(metrics) == set(wanted_metrics)
  for name, mean in wanted_metrics.items():
    np.testing.assert_allclose(
      compute(metrics[name]), compute(mean), rtol=1e-5, atol=1e-6, err_msg=name
    )
  assert set(aux) == set(wanted_aux)
  for name, array in wanted_aux.items():
    np.testing.assert_array_equal(aux[name], array, err_msg=name)
  scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(wanted_grads))
  for (path, g), w in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(wanted_grads),
    strict=True,
  ):
    g, w = np.asarray(g), np.asarray(w)
    norm = np.linalg.norm(w)
    limit = 1e-5 * norm + 1e-7 * scale
    assert np.linalg.norm(g - w) <= limit, (path, np.linalg.norm(g - w), norm)


@pytest.fixture(scope="module")
def wanted():
  """The direct gradient of all three objectives."""
  return direct(make_config(ALL, 1), make_batch())


def test_all_objectives_in_four_parts(wanted):
  check_equal(in_parts(make_config(ALL, 4), make_batch(), 1), wanted)


@pytest.mark.multidevice
def test_all_objectives_in_two_parts_on_eight_devices(wanted):
  check_equal(in_parts(make_config(ALL, 2), make_batch(), 8), wanted)


@pytest.mark.multidevice
def test_labels_in_two_parts_on_eight_devices():
  """Each row alone, and identities over the whole batch."""
  names = ("classification", "regression", "reidentification")
  objectives = {name: ("va",) for name in names}
  batch = make_batch(("va",))
  batch["target_weight"]["classification/va"][:5] = 0
  batch["target_weight"]["regression/va"][9:20, 1] = 0
  batch["target_weight"]["reidentification/va"][30:] = 0
  wanted = direct(make_config(objectives, 1), batch)
  assert float(compute(wanted[0][1][0]["paired/reidentification/va"])) > 0.5
  check_equal(in_parts(make_config(objectives, 2), batch, 8), wanted)


@pytest.mark.multidevice
def test_another_text_tower():
  tower = {"encoder": "causal", "kv_heads": 1}
  config, batch = make_config(ALL, 2, **tower), make_batch()
  wanted = direct(make_config(ALL, 1, **tower), batch)
  check_equal(in_parts(config, batch, 8), wanted)


def test_plain_accumulation_without_comparisons():
  config, batch = make_config(EACH, 2), make_batch(("tv",))
  check_equal(in_parts(config, batch, 1), direct(config, batch))


@pytest.mark.multidevice
def test_contexts_alone():
  """Two contexts and no text, in parts and on several devices."""
  config = make_config({"contrastive": ("i:d", "va:n")}, 2)
  options = ObjectivesConfig()
  config = dataclasses.replace(config, objectives=options)
  batch = make_batch()
  for name in ("text", "negative_text"):
    batch[name] = {}
  batch["present"]["depth"][4:7] = False
  check_equal(in_parts(config, batch, 4), direct(config, batch))


def test_the_train_step_uses_it():
  config = make_config({"contrastive": ("tva",)}, 2)
  model = build(config.model)
  mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
  batch = put_batch(make_batch(), mesh)
  updates = []
  for count in (1, 2):
    train = dataclasses.replace(config.train, micro_batches=count)
    config = dataclasses.replace(config, train=train)
    state = init_state(model, config, mesh)
    run = step.make_train_step(
      model, config, config.tasks["main"], TOKENIZER, mesh, donate=False
    )
    after, metrics = run(state, batch)
    updates.append((state.params, after.params, compute(metrics["loss"])))
  (start, one, first), (_, two, second) = updates
  np.testing.assert_allclose(second, first, rtol=1e-5)
  frozen = lambda p: jax.tree.leaves(p["frame_embed"])
  for a, b in zip(frozen(start), frozen(two), strict=True):
    np.testing.assert_array_equal(a, b)
  kernel = lambda p: np.asarray(p["contrastive_head"]["va"]["kernel"])
  assert np.abs(kernel(one) - kernel(start)).max() > 0
  np.testing.assert_allclose(kernel(two), kernel(one), atol=1e-5)


@pytest.mark.parametrize(
  ("parts", "group_rows", "match"),
  [
    (3, 2, "train.micro_batches=3 on 1 devices must divide"),
    (4, 0, "group_rows=0 must be a divisor of 8"),
    (4, 16, "group_rows=16 must be a divisor of 8"),
  ],
)
def test_parts_that_do_not_fit_are_config_errors(parts, group_rows, match):
  config = make_config(ALL, parts, group_rows)
  with pytest.raises(ConfigError, match=match):
    grad_cache.make_gradient(
      build(config.model), config, config.tasks["main"], TOKENIZER
    )


@pytest.mark.multidevice
def test_split_takes_rows_of_every_device():
  mesh = make_mesh(ParallelConfig(), jax.devices()[:2])
  partition = row_partition(mesh, step.sharding.rules_by_name("ddp"))
  rows = jnp.arange(8)
  parts = grad_cache.split(rows, 2, partition)
  np.testing.assert_array_equal(parts, [[0, 1, 4, 5], [2, 3, 6, 7]])
  np.testing.assert_array_equal(grad_cache.join(parts, partition), rows)
