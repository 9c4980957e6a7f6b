"""Tokens of point clouds: by their definition, padding, the PyTorch form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers.point_embed import PointEmbed

WIDTH, HIDDEN, GROUPS, SIZE = 7, 5, 3, 6


def frames(fill=0.0):
  """Two frames with groups of several sizes; padding holds `fill`."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, GROUPS, SIZE, 8)).astype(np.float32)
  sizes = np.array([[6, 2, 1], [4, 5, 0]])
  there = np.arange(SIZE) < sizes[..., None]
  x = np.where(there[..., None], x, fill).astype(np.float32)
  x[..., 7] = there
  return x


def module():
  return PointEmbed(WIDTH, hidden=HIDDEN)


def params():
  shapes = jax.eval_shape(module().init, jax.random.key(0), frames())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def leaves():
  """Path, such as "fc1/kernel" -> array."""
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params()):
    names = [str(getattr(k, "key", k)) for k in path]
    found["/".join(n for n in names if n not in ("params", "value"))] = x
  return {"/".join(k.split("/")[:2]): np.asarray(v) for k, v in found.items()}


def reference(group, table):
  """The token of the points [n, 8] of a group, in float64."""
  from scipy.special import erf

  gelu = lambda x: x * (1 + erf(x / np.sqrt(2))) / 2
  dense = lambda n, x: x @ table[f"{n}/kernel"] + table[f"{n}/bias"]
  near = group[:, :3] - group[0, :3]
  h = np.concatenate([near, group[:, :3], group[:, 3:7]], axis=1)
  h = dense("fc2", gelu(dense("fc1", h)))
  h = np.concatenate([h, np.tile(h.max(axis=0), (len(h), 1))], axis=1)
  h = dense("fc4", gelu(dense("fc3", h))).max(axis=0)
  return h + dense("place2", gelu(dense("place1", group[0, :3])))


def test_a_token_is_a_group_whatever_its_order():
  x = frames()
  got = module().apply(params(), jnp.asarray(x))
  table = {k: v.astype(np.float64) for k, v in leaves().items()}
  for b, g, size in ((0, 0, 6), (0, 1, 2), (0, 2, 1), (1, 0, 4), (1, 1, 5)):
    want = reference(x[b, g, :size].astype(np.float64), table)
    np.testing.assert_allclose(got[b, g], want, rtol=2e-5, atol=2e-5)
  turned = x.copy()
  turned[0, 0, 1:] = x[0, 0, :0:-1]  # the centre stays first
  other = module().apply(params(), jnp.asarray(turned))
  np.testing.assert_allclose(other, got, atol=1e-5)


def test_padding_does_not_count():
  one, two = (
    module().apply(params(), jnp.asarray(frames(v))) for v in (0.0, 99.0)
  )
  np.testing.assert_array_equal(one, two)

  def loss(tree, x):
    tokens = module().apply(tree, x)
    return jnp.sum(jnp.where(x[:, :, 0, 7:] > 0.5, jnp.sin(tokens), 0))

  x = jnp.asarray(frames(99.0))
  slopes = jax.grad(loss, argnums=(0, 1))(params(), x)
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(slopes))
  assert not np.asarray(slopes[1])[frames()[..., 7] == 0].any()
  same = jax.grad(loss)(params(), jnp.asarray(frames()))
  jax.tree.map(np.testing.assert_array_equal, same, slopes[0])


def test_torch_agrees():
  torch = pytest.importorskip("torch")
  from mico_jax.interop.torch_template.point_embed import PointEmbed as Torch

  other = Torch(WIDTH, (GROUPS, SIZE, 8), hidden=HIDDEN)
  names = {"kernel": "weight", "bias": "bias"}
  state = {}
  for name, value in leaves().items():
    layer, leaf = name.split("/")
    value = value.T if leaf == "kernel" else value
    state[f"{layer}.{names[leaf]}"] = torch.as_tensor(value.copy())
  other.load_state_dict(state)
  x = frames(99.0)
  with torch.no_grad():
    got = other(torch.as_tensor(x)).numpy()
  want = np.asarray(module().apply(params(), jnp.asarray(x)))
  mask = other.valid(torch.as_tensor(x)).numpy()
  assert mask.tolist() == [[True, True, True], [True, True, False]]
  np.testing.assert_allclose(want[mask], got[mask], atol=2e-5)
