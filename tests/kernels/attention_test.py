"""Every backend of attention against the plain one in float64."""

from __future__ import annotations

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels import dtypes, target
from mico_jax.kernels.attention import BACKENDS, api, attention, xla
from mico_jax.kernels.attention import reference as plain
from mico_jax.kernels.attention.rules import Rules

ON_CPU = [name for name in BACKENDS if name not in ("cudnn", "pallas_tpu")]


def _arrays(batch, queries, keys, heads, width, dtype=np.float64, seed=0):
  rng = np.random.default_rng(seed)
  shapes = [(batch, queries, heads, width)] + [(batch, keys, heads, width)] * 2
  return [rng.normal(size=s).astype(dtype) for s in shapes]


def _truth(q, k, v, mask, masked_rows):
  """Output and gradients of its sum of squares, in float64."""
  with jax.enable_x64(True):

    def loss(q, k, v):
      out = plain.attention(
        q,
        k,
        v,
        rules=Rules(None if mask is None else jnp.asarray(mask)),
        scale=q.shape[-1] ** -0.5,
        masked_rows=masked_rows,
      )
      return jnp.sum(jnp.square(out)), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
      *(jnp.asarray(x) for x in (q, k, v))
    )
    return [np.asarray(x) for x in (out, *grads)]


def _numpy_attention(q, k, v, mask):
  scores = np.einsum("blnh,bsnh->bnls", q, k) * q.shape[-1] ** -0.5
  if mask is not None:
    scores = np.where(mask, scores, -np.inf)
  scores = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum("bnls,bsnh->blnh", scores / scores.sum(-1, keepdims=True), v)


def test_the_plain_backend_is_attention():
  q, k, v = _arrays(2, 5, 7, 3, 4)
  mask = np.arange(7) < np.array([3, 7])[:, None, None, None]
  out = _truth(q, k, v, mask, "zero")[0]
  np.testing.assert_allclose(out, _numpy_attention(q, k, v, mask), atol=1e-12)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("masked_rows", ["zero", "released"])
@pytest.mark.parametrize(
  ("shape", "masked"),
  [
    ((2, 5, 7, 3, 4), True),
    ((1, 257, 257, 2, 88), False),
    ((2, 9, 9, 1, 3), 1),
  ],
)
def test_forward_and_gradients(backend, masked_rows, shape, masked):
  q, k, v = _arrays(*shape)
  mask = None
  if masked:
    rng = np.random.default_rng(1)
    mask = rng.random((shape[0], 1, shape[1], shape[2])) < 0.6
    mask[0, :, 2] = False  # a row that may look nowhere
  want = _truth(q, k, v, mask, masked_rows)

  def loss(q, k, v):
    out = attention(
      q,
      k,
      v,
      mask=None if mask is None else jnp.asarray(mask),
      masked_rows=masked_rows,
      backend=backend,
    )
    return jnp.sum(jnp.square(out)), out

  arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  grads, out = gradient(*arrays)
  limit = 2e-3 if masked and masked_rows == "released" else 1e-5
  for got, expected in zip((out, *grads), want, strict=True):
    np.testing.assert_allclose(np.asarray(got), expected, atol=limit)


@pytest.mark.parametrize("backend", ON_CPU)
def test_bfloat16(backend):
  q, k, v = _arrays(2, 33, 17, 2, 88)
  low = [jnp.asarray(x, jnp.float32).astype(jnp.bfloat16) for x in (q, k, v)]
  exact = [np.asarray(x, np.float64) for x in low]
  out = attention(*low, backend=backend)
  assert out.dtype == jnp.bfloat16
  want = _truth(*exact, None, "zero")[0]
  np.testing.assert_allclose(np.asarray(out, np.float64), want, atol=2e-2)


@pytest.mark.parametrize("backend", ON_CPU)
def test_fully_masked_rows_give_nothing(backend):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(2, 3, 4, 1, 8))
  mask = jnp.zeros((2, 1, 1, 4), bool).at[1].set(True)

  def loss(q, k, v):
    out = attention(q, k, v, mask=mask, backend=backend)
    return jnp.sum(out), out

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  grads, out = gradient(q, k, v)
  for x in (out, *grads):
    assert not np.any(np.asarray(x[0]))
    assert np.isfinite(np.asarray(x)).all()
  assert np.any(np.asarray(out[1]))
  out = attention(q, k, v, mask=mask, backend=backend, masked_rows="released")
  mean = np.broadcast_to(np.asarray(v[0]).mean(0), (3, 1, 8))
  scores = attention(q, k, v, backend=backend)
  np.testing.assert_allclose(out[0], scores[0], atol=2e-3)
  assert mean.shape == out[0].shape


def test_rules_equal_the_mask_they_mean():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(2, 6, 6, 2, 4))
  rows, columns = np.arange(6)[:, None], np.arange(6)[None]
  causal = columns <= rows
  prefix = np.stack([causal, causal | ((rows < 3) & (columns < 3))])
  lengths = np.array([6, 4])
  valid = np.arange(6)[None] < lengths[:, None]
  cases = [
    ({"causal": True}, causal[None]),
    ({"causal": True, "prefix_lengths": jnp.array([0, 3])}, prefix),
    ({"kv_lengths": jnp.asarray(lengths)}, valid[:, None]),
    (
      {"causal": True, "kv_lengths": jnp.asarray(lengths)},
      causal[None] & valid[:, None],
    ),
  ]
  for rules, mask in cases:
    got = attention(q, k, v, **rules)
    want = attention(q, k, v, mask=jnp.asarray(mask)[:, None])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", ON_CPU)
def test_dropout_belongs_to_the_row(backend):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(4, 8, 8, 2, 4))
  keys = jax.random.split(jax.random.key(0), 4)
  order = jnp.array([2, 0, 3, 1])

  def run(rows):
    return attention(
      q[rows],
      k[rows],
      v[rows],
      dropout_rate=0.5,
      row_keys=keys[rows],
      backend=backend,
    )

  whole = run(jnp.arange(4))
  np.testing.assert_array_equal(run(order), whole[order])
  assert np.abs(np.asarray(whole - attention(q, k, v))).max() > 0.1


def test_deterministic():
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(2, 9, 9, 2, 8))
  np.testing.assert_array_equal(attention(q, k, v), attention(q, k, v))


def test_dispatch_says_what_ran(caplog, monkeypatch):
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(1, 2, 2, 1, 8))
  monkeypatch.delenv(api.ENVIRONMENT, raising=False)
  target._log.cache_clear()
  with caplog.at_level(logging.INFO, logger=api.__name__):
    attention(q, k, v)
    attention(q, k, v)
  assert [r.message for r in caplog.records] == [
    "attention: xla; not pallas_tpu: platform is cpu, not tpu; not cudnn: "
    "platform is cpu, not gpu"
  ]
  monkeypatch.setenv(api.ENVIRONMENT, "reference")
  with caplog.at_level(logging.INFO, logger=api.__name__):
    attention(q, k, v, backend="xla")
  assert caplog.records[-1].message == "attention: reference (named)"


def test_mistakes_are_named(monkeypatch):
  monkeypatch.delenv(api.ENVIRONMENT, raising=False)
  q, k, v = (jnp.asarray(x, jnp.float32) for x in _arrays(1, 2, 2, 1, 8))
  with pytest.raises(ValueError, match="known: auto, pallas_tpu, cudnn"):
    attention(q, k, v, backend="nope")
  with pytest.raises(NotImplementedError, match="not gpu"):
    attention(q, k, v, backend="cudnn")
  with pytest.raises(ValueError, match="masked_rows"):
    attention(q, k, v, masked_rows="nope")
  with pytest.raises(ValueError, match="causal=True"):
    attention(q, k, v, prefix_lengths=1)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("lead", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_additive_bias(backend, lead):
  q, k, v = _arrays(2, 5, 7, 3, 4)
  bias = np.random.default_rng(1).normal(size=(*lead, 5, 7))
  mask = np.random.default_rng(2).random((2, 1, 5, 7)) < 0.7
  mask[:, :, :, 0] = True
  scores = np.einsum("blnh,bsnh->bnls", q, k) * 4**-0.5 + bias
  weights = np.where(mask, np.exp(scores), 0.0)
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum("bnls,bsnh->blnh", weights, v)
  # d loss / d scores of a softmax, for loss = sum(out).
  by_weight = np.einsum("blnh,bsnh->bnls", np.ones_like(want), v)
  mean = (weights * by_weight).sum(-1, keepdims=True)
  want_gradient = weights * (by_weight - mean)
  for axis in (0, 1):
    if lead[axis] == 1:
      want_gradient = want_gradient.sum(axis, keepdims=True)

  def loss(bias, q, k, v):
    out = attention(q, k, v, bias=bias, mask=jnp.asarray(mask), backend=backend)
    return jnp.sum(out), out

  arrays = [jnp.asarray(x, jnp.float32) for x in (bias, q, k, v)]
  gradient, out = jax.jit(jax.grad(loss, has_aux=True))(*arrays)
  np.testing.assert_allclose(out, want, atol=1e-5)
  np.testing.assert_allclose(gradient, want_gradient, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 7), (3, 1, 5, 7), (1, 1, 1, 7)])
def test_a_bias_that_does_not_fit(shape):
  # Not through `attention`: the types of these tests would speak first.
  with pytest.raises(
    ValueError, match=r"expected \[B N L S\] = \(2, 3, 5, 7\)"
  ):
    api._check_bias(jnp.zeros(shape), (2, 3, 5, 7))
  api._check_bias(jnp.zeros((1, 3, 5, 7)), (2, 3, 5, 7))


@pytest.fixture
def as_cudnn(monkeypatch):
  """Stands in for cuDNN: refuses what it refuses, computes by XLA."""
  plain_attention = jax.nn.dot_product_attention

  def stand_in(q, k, v, *, implementation, mask=None, **options):
    assert implementation == "cudnn"
    assert q.shape[-1] % 8 == 0
    even = q.shape[1] % 2 == k.shape[1] % 2 == 0
    assert mask is None or even

    def plain(*arrays):
      # JAX's own code there relies on promotion, which these tests forbid.
      with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
      ):
        return plain_attention(*arrays, mask=mask, **options)

    @jax.custom_vjp
    def run(*arrays):
      return plain(*arrays)

    def forward(*arrays):
      assert even, "as JAX 0.10 says: Unsupported sequence length"
      return jax.vjp(plain, *arrays)

    run.defvjp(forward, lambda vjp, grad: vjp(grad))
    return run(q, k, v)

  monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
  with target.use(target.Target("gpu")):
    yield


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"causal": True},
    {"kv_lengths": jnp.array([0, 4])},
    {"causal": True, "kv_lengths": jnp.array([3, 0])},
    {"causal": True, "prefix_lengths": jnp.array([2, 5])},
    {"mask": jnp.zeros((2, 1, 5, 7), bool).at[:, :, 1:, 3].set(True)},
  ],
  ids=str,
)
def test_cudnn_gets_what_it_takes(as_cudnn, options):
  length = 5 if "prefix_lengths" in options else 7
  arrays = _arrays(2, 5, length, 2, 12)
  low = [jnp.asarray(x, jnp.float32).astype(jnp.float16) for x in arrays]

  def loss(backend, *arrays):
    out = attention(*arrays, backend=backend, **options)
    return jnp.sum(out.astype(jnp.float32) ** 2), out

  got, want = (
    jax.grad(functools.partial(loss, name), (0, 1, 2), has_aux=True)(*low)
    for name in ("cudnn", "reference")
  )
  alone = attention(*low, backend="cudnn", **options)  # nothing is filled up
  np.testing.assert_allclose(
    np.asarray(alone, np.float32), np.asarray(want[1], np.float32), atol=2e-2
  )
  for x, expected in zip(
    jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(expected, np.float32), atol=2e-2
    )


def test_old_gpus_have_no_bfloat16(monkeypatch, caplog):
  with caplog.at_level(logging.INFO, logger=dtypes.__name__):
    for capability, want in ((7.5, "float32"), (8.0, "bfloat16")):
      machine = target.Target("gpu", capability=capability)
      with target.use(machine):
        assert dtypes.supported_dtype("bfloat16") == want
        assert dtypes.supported_dtype("float16") == "float16"
  assert len(caplog.records) == 1
  assert "7.5" in caplog.text
  q = jnp.zeros((1, 2, 1, 8), jnp.float16)
  with (
    target.use(target.Target("gpu", capability=7.5)),
    pytest.raises(NotImplementedError, match=r"7\.5, below 8\.0"),
  ):
    attention(q, q, q, backend="cudnn")


def test_a_gpu_without_cudnn_is_refused(monkeypatch):
  def missing(*_, **__):
    raise RuntimeError("cuDNN is not detected.")

  monkeypatch.setattr(jax.nn, "dot_product_attention", missing)
  q = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.float16)
  with target.use(target.Target("gpu", capability=8.0)):
    with pytest.raises(NotImplementedError, match="found no cuDNN"):
      jax.eval_shape(lambda q: attention(q, q, q, backend="cudnn"), q)
    out = jax.eval_shape(lambda q: attention(q, q, q), q)
  assert out.shape == q.shape


@pytest.mark.multidevice
def test_queries_go_in_chunks_where_those_of_a_device_are_too_many(monkeypatch):
  mesh = jax.make_mesh(
    (4, 2),
    ("data", "heads"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )
  q = jax.ShapeDtypeStruct((8, 16, 4, 8), jnp.float32)
  whole = 4 * 8 * 4 * 16 * 16

  def chunked(limit):
    monkeypatch.setattr(xla, "SCORE_BYTES", limit)
    trace = jax.make_jaxpr(lambda q: attention(q, q, q, backend="xla"))
    return "scan" in str(trace(q))

  assert chunked(whole - 1)
  with target.split(mesh, batch_axes=("data",), head_axes=("heads",)):
    assert not chunked(whole // 8)
    assert chunked(whole // 8 - 1)


def test_the_plain_target_takes_everything_in_one_piece(monkeypatch, caplog):
  target._log.cache_clear()
  monkeypatch.setattr(xla, "SCORE_BYTES", 0)
  monkeypatch.setenv(api.ENVIRONMENT, "pallas_tpu")
  q = jax.ShapeDtypeStruct((2, 16, 2, 8), jnp.float32)
  qkv = jax.ShapeDtypeStruct((2, 16, 48), jnp.float32)
  with (
    caplog.at_level(logging.INFO, logger=api.__name__),
    target.use(target.Target("cpu", plain=True)),
  ):
    jax.eval_shape(lambda q: attention(q, q, q), q)
    jax.eval_shape(lambda x: api.packed_attention(x, num_heads=2), qkv)
  assert not caplog.records
