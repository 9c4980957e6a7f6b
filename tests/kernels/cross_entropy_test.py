"""The token cross-entropy kernel against plain float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels.cross_entropy import (
  BACKENDS,
  IGNORE,
  token_cross_entropy,
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_values_and_gradients(backend, smoothing):
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 3, 5)) * 4
  labels = np.array([[1, IGNORE, 4], [0, 2, IGNORE]])
  prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  scored = labels != IGNORE
  target = np.eye(5)[np.where(scored, labels, 0)]
  target = (1 - smoothing) * target + smoothing / 5
  values = -(target * np.log(prob)).sum(-1) * scored
  grads = (prob - target) * scored[..., None]

  def ours(x):
    out, correct = token_cross_entropy(
      x, jnp.asarray(labels), label_smoothing=smoothing, backend=backend
    )
    return out.sum(), (out, correct)

  got, (out, correct) = jax.grad(ours, has_aux=True)(
    jnp.asarray(logits, jnp.float32)
  )
  np.testing.assert_allclose(out, values, atol=5e-6)
  np.testing.assert_allclose(got, grads, atol=2e-6)
  np.testing.assert_array_equal(correct, (prob.argmax(-1) == labels) & scored)


def test_low_precision_logits_are_summed_in_float32():
  logits = jnp.ones((1, 4096), jnp.bfloat16)
  value, _ = token_cross_entropy(logits, jnp.zeros(1, jnp.int32))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, np.log(4096.0), rtol=1e-6)


def test_shapes_must_fit():
  # TypeError: where the annotations are checked, as they are in tests.
  with pytest.raises((ValueError, TypeError)):
    token_cross_entropy(jnp.ones((2, 3, 5)), jnp.zeros(2, jnp.int32))
