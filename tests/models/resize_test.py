"""Resizing of position and frame tables."""

from __future__ import annotations

import numpy as np
import pytest

from mico_jax.models import resize


def test_nearest_differs_from_integers_in_three_places():
  odd = [
    (old, new, k)
    for old in range(1, 41)
    for new in range(1, 41)
    for k, index in enumerate(resize.nearest_indices(old, new))
    if index != k * old // new
  ]
  assert odd == [(26, 22, 11), (39, 33, 11), (39, 33, 22)]


@pytest.mark.parametrize("method", resize.METHODS)
def test_positions(method):
  rng = np.random.default_rng(0)
  table = rng.normal(size=(1 + 16, 3)).astype(np.float32)
  same = resize.resize_positions(table, 4, method=method)
  np.testing.assert_array_equal(same, table)
  for grid in (2, 3, 7):
    got = resize.resize_positions(table, grid, method=method)
    assert got.shape == (1 + grid**2, 3)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], table[0])
  flat = np.ones((10, 2), np.float32)
  got = resize.resize_positions(flat, 5, method=method)
  np.testing.assert_allclose(got, 1.0, atol=1e-6)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="square"):
    resize.resize_positions(np.ones((12, 2)), 4)
  with pytest.raises(ValueError, match="bilinear"):
    resize.resize_positions(np.ones((10, 2)), 4, method="nope")


@pytest.mark.parity
@pytest.mark.parametrize("method", resize.METHODS)
def test_positions_equal_torch(method):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  table = rng.normal(size=(1 + 49, 3)).astype(np.float32)
  for grid in (3, 5, 10, 14):
    image = torch.tensor(table[1:]).reshape(1, 7, 7, 3).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(
      image, (grid, grid), mode=method, align_corners=False
    )
    want = want.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    got = resize.resize_positions(table, grid, method=method)[1:]
    np.testing.assert_allclose(got, want, atol=2e-6)
