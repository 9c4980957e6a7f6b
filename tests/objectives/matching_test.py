"""Mining of hard negatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax import rng
from mico_jax.config import MatchingConfig
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.objectives.matching import Matching, pair_weights
from mico_jax.objectives.mining import (
  draw_from_all,
  draw_negatives,
  mining_weights,
)

ONE = jnp.float32(0.5)


def features(rows, seed=0):
  x = np.random.default_rng(seed).standard_normal((rows, 4))
  return jnp.asarray(x / np.linalg.norm(x, axis=1)[:, None], jnp.float32)


def keys(rows, step=0):
  return rng.row_keys(0, jnp.int32(step), jnp.arange(rows, dtype=jnp.int32))


def test_weights_are_softmax_plus_floor_without_diagonal():
  a, b = features(4), features(4, 1)
  weights = mining_weights(a, b, temperature=ONE, valid=jnp.ones(4, bool))
  logits = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T / 0.5
  expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) + 1e-4
  np.fill_diagonal(expected, 0)
  np.testing.assert_allclose(weights[0], expected, atol=1e-6)


def test_groups_of_consecutive_rows():
  a, b = features(6), features(6, 1)
  valid = jnp.ones(6, bool)
  weights = mining_weights(a, b, temperature=ONE, valid=valid, group_rows=3)
  assert weights.shape == (2, 3, 3)
  alone = mining_weights(a[3:], b[3:], temperature=ONE, valid=valid[3:])
  np.testing.assert_allclose(weights[1], alone[0], atol=1e-6)
  index, exists = draw_negatives(keys(6), weights)
  np.testing.assert_array_equal(np.asarray(index) // 3, [0, 0, 0, 1, 1, 1])
  assert (np.asarray(index) != np.arange(6)).all()
  assert exists.all()


def test_group_rows_must_divide_the_batch():
  with pytest.raises(ValueError, match="group_rows=4"):
    mining_weights(
      features(6),
      features(6),
      temperature=ONE,
      valid=jnp.ones(6, bool),
      group_rows=4,
    )


def test_identical_texts_and_masked_rows_are_never_drawn():
  valid = jnp.asarray([True, True, True, True, False])
  prints = jnp.asarray([[1, 1], [2, 2], [1, 1], [3, 3], [4, 4]], jnp.uint32)
  weights = mining_weights(
    features(5),
    features(5, 1),
    temperature=ONE,
    valid=valid,
    fingerprint=prints,
  )[0]
  assert weights[0, 2] == 0
  assert weights[2, 0] == 0
  assert (weights[:, 4] == 0).all()
  assert weights[0, 1] > 0


def test_no_candidate_is_reported():
  prints = jnp.zeros((3, 2), jnp.uint32)
  weights = mining_weights(
    features(3),
    features(3),
    temperature=ONE,
    valid=jnp.ones(3, bool),
    fingerprint=prints,
  )
  index, exists = draw_negatives(keys(3), weights)
  assert not exists.any()
  assert ((np.asarray(index) >= 0) & (np.asarray(index) < 3)).all()


def test_draws_follow_the_weights():
  weights = jnp.asarray([[[0.0, 0.7, 0.2, 0.1]] * 4], jnp.float32)
  run = jax.jit(jax.vmap(lambda s: draw_negatives(keys(4, s), weights)[0]))
  index = np.asarray(run(jnp.arange(3000, dtype=jnp.int32)))
  share = np.bincount(index.ravel(), minlength=4) / index.size
  np.testing.assert_allclose(share, [0, 0.7, 0.2, 0.1], atol=0.02)


def test_exponentials_of_pairs():
  words = rng.row_words(keys(64))
  index = jnp.arange(512, dtype=jnp.int32)
  values = np.exp(np.asarray(rng.pair_log_exponential(words, index)))
  assert np.isfinite(values).all()
  np.testing.assert_allclose(values.mean(), 1, atol=0.03)
  np.testing.assert_allclose((values < np.log(2)).mean(), 0.5, atol=0.01)
  rows, columns = values.mean(axis=1), values.mean(axis=0)
  np.testing.assert_allclose(rows.std(), 512**-0.5, rtol=0.3)
  np.testing.assert_allclose(columns.std(), 64**-0.5, rtol=0.2)


@pytest.mark.multidevice
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_drawing_from_all_in_blocks_is_drawing_from_the_matrix(devices):
  rows = 16
  a, b = features(rows), features(rows, 1)
  random = np.random.default_rng(2)
  prints = np.stack([random.integers(0, 12, rows), np.ones(rows)], axis=1)
  rules = {
    "temperature": ONE,
    "valid": jnp.asarray(random.random(rows) < 0.8),
    "fingerprint": jnp.asarray(prints, jnp.uint32),
  }
  ids = jnp.arange(3 * rows, dtype=jnp.int32).reshape(rows, 3)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
  partition = BatchSharding(mesh, ("data",))
  draw = jax.jit(
    lambda k: draw_from_all(k, a, b, ids, partition=partition, chunk=8, **rules)
  )
  for step in range(4):
    wanted = draw_negatives(keys(rows, step), mining_weights(a, b, **rules))
    index, exists, payload = draw(keys(rows, step))
    np.testing.assert_array_equal(index, wanted[0])
    np.testing.assert_array_equal(exists, wanted[1])
    np.testing.assert_array_equal(payload, ids[index])


def test_no_candidate_among_all_is_reported():
  ids = jnp.arange(3, dtype=jnp.int32)[:, None]
  index, exists, payload = draw_from_all(
    keys(3),
    features(3),
    features(3, 1),
    ids,
    temperature=ONE,
    valid=jnp.ones(3, bool),
    fingerprint=jnp.zeros((3, 2), jnp.uint32),
  )
  assert not exists.any()
  np.testing.assert_array_equal(payload, ids)
  np.testing.assert_array_equal(index, np.arange(3))


@pytest.mark.parametrize(
  ("rows", "count", "group", "expected"),
  [
    (64, 8, 8, 1),  # a group on each device
    (64, 8, 4, 1),
    (32, 8, 8, 2),  # on two neighbours
    (8, 8, 8, 8),
    (48, 8, 8, 0),  # six rows a device: groups lie across
    (24, 6, 16, 0),  # four devices of six
    (64, 8, 0, 0),  # global mining
  ],
)
def test_devices_that_share_a_group(rows, count, group, expected):
  objective = Matching(MatchingConfig(group_rows=group))
  assert objective._parts_of_group(rows, count) == expected


def test_weights_of_pairs():
  """True pair first; what does not exist weighs nothing."""
  exists = np.array(
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32
  )
  weights = lambda b: np.asarray(pair_weights(jnp.asarray(exists), balanced=b))
  np.testing.assert_allclose(
    weights(False), [[1 / 4] * 4, [1 / 2, 1 / 2, 0, 0], [1, 0, 0, 0], [0] * 4]
  )
  part = 1 / 6  # a third of the half that is false
  np.testing.assert_allclose(
    weights(True),
    [[1 / 2, *[part] * 3], [1 / 2, 1 / 2, 0, 0], [1, 0, 0, 0], [0] * 4],
    rtol=1e-6,
  )
