"""The contrastive kernel against plain float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels.contrastive import BACKENDS, contrastive_pair


def unit(rng, rows, width):
  x = rng.standard_normal((rows, width))
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def plain(query, key, temperature, smoothing, labels, valid):
  """Loops over rows; `labels` equal means same text."""
  values = np.zeros(len(query))
  rows = np.flatnonzero(valid)
  for i in rows:
    logits = np.array([query[i] @ key[j] / temperature for j in rows])
    log_prob = logits - np.log(np.exp(logits - logits.max()).sum())
    log_prob = log_prob - logits.max()
    same = np.array([labels[j] == labels[i] for j in rows], float)
    target = (1 - smoothing) * same / same.sum() + smoothing / len(rows)
    values[i] = -(target * log_prob).sum()
  return values


def gradient(function, x, eps=1e-6):
  grad = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    step = np.zeros_like(x)
    step[index] = eps
    grad[index] = (function(x + step) - function(x - step)) / (2 * eps)
  return grad


@pytest.fixture
def case():
  rng = np.random.default_rng(0)
  query, key = unit(rng, 5, 3), unit(rng, 5, 3)
  labels = np.array([0, 1, 2, 1, 4])
  valid = np.array([True, True, True, True, False])
  prints = jnp.asarray(np.stack([labels, labels], 1), jnp.uint32)
  return query, key, labels, valid, prints


def query_loss(query, key, **options):
  """Loss and hits of the queries."""
  pair = contrastive_pair(query, key, **options)
  return pair.to_key, pair.key_hit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients(case, backend, smoothing, shared, masked):
  query, key, labels, valid, prints = case
  labels = labels if shared else np.arange(5)
  valid = valid if masked else np.ones(5, bool)
  weights = np.array([1.0, 2.0, 0.5, 1.5, 3.0])

  def ours(q, k, t):
    values, _ = query_loss(
      q,
      k,
      temperature=t,
      label_smoothing=smoothing,
      fingerprint=prints if shared else None,
      valid=jnp.asarray(valid) if masked else None,
      backend=backend,
    )
    return (values * jnp.asarray(weights, jnp.float32)).sum(), values

  def reference(q, k, t):
    return (plain(q, k, t, smoothing, labels, valid) * weights).sum()

  arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, 0.2)]
  grads, values = jax.grad(ours, (0, 1, 2), has_aux=True)(*arrays)
  expected = plain(query, key, 0.2, smoothing, labels, valid)
  np.testing.assert_allclose(values, expected, atol=2e-6)
  of_query = gradient(lambda x: reference(x, key, 0.2), query)
  of_key = gradient(lambda x: reference(query, x, 0.2), key)
  of_temperature = gradient(lambda x: reference(query, key, x), np.array(0.2))
  np.testing.assert_allclose(grads[0], of_query, atol=2e-5)
  np.testing.assert_allclose(grads[1], of_key, atol=2e-5)
  np.testing.assert_allclose(grads[2], of_temperature, rtol=1e-5, atol=1e-4)


def test_detached_keys_have_no_gradient(case):
  query, key, *_ = case
  query, key = jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32)
  run = lambda detach: jax.grad(
    lambda k: query_loss(query, k, temperature=jnp.float32(0.1), detach=detach)[
      0
    ].sum()
  )(key)
  assert np.abs(run(False)).max() > 0.1
  assert np.abs(run(True)).max() == 0


def test_any_identical_text_is_correct():
  query = jnp.eye(2, dtype=jnp.float32)
  key = query[::-1]
  prints = jnp.zeros((2, 2), jnp.uint32)
  temperature = jnp.float32(1.0)
  _, wrong = query_loss(query, key, temperature=temperature)
  _, right = query_loss(query, key, temperature=temperature, fingerprint=prints)
  assert not wrong.any()
  assert right.all()


def test_everything_masked_is_zero_and_finite():
  x = jnp.ones((3, 2), jnp.float32)
  run = lambda q: query_loss(
    q, x, temperature=jnp.float32(0.1), valid=jnp.zeros(3, bool)
  )[0].sum()
  value, grad = jax.value_and_grad(run)(x)
  assert value == 0
  assert not grad.any()


def test_errors_name_the_values():
  x = jnp.ones((3, 2), jnp.float32)
  one = jnp.float32(1.0)
  with pytest.raises(ValueError, match="unknown contrastive"):
    query_loss(x, x, temperature=one, backend="fast")
  with pytest.raises(ValueError, match="label_smoothing"):
    query_loss(x, x, temperature=one, label_smoothing=1.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_explicit_negatives_join_the_keys_of_their_own_query(case, backend):
  query, key, _, _, _ = case
  rng = np.random.default_rng(1)
  negatives = np.stack([unit(rng, 2, 3) for _ in range(5)])
  there = rng.random((5, 2)) < 0.6

  def plain_loss(extra):
    values = np.zeros(5)
    for i in range(5):
      own = [extra[i, k] for k in range(2) if there[i, k]]
      logits = np.array([query[i] @ x / 0.3 for x in [*key, *own]])
      values[i] = np.log(np.exp(logits).sum()) - logits[i]
    return values

  def ours(extra):
    return query_loss(
      jnp.asarray(query, jnp.float32),
      jnp.asarray(key, jnp.float32),
      temperature=jnp.float32(0.3),
      negatives=extra,
      negatives_valid=jnp.asarray(there),
      backend=backend,
    )[0]

  extra = jnp.asarray(negatives, jnp.float32)
  np.testing.assert_allclose(ours(extra), plain_loss(negatives), rtol=2e-6)
  grad = jax.grad(lambda x: ours(x).sum())(extra)
  expected = gradient(lambda x: plain_loss(x).sum(), negatives)
  np.testing.assert_allclose(grad, expected, atol=2e-5)
  assert not np.asarray(grad)[~there].any()
