"""What the machine of a trace decides beside kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels import target


@pytest.fixture
def fresh():
  target.forward_options.cache_clear()
  yield
  target.forward_options.cache_clear()


def test_a_forward_pass_on_a_cpu_takes_the_products_of_xla(fresh):
  options = target.forward_options()
  assert options
  x, w = jnp.ones((64, 128)), jnp.ones((128, 256))
  plain = jax.jit(jnp.dot).lower(x, w).compile()
  assert "__ynn_fusion" in plain.as_text()
  given = jax.jit(jnp.dot, compiler_options=options).lower(x, w).compile()
  assert "__ynn_fusion" not in given.as_text()
  np.testing.assert_allclose(plain(x, w), given(x, w), rtol=1e-6)


def test_unknown_options_are_left_out(fresh, monkeypatch):
  monkeypatch.setattr(target, "_CPU_FORWARD", {"xla_no_such_option": ""})
  assert target.forward_options() is None


def test_other_platforms_keep_their_defaults(fresh, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert target.forward_options() is None
