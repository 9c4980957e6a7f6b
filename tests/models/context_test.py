"""Contexts of mined negatives, taken on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.models import ContextKV

ROWS, LAYERS, LENGTH, WIDTH = 16, 2, 3, 4


def contexts(rng) -> ContextKV:
  keys, values = rng.standard_normal((2, LAYERS, ROWS, LENGTH, WIDTH))
  mask = rng.random((ROWS, LENGTH)) < 0.5
  return ContextKV(jnp.asarray(keys), jnp.asarray(values), jnp.asarray(mask))


def weighed(context: ContextKV, weights) -> jax.Array:
  seen = jnp.where(context.mask[None, ..., None], context.values, 0)
  return ((context.keys + seen) * weights[None]).sum()


@pytest.mark.multidevice
@pytest.mark.parametrize("run", [1, 2, 4, 8])
def test_near_contexts_are_those_that_are_named(run):
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "fsdp"))
  partition = BatchSharding(mesh, ("data", "fsdp"))
  rng = np.random.default_rng(run)
  near = ROWS // 8 * run  # rows of a run
  starts = np.repeat(np.arange(ROWS) // near * near, 2)  # two for each row
  indices = jnp.asarray(starts + rng.integers(0, near, 2 * ROWS))
  weights = jnp.asarray(rng.standard_normal((2 * ROWS, LENGTH, WIDTH)))
  given = contexts(rng)

  def far(keys, values):
    context = ContextKV(keys, values, given.mask)
    return weighed(context.take(indices), weights)

  def local(keys, values):
    context = ContextKV(keys, values, given.mask)
    found = context.take(indices, partition=partition, run=run)
    return weighed(found, weights)

  arrays = given.keys, given.values
  want, want_grads = jax.value_and_grad(far, (0, 1))(*arrays)
  step = jax.jit(jax.value_and_grad(local, (0, 1)))
  got, grads = step(*arrays)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for one, other in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)
  text = step.lower(*arrays).compile().as_text()
  assert ("collective-permute" in text) == (run > 1)
