"""Tokens of graphs: by their definition, padding, and the PyTorch form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers.graph_embed import GraphEmbed

WIDTH, NODES, LENGTH, FEATURES, PLACES = 5, 3, 7, 4, 6


def frames(fill=0.0):
  """Graphs of 3 nodes and 2 edges, and of one node; `fill` in padding."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, LENGTH, 2 + FEATURES + PLACES))
  kind = np.array([[1, 1, 1, 2, 2, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
  x = np.where(kind[..., None] > 0, x, fill).astype(np.float32)
  x[..., 0] = kind
  return x


def module():
  return GraphEmbed(WIDTH, nodes=NODES, features=FEATURES)


def params():
  shapes = jax.eval_shape(module().init, jax.random.key(0), frames())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def leaves():
  """Path, such as "node/kernel" -> array."""
  return {
    f"{path[1].key}/{path[2].key}": np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(params())
  }


def test_a_token_is_a_node_or_an_edge():
  x = frames().astype(np.float64)
  got = module().apply(params(), jnp.asarray(frames()))
  table = {k: v.astype(np.float64) for k, v in leaves().items()}
  assert set(table) == {
    *("node/kernel", "node/bias", "edge/kernel", "edge/bias", "place/kernel"),
  }
  for b, i, kind, first in ((0, 1, "node", 2), (0, 4, "edge", 1)):
    row = x[b, i]
    want = row[first : 2 + FEATURES] @ table[f"{kind}/kernel"]
    want += table[f"{kind}/bias"] + row[2 + FEATURES :] @ table["place/kernel"]
    np.testing.assert_allclose(got[b, i], want, rtol=1e-5, atol=1e-5)
  other = module().apply(params(), jnp.asarray(frames(99.0)))
  np.testing.assert_array_equal(got, other)


def test_torch_agrees():
  torch = pytest.importorskip("torch")
  from mico_jax.interop.torch_template.graph_embed import GraphEmbed as Torch

  frame = (LENGTH, 2 + FEATURES + PLACES)
  other = Torch(WIDTH, frame, nodes=NODES, features=FEATURES)
  state = {}
  for name, value in leaves().items():
    layer, leaf = name.split("/")
    kernel = leaf == "kernel"
    value = torch.as_tensor((value.T if kernel else value).copy())
    state[f"{layer}.{'weight' if kernel else leaf}"] = value
  other.load_state_dict(state)
  x = frames(99.0)
  with torch.no_grad():
    got = other(torch.as_tensor(x)).numpy()
  want = module().apply(params(), jnp.asarray(x))
  np.testing.assert_allclose(want, got, atol=1e-5)
  assert other.valid(torch.as_tensor(x)).sum(1).tolist() == [5, 1]
