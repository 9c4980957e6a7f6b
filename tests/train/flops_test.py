"""Model FLOPs, counted in a jaxpr."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec

from mico_jax.config import ParallelConfig
from mico_jax.parallel.mesh import make_mesh
from mico_jax.train import flops

A, B = jnp.zeros((8, 16)), jnp.zeros((16, 4))
ONE = 2 * 8 * 16 * 4


def count(function, *args):
  return flops.count_flops(jax.make_jaxpr(function)(*args))


def test_products_and_nothing_else():
  assert count(lambda a, b: jnp.tanh(a @ b) + 1, A, B) == ONE
  stacked = lambda x: jnp.stack([x] * 5)
  assert count(jnp.matmul, stacked(A), stacked(B)) == 5 * ONE


def test_backward_pass_is_twice_the_forward_pass():
  grad = jax.grad(lambda ab: (ab[0] @ ab[1]).sum())
  assert count(grad, (A, B)) in (2 * ONE, 3 * ONE)


def test_loops_branches_and_calls():
  def loop(a, b):
    return jax.lax.scan(lambda c, _: (c, a @ b), 0.0, length=7)[1]

  assert count(loop, A, B) == 7 * ONE
  assert count(jax.jit(jax.checkpoint(lambda a, b: a @ b)), A, B) == ONE

  def branch(a, b):
    return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((8, 4)))

  assert count(branch, A, B) == ONE

  product = jax.custom_vjp(lambda a, b: a @ b)
  product.defvjp(lambda a, b: (a @ b, None), lambda _, g: (A, B))
  assert count(product, A, B) == ONE


def test_products_that_a_count_misses_or_doubles():
  product = lambda a, b: (a @ b).sum()
  plain = lambda f: flops.is_plain(jax.make_jaxpr(f)(A, B))
  assert plain(jax.jit(jax.grad(product)))
  assert not plain(jax.grad(jax.checkpoint(product)))
  turns = lambda a, b: jax.lax.while_loop(
    lambda x: x.sum() < 1, lambda x: x + a @ b, jnp.zeros((8, 4))
  )
  assert not plain(lambda a, b: jax.lax.cond(True, turns, jnp.matmul, a, b))
  copy = lambda source, out: out.__setitem__(..., source[...])
  call = pl.pallas_call(copy, jax.ShapeDtypeStruct(A.shape, A.dtype))
  assert not plain(lambda a, b: jax.jit(call)(a) @ b)


def test_convolution():
  x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((4, 4, 3, 5))
  apply = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert count(apply, x, kernel) == 2 * (2 * 2 * 2 * 5) * (4 * 4 * 3)


@pytest.mark.multidevice
def test_shards_are_added_up():
  mesh = make_mesh(ParallelConfig())
  rows = PartitionSpec("data")
  apply = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(rows, PartitionSpec()),
    out_specs=rows,
    axis_names={"data"},
  )
  assert count(apply, A, B) == ONE


def test_share_of_a_known_peak():
  class Chip:
    device_kind = "TPU v5 lite"

  assert flops.mfu(197e12, 2.0, 1, Chip()) == pytest.approx(0.5)
  assert flops.mfu(1.0, 1.0, 1, jax.devices("cpu")[0]) is None
