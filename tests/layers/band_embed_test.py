"""Tokens of bands: by their definition, gaps, and the PyTorch form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers.band_embed import BandEmbed

WIDTH, SLOTS, PIXELS, GROUP = 5, 8, 4, 2


def frames(fill=0.0):
  """Two frames of 6 and 3 bands with gaps, which hold `fill`."""
  rng = np.random.default_rng(0)
  x = np.full((2, SLOTS, 3 * PIXELS + 1), fill, np.float32)
  flags = rng.random((2, SLOTS, PIXELS)) > 0.3
  flags[0, 6:] = flags[1, 3:] = False
  values = rng.standard_normal((2, SLOTS, PIXELS, 2))
  for i in range(2):
    x[..., i * PIXELS : (i + 1) * PIXELS] = np.where(
      flags, values[..., i], fill
    )
  x[..., 2 * PIXELS : 3 * PIXELS] = flags
  x[..., -1] = 0.4 + 0.1 * np.arange(SLOTS)
  return x


def module():
  return BandEmbed(WIDTH, group=GROUP)


def params():
  shapes = jax.eval_shape(module().init, jax.random.key(0), frames())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def leaves():
  """(kernel, bias)."""
  table = {
    str(path[2].key): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(params())
  }
  return table["kernel"], table["bias"]


def test_a_token_is_a_group_at_its_wavelength():
  x = frames()
  got = module().apply(params(), jnp.asarray(x))
  kernel, bias = (v.astype(np.float64) for v in leaves())
  for b, g in ((0, 0), (0, 2), (1, 0), (1, 1)):
    rows = x[b, g * GROUP : (g + 1) * GROUP].astype(np.float64)
    want = rows[:, :-1].reshape(-1) @ kernel + bias
    there = rows[:, 2 * PIXELS : -1].any(axis=1)
    place = rows[there, -1].mean() / 0.05
    phases = place * 10_000.0 ** (-np.arange(3) / 3)
    waves = np.concatenate([np.sin(phases), np.cos(phases)])[:WIDTH]
    np.testing.assert_allclose(got[b, g], want + waves, atol=2e-5)
  unknown = x.copy()
  unknown[..., -1] = 0  # no wavelengths, no places
  got = module().apply(params(), jnp.asarray(unknown))
  want = x[0, :GROUP, :-1].reshape(-1) @ kernel + bias
  np.testing.assert_allclose(got[0, 0], want, atol=2e-5)


def test_what_stands_in_gaps_does_not_count():
  one, two = (
    module().apply(params(), jnp.asarray(frames(v))) for v in (0.0, 99.0)
  )
  np.testing.assert_array_equal(one, two)


def test_torch_agrees():
  torch = pytest.importorskip("torch")
  from mico_jax.interop.torch_template.band_embed import BandEmbed as Torch
  from mico_jax.modalities.spectra import valid_groups

  kernel, bias = leaves()
  other = Torch(WIDTH, (SLOTS, 3 * PIXELS + 1), group=GROUP)
  other.proj.weight.data = torch.as_tensor(kernel.T.copy())
  other.proj.bias.data = torch.as_tensor(bias.copy())
  x = frames(99.0)
  with torch.no_grad():
    got = other(torch.as_tensor(x)).numpy()
  want = module().apply(params(), jnp.asarray(x))
  np.testing.assert_allclose(want, got, atol=1e-5)
  mask = other.valid(torch.as_tensor(x)).numpy()
  assert mask.tolist() == [[True] * 3 + [False], [True] * 2 + [False] * 2]
  ours = valid_groups(x, xp=np, side=2, group=GROUP)
  np.testing.assert_array_equal(mask, ours)
