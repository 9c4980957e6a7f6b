"""Norm, dropout, embedding and pooling."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels import target
from mico_jax.layers import (
  activations,
  conv,
  dropout,
  embed,
  fusion,
  norm,
  pool,
)
from mico_jax.layers.norm import LayerNorm


def test_norm_has_no_cancellation():
  """E[x^2] - E[x]^2 would be useless at this offset."""
  x = np.random.default_rng(0).normal(size=(4, 16)) + 1e3
  want = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  params = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
  got = LayerNorm(1e-12).apply({"params": params}, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("drop", [dropout.row_dropout, dropout.drop_path])
def test_dropout_follows_the_row(drop):
  keys = jax.random.split(jax.random.key(0), 8)
  x = jnp.ones((8, 64))
  out = drop(x, keys, 0.5, 3)
  order = jnp.array([5, 1, 0])
  np.testing.assert_array_equal(drop(x[order], keys[order], 0.5, 3), out[order])
  assert set(np.unique(np.asarray(out))) == {0.0, 2.0}
  assert not np.array_equal(out, drop(x, keys, 0.5, 4))
  np.testing.assert_array_equal(drop(x, None, 0.5, 3), x)


def test_dropout_rate():
  keys = jax.random.split(jax.random.key(0), 4)
  out = dropout.row_dropout(jnp.ones((4, 10_000)), keys, 0.3, 0)
  assert abs(float(jnp.mean(out == 0.0)) - 0.3) < 0.02
  assert abs(float(jnp.mean(out)) - 1.0) < 0.02


def test_frames_have_their_own_keys():
  keys = jax.random.split(jax.random.key(0), 2)
  frames = jax.random.key_data(dropout.fold_frames(keys, 3))
  assert len({tuple(k) for k in np.asarray(frames)}) == 6
  other = jax.random.key_data(dropout.fold_frames(keys[1:], 3))
  np.testing.assert_array_equal(frames[3:], other)


def test_patches_are_a_strided_convolution():
  rng = np.random.default_rng(0)
  pixels = jnp.asarray(rng.normal(size=(2, 12, 12, 3)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(4, 4, 3, 5)), jnp.float32)
  params = {"proj": {"kernel": kernel.reshape(-1, 5), "bias": jnp.zeros(5)}}
  got = embed.PatchEmbed(5, 4).apply({"params": params}, pixels)
  want = jax.lax.conv_general_dilated(
    pixels, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(got, want.reshape(2, 9, 5), atol=1e-4)


def test_pad_id_passes_no_gradient():
  ids = jnp.array([[1, 0, 2]])

  def grad(frozen):
    return jax.grad(lambda t: jnp.sum(embed.look_up(t, ids, frozen_id=frozen)))(
      jnp.ones((3, 2))
    )

  np.testing.assert_array_equal(grad(0)[:, 0], [0.0, 1.0, 1.0])
  np.testing.assert_array_equal(grad(None)[:, 0], [1.0, 1.0, 1.0])


def test_signal_windows():
  module = embed.SignalEmbed(6, window=4)
  x = jnp.ones((2, 12, 3))
  variables = module.init(jax.random.key(0), x)
  assert module.apply(variables, x).shape == (2, 3, 6)
  with pytest.raises(ValueError, match="multiple"):
    module.init(jax.random.key(0), jnp.ones((2, 13, 3)))


def test_pooling_skips_invalid_frames():
  tokens = jnp.arange(2 * 3 * 4 * 2, dtype=jnp.float32).reshape(2, 3, 4, 2)
  mask = jnp.array([[True, True, False], [False, False, False]])
  for name in pool.POOLINGS:
    pooling = functools.partial(pool.pool_frames, name)
    got = pooling(tokens, frame_mask=mask)
    np.testing.assert_allclose(got[0], pooling(tokens[:1, :2])[0], err_msg=name)
    np.testing.assert_array_equal(got[1], 0.0)
  short = pool.cls_and_mean(tokens)
  np.testing.assert_array_equal(short[:, :, 0], tokens[:, :, 0])
  np.testing.assert_allclose(short[:, :, 1], tokens[:, :, 1:].mean(2))


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 9)])
def test_norm_and_its_gradients_equal_float64(shape):
  rng = np.random.default_rng(1)
  with jax.enable_x64(True):
    x, g = (jnp.asarray(rng.normal(size=shape)) for _ in range(2))
    scale, bias = (jnp.asarray(rng.normal(size=shape[-1:])) for _ in range(2))

    def plain(x, scale, bias):
      y = x - x.mean(-1, keepdims=True)
      y = y / jnp.sqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
      lead = (1,) * (x.ndim - 1)
      return y * scale.reshape(*lead, -1) + bias.reshape(*lead, -1)

    want, pullback = jax.vjp(plain, x, scale, bias)
    got, ours = jax.vjp(lambda *a: norm.layer_norm(*a, 1e-6), x, scale, bias)
    np.testing.assert_allclose(got, want, atol=1e-13)
    for a, b in zip(ours(g), pullback(g), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-12)
    small = jax.tree.map(lambda a: a.astype(jnp.float32), (x, scale, bias))
    _, ours = jax.vjp(lambda *a: norm.layer_norm(*a, 1e-6), *small)
    for a, b in zip(ours(g.astype(jnp.float32)), pullback(g), strict=True):
      np.testing.assert_allclose(a, b, atol=2e-6)


def test_norm_keeps_bfloat16():
  x = jnp.ones((3, 8), jnp.bfloat16)
  y, pullback = jax.vjp(
    lambda x, s: norm.layer_norm(x, s, s, 1e-6), x, jnp.ones(8)
  )
  dx, ds = pullback(y)
  assert (y.dtype, dx.dtype, ds.dtype) == (x.dtype, x.dtype, jnp.float32)


def test_gelu_and_its_gradient_equal_float64():
  with jax.enable_x64(True):
    x = jnp.linspace(-12.0, 12.0, 4001)
    exact = lambda x: jax.nn.gelu(x, approximate=False)
    want, slope = jax.vjp(exact, x)
    got, ours = jax.vjp(activations.gelu, x)
    np.testing.assert_allclose(got, want, atol=1e-14)
    np.testing.assert_allclose(
      ours(jnp.ones_like(x))[0], slope(jnp.ones_like(x))[0], atol=1e-14
    )
    small = x.astype(jnp.float32)
    got, ours = jax.vjp(activations.gelu, small)
    np.testing.assert_allclose(got, want, atol=2e-6)
    np.testing.assert_allclose(
      ours(jnp.ones_like(small))[0], slope(jnp.ones_like(x))[0], atol=2e-6
    )


def test_gelu_on_v6e_errs_by_less_than_bfloat16_rounds():
  wide = np.linspace(-12.0, 12.0, 4001)
  x = jnp.asarray(wide, jnp.bfloat16)
  with jax.enable_x64(True):
    exact = functools.partial(jax.nn.gelu, approximate=False)
    want, slope = jax.vjp(exact, jnp.asarray(x, jnp.float64))
    (slope,) = slope(jnp.ones_like(want))
  ones = jnp.ones_like(x)
  with target.use(target.Target("tpu", "v6e")):
    assert "tanh" in str(jax.make_jaxpr(activations.gelu)(x))
    assert "tanh" not in str(jax.make_jaxpr(activations.gelu)(jnp.ones(4)))
    got, ours = jax.vjp(activations.gelu, x)
    (gradient,) = ours(ones)
  got, gradient = (np.asarray(y, np.float64) for y in (got, gradient))
  np.testing.assert_allclose(got, want, rtol=2**-7, atol=5e-5)
  # The density is computed in bfloat16, as elsewhere.
  np.testing.assert_allclose(gradient, slope, rtol=2**-7, atol=4e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_bias_gradient_equals_float64(dtype, platform):
  """On a TPU it is a product with ones, summed in float32."""
  rng = np.random.default_rng(0)
  g = jnp.asarray(rng.normal(size=(3, 7, 10)), dtype)
  x = jnp.zeros((3, 7, 10), dtype)
  bias = jnp.asarray(rng.normal(size=10), dtype)
  with target.use(target.Target(platform)):
    out, vjp = jax.vjp(fusion.add_bias, x, bias)
    got_x, got_bias = vjp(g)
  np.testing.assert_array_equal(out, x + bias[None, None])
  np.testing.assert_array_equal(got_x, g)
  want = np.asarray(g, np.float64).sum((0, 1))
  atol = 1e-5 if dtype == "float32" else 0.05
  np.testing.assert_allclose(np.asarray(got_bias, np.float64), want, atol=atol)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_barriers_are_for_tpus_and_change_nothing(platform):
  with target.use(target.Target(platform)):
    one = lambda x: fusion.forward_barrier(2 * x) + fusion.barrier(x)
    step = jax.value_and_grad(lambda x: jnp.sum(one(x) ** 2))
    program = str(jax.make_jaxpr(step)(jnp.ones(3)))
    value, gradient = step(jnp.arange(3.0))
  assert ("optimization_barrier" in program) == (platform == "tpu")
  assert float(value) == 45.0
  np.testing.assert_array_equal(gradient, 18 * np.arange(3.0))


@pytest.mark.parametrize(
  ("rows", "cols", "size"), [(1, 1, 7), (2, 5, 7), (8, 8, 3), (13, 4, 5)]
)
def test_depthwise_convolution_is_the_sum_over_its_kernel(rows, cols, size):
  """Both forms, and their gradients, against loops in float64."""
  rng = np.random.default_rng(0)
  x, g = rng.normal(size=(2, 2, rows, cols, 3))
  kernel = rng.normal(size=(size, size, 1, 3))
  reach = size // 2
  pads = ((0, 0), (reach, reach), (reach, reach), (0, 0))
  padded, want = np.pad(x, pads), np.zeros_like(x)
  to_x, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
  for i, j in np.ndindex(size, size):
    at = (slice(None), slice(i, i + rows), slice(j, j + cols))
    want += padded[at] * kernel[i, j, 0]
    to_x[at] += g * kernel[i, j, 0]
    to_kernel[i, j, 0] = (padded[at] * g).sum((0, 1, 2))
  to_x = to_x[:, reach : reach + rows, reach : reach + cols]
  args = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]
  for machine in ("cpu", "gpu"):
    with target.use(target.Target(machine)):
      got, back = jax.vjp(lambda *a: conv.depthwise(*a), *args)
      got_x, got_kernel = back(jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(got_x, to_x, atol=1e-4)
    np.testing.assert_allclose(got_kernel, to_kernel, atol=1e-4)
