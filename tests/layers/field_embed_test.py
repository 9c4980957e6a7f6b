"""Tokens of fields: by their definition, padding, and the PyTorch form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.layers import field_embed
from mico_jax.layers.field_embed import FieldEmbed
from mico_jax.modalities import tables

WIDTH, FIELDS, BINS, ROWS = 5, 4, 3, 6


def frames(fill=0.0):
  """A number, a category, a missing value, and no field, which holds `fill`."""
  x = np.full((2, FIELDS, 2 + BINS), fill, np.float32)
  x[:, :, 0] = [[1, 2, 3, 0], [1, 3, 2, 0]]
  x[0, 0, 2:] = [1, 0.25, 0]
  x[1, 0, 2:] = [-1, 0, 0]
  x[0, 1, 1], x[1, 2, 1] = 4, 6
  return x


def module():
  return FieldEmbed(WIDTH, rows=ROWS)


def params():
  shapes = jax.eval_shape(module().init, jax.random.key(0), frames())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
  return jax.tree.map(draw, shapes)


def leaves():
  """Name -> array."""
  return {
    str(path[1].key): np.asarray(x)
    for path, x in jax.tree_util.tree_leaves_with_path(params())
  }


def test_states_are_those_of_tables():
  for name in ("NUMBER", "CATEGORY", "MISSING"):
    assert getattr(field_embed, name) == getattr(tables, name)


def test_a_token_is_a_field_and_its_value():
  got = module().apply(params(), jnp.asarray(frames()))
  table = leaves()
  for b, f, value in (
    (0, 0, [1, 0.25, 0] @ table["numbers"][0]),
    (1, 0, [-1, 0, 0] @ table["numbers"][0]),
    (0, 1, table["categories"][4]),
    (1, 2, table["categories"][6]),
    (0, 2, table["missing"][2]),
    (1, 1, table["missing"][1]),
  ):
    want = table["fields"][f] + value
    np.testing.assert_allclose(got[b, f], want, atol=1e-5)


def test_what_stands_elsewhere_does_not_count():
  one, two = (
    module().apply(params(), jnp.asarray(frames(v))) for v in (0.0, 3.0)
  )
  np.testing.assert_array_equal(one, two)

  def loss(tree, x):
    return jnp.sum(jnp.sin(module().apply(tree, x)))

  slopes, same = (
    jax.grad(loss)(params(), jnp.asarray(frames(v))) for v in (3.0, 0.0)
  )
  jax.tree.map(np.testing.assert_array_equal, slopes, same)


def test_torch_agrees():
  torch = pytest.importorskip("torch")
  from mico_jax.interop.torch_template.field_embed import FieldEmbed as Torch

  other = Torch(WIDTH, (FIELDS, 2 + BINS), rows=ROWS)
  other.load_state_dict(
    {k: torch.as_tensor(v.copy()) for k, v in leaves().items()}
  )
  x = frames(3.0)
  with torch.no_grad():
    got = other(torch.as_tensor(x)).numpy()
  want = module().apply(params(), jnp.asarray(x))
  np.testing.assert_allclose(want, got, atol=1e-5)
  assert other.valid(torch.as_tensor(x)).tolist() == [[True] * 3 + [False]] * 2
