"""Options of the compiler by machine."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from mico_jax import aot
from mico_jax.kernels import compiler, target


@pytest.fixture
def fresh():
  compiler.forward_options.cache_clear()
  yield
  compiler.forward_options.cache_clear()


def test_a_forward_pass_on_a_cpu_takes_the_products_of_xla(fresh):
  options = compiler.forward_options()
  assert options
  x, w = jnp.ones((64, 128)), jnp.ones((128, 256))
  plain = jax.jit(jnp.dot).lower(x, w).compile()
  assert "__ynn_fusion" in plain.as_text()
  given = jax.jit(jnp.dot, compiler_options=options).lower(x, w).compile()
  assert "__ynn_fusion" not in given.as_text()
  np.testing.assert_allclose(plain(x, w), given(x, w), rtol=1e-6)


def test_unknown_options_are_left_out(fresh, monkeypatch):
  monkeypatch.setattr(compiler, "_CPU_FORWARD", {"xla_no_such_option": ""})
  assert compiler.forward_options() is None


def test_other_platforms_keep_their_defaults(fresh, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert compiler.forward_options() is None


def test_a_step_of_no_known_generation_keeps_the_defaults():
  assert compiler.step_options() is None
  with target.use(target.Target("tpu", "v5e")):
    assert compiler.step_options() is None


def test_options_that_the_compiler_does_not_know_are_left_out():
  """The CPU's compiler knows none of a TPU."""
  with target.use(target.Target("tpu", "v5p")):
    assert compiler.step_options() is None


@pytest.mark.aot
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_a_step_gathers_beside_products(name):
  if reason := aot.missing():
    pytest.skip(reason)
  device = aot.devices(name)[0]
  with target.use(target.Target("tpu", name.split(":")[0])):
    options = compiler.step_options(SingleDeviceSharding(device))
  assert options is not None
  assert options["xla_tpu_enable_async_collective_fusion_fuse_all_gather"]
