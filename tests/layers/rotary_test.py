"""Rotary positions: tables, rotation, subsets, other grids."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers import rotary


def angles(grid, head_dim, base_grid):
  """Angle of every patch and channel in float64, one at a time."""
  half = head_dim // 2
  found = np.zeros((grid * grid, head_dim))
  for patch in range(grid * grid):
    for i in range(head_dim):
      axis = patch // grid if i < half else patch % grid
      pair = (i % half) // 2
      found[patch, i] = axis * base_grid / grid / 10000 ** (2 * pair / half)
  return found


@pytest.mark.parametrize(
  ("grid", "head_dim", "base_grid"), [(3, 16, 16), (16, 64, 16), (5, 4, 3)]
)
def test_tables(grid, head_dim, base_grid):
  cos, sin = rotary.rotary_tables(grid, head_dim, base_grid=base_grid)
  want = angles(grid, head_dim, base_grid)
  assert cos.dtype == sin.dtype == np.float32
  np.testing.assert_allclose(cos, np.cos(want), atol=2e-6)
  np.testing.assert_allclose(sin, np.sin(want), atol=2e-6)


def test_a_finer_grid_spans_the_same_range():
  coarse = rotary.rotary_tables(4, 8, base_grid=16)
  fine = rotary.rotary_tables(8, 8, base_grid=16)
  for a, b in zip(coarse, fine, strict=True):
    a, b = a.reshape(4, 4, 8), b.reshape(8, 8, 8)
    np.testing.assert_allclose(a, b[::2, ::2], atol=1e-6)


def test_rotation_is_of_neighbouring_pairs_and_leaves_the_class_token():
  cos, sin = rotary.token_tables(3, 8, base_grid=16)
  x = jax.random.normal(jax.random.key(0), (2, 10, 3, 8))
  got = np.asarray(rotary.rotate(x, cos, sin), np.float64)
  np.testing.assert_array_equal(got[:, 0], x[:, 0])
  pairs = np.asarray(x, np.float64)[:, 1:].reshape(2, 9, 3, 4, 2)
  turn = np.exp(1j * angles(3, 8, 16)[:, ::2])
  want = (pairs[..., 0] + 1j * pairs[..., 1]) * turn[None, :, None]
  np.testing.assert_allclose(got[:, 1:, :, ::2], want.real, atol=2e-6)
  np.testing.assert_allclose(got[:, 1:, :, 1::2], want.imag, atol=2e-6)


def test_products_depend_on_the_distance_only():
  cos, sin = rotary.token_tables(6, 8, base_grid=6)
  q, k = jax.random.normal(jax.random.key(1), (2, 8))
  turn = lambda v: rotary.rotate(
    jnp.broadcast_to(v[None, None, None], (1, 36, 1, 8)), cos[:, 1:], sin[:, 1:]
  ).reshape(6, 6, 8)
  dots = jnp.einsum("yxh,vuh->yxvu", turn(q), turn(k))
  np.testing.assert_allclose(dots[0, 0, 1, 2], dots[4, 3, 5, 5], atol=1e-5)
  assert abs(dots[0, 0, 1, 2] - dots[0, 0, 2, 1]) > 1e-3


def test_subset_takes_the_rows_of_its_patches():
  indices = jnp.array([[8, 0, 4], [1, 2, 3]])
  whole = rotary.token_tables(3, 8, base_grid=16)
  some = rotary.token_tables(3, 8, base_grid=16, token_indices=indices)
  for a, b in zip(whole, some, strict=True):
    assert b.shape == (2, 4, 8)
    np.testing.assert_array_equal(b[:, 0], a[0, :1].repeat(2, 0))
    np.testing.assert_array_equal(b[0, 1:], a[0, 1 + indices[0]])
    np.testing.assert_array_equal(b[1, 1:], a[0, 1 + indices[1]])


def test_half_precision_rounds_once():
  cos, sin = rotary.token_tables(4, 16, base_grid=16)
  x = jax.random.normal(jax.random.key(2), (1, 17, 2, 16), jnp.bfloat16)
  got = rotary.rotate(x, cos, sin)
  assert got.dtype == jnp.bfloat16
  want = rotary.rotate(x.astype(jnp.float32), cos, sin)
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_odd_heads_are_refused():
  with pytest.raises(ValueError, match="multiple of 4, got 22"):
    rotary.rotary_tables(2, 22, base_grid=16)
