"""Tokens of series: by their definition, gaps, and the PyTorch form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers.series_embed import SeriesEmbed, sinusoids
from mico_jax.modalities import MODALITIES

WIDTH, COLUMNS, WINDOW, LENGTH = 7, 3, 4, 12


def frames(fill=0.0):
  """Values and flags of two frames; what is missing holds `fill`."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal((2, LENGTH, COLUMNS)).astype(np.float32)
  flags = (rng.random(values.shape) > 0.3).astype(np.float32)
  flags[1, 4:] = 0
  return np.concatenate([np.where(flags, values, fill), flags], -1)


def module():
  return SeriesEmbed(WIDTH, columns=COLUMNS, channels=2, window=WINDOW)


def params():
  shapes = jax.eval_shape(module().init, jax.random.key(0), frames())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def leaves(tree):
  """(kernel, bias) of the convolution."""
  table = {
    jax.tree_util.keystr(path).split("'")[-2]: np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
    if "kernel" in jax.tree_util.keystr(path)
    or "bias" in jax.tree_util.keystr(path)
  }
  return table["kernel"], table["bias"]


def test_a_token_is_a_window_and_its_neighbours():
  tree, x = params(), frames()
  kernel, bias = leaves(tree)
  got = module().apply(tree, jnp.asarray(x))
  wide = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (0, 0)))
  for i in range(LENGTH // WINDOW):
    window = wide[:, i * WINDOW : (i + 1) * WINDOW + 2].reshape(2, -1)
    want = window @ kernel.astype(np.float64) + bias + sinusoids(9, WIDTH)[i]
    np.testing.assert_allclose(got[:, i], want, atol=2e-5)
  table = sinusoids(5, 4)
  want = [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)]
  np.testing.assert_allclose(table[3], want, atol=1e-6)


def test_what_stands_in_gaps_does_not_count():
  tree = params()
  one, two = (module().apply(tree, jnp.asarray(frames(v))) for v in (0.0, 99.0))
  np.testing.assert_array_equal(one, two)
  assert np.abs(one[0] - one[1]).max() > 0.1
  loss = lambda x: jnp.sum(jnp.sin(module().apply(tree, x)))
  slopes = jax.grad(loss)(jnp.asarray(frames(99.0)))[..., :COLUMNS]
  missing = frames()[..., COLUMNS:] == 0
  assert not np.asarray(slopes)[missing].any()
  assert np.asarray(slopes)[~missing].all()
  with pytest.raises(ValueError, match="multiple of 4 samples and 6 columns"):
    module().apply(tree, jnp.zeros((1, 10, 6)))


def test_torch_agrees():
  torch = pytest.importorskip("torch")
  from mico_jax.interop.torch_template.series_embed import SeriesEmbed as Torch

  kernel, bias = leaves(params())
  options = {"columns": COLUMNS, "channels": 2, "window": WINDOW}
  other = Torch(WIDTH, (LENGTH, 2 * COLUMNS), **options)
  other.proj.weight.data = torch.as_tensor(kernel.T.copy())
  other.proj.bias.data = torch.as_tensor(bias.copy())
  x = frames(99.0)
  with torch.no_grad():
    got = other(torch.as_tensor(x)).numpy()
  want = module().apply(params(), jnp.asarray(x))
  np.testing.assert_allclose(want, got, atol=1e-5)
  for key, modality in MODALITIES.items():
    if modality.named and modality.rated:
      embedding = modality.embedding
      x = np.zeros((2, *embedding.frame), np.float32)
      columns = embedding.options["columns"]
      x[0, 20:40, columns] = x[1, :, -1] = 1  # the last is of the calendar
      other = Torch(8, embedding.frame, **embedding.options)
      mask = other.valid(torch.as_tensor(x)).numpy()
      np.testing.assert_array_equal(mask, embedding.valid_tokens(x, xp=np))
      assert mask[0].sum() == 2, key
