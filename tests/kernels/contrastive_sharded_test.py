"""The contrastive loss over a mesh: equal to the whole matrix, in less room."""

from __future__ import annotations

import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.contrastive import api, contrastive_pair
from mico_jax.train import flops

ROWS, WIDTH = 16, 6


def rows_over(*sizes):
  """A partition over the first devices; two sizes: over both mesh axes."""
  count = int(np.prod(sizes))
  names = ("data", "fsdp")[: len(sizes)]
  devices = np.array(jax.devices()[:count]).reshape(sizes)
  return BatchSharding(jax.sharding.Mesh(devices, names), names)


def unit(rng, *shape):
  x = rng.standard_normal(shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def case(negatives=True):
  rng = np.random.default_rng(0)
  prints = np.stack([rng.integers(0, 10, ROWS), np.zeros(ROWS)], axis=1)
  options = {
    "fingerprint": jnp.asarray(prints, jnp.uint32),
    "valid": jnp.asarray(rng.random(ROWS) < 0.8),
  }
  if negatives:
    options["negatives_valid"] = jnp.asarray(rng.random((ROWS, 2)) < 0.7)
  weights = rng.random((2, ROWS))
  arrays = [unit(rng, ROWS, WIDTH), unit(rng, ROWS, WIDTH), 0.07, -2.0]
  if negatives:
    arrays.append(unit(rng, ROWS, 2, WIDTH))
  return arrays, options, weights


def run(backend, partition=None, *, wide=False, negatives=True, **options):
  """Values, hits and gradients of everything that has one."""
  arrays, more, weights = case(negatives)
  dtype = jnp.float64 if wide else jnp.float32

  def loss(query, key, temperature, bias, extra=None):
    pair = contrastive_pair(
      query,
      key,
      temperature=temperature,
      bias=bias,
      negatives=extra,
      partition=partition,
      backend=backend,
      **{**more, **options},
    )
    weighted = jnp.stack([pair.to_key, pair.to_query]) * jnp.asarray(
      weights, dtype
    )
    return weighted.sum(), pair

  with jax.enable_x64(wide):
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    if partition is not None:
      arrays = [partition.constrain(x) if x.ndim else x for x in arrays]
    grads, pair = jax.jit(
      jax.grad(loss, tuple(range(len(arrays))), has_aux=True)
    )(*arrays)
    return jax.tree.map(np.asarray, (grads, pair))


def close(got, wanted, tolerance):
  """Relative to the norm of each array."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b) + 1e-12


FORMS = list(itertools.product(("softmax", "sigmoid"), (0.0, 0.1)))


@pytest.mark.parametrize("backend", ["chunked", "ring"])
@pytest.mark.parametrize(("form", "smoothing"), FORMS)
@pytest.mark.parametrize("detach", [False, True])
def test_blocks_equal_the_matrix_in_float64(backend, form, smoothing, detach):
  options = {"form": form, "label_smoothing": smoothing, "detach": detach}
  wanted = run("xla", wide=True, **options)
  got = run(backend, wide=True, chunk=5, **options)
  close(got, wanted, 1e-12)


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["chunked", "ring"])
@pytest.mark.parametrize("sizes", [(2,), (4,), (8,), (2, 2)])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_devices_equal_the_matrix(backend, sizes, form):
  options = {"form": form, "label_smoothing": 0.1}
  exact = run("xla", wide=True, **options)
  plain = run("xla", **options)
  got = run(backend, rows_over(*sizes), chunk=8, **options)
  close(got, exact, 1e-6)
  close(got, plain, 1e-6)


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["chunked", "ring"])
def test_devices_keep_the_options(backend):
  """Detached sides, no fingerprints, everyone valid, no negatives."""
  options = {"fingerprint": None, "valid": None, "detach": True}
  exact = run("xla", wide=True, negatives=False, **options)
  got = run(backend, rows_over(4), negatives=False, chunk=4, **options)
  close(got, exact, 1e-6)


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["chunked", "ring"])
def test_ties_go_to_the_first_row_on_any_device(backend):
  """All embeddings equal: row 0 is everyone's best, and right for itself."""
  same = jnp.ones((ROWS, 1), jnp.float32)
  pair = contrastive_pair(
    same,
    same,
    temperature=jnp.float32(1.0),
    partition=rows_over(4),
    chunk=8,
    backend=backend,
  )
  first = np.arange(ROWS) == 0
  np.testing.assert_array_equal(pair.key_hit, first)
  np.testing.assert_array_equal(pair.query_hit, first)


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["chunked", "ring"])
def test_small_temperature_does_not_underflow(backend):
  rng = np.random.default_rng(1)
  query = jnp.asarray(unit(rng, ROWS, WIDTH), jnp.float32)
  far = -query  # every true pair at similarity -1, the worst
  values = contrastive_pair(
    query,
    far,
    temperature=jnp.float32(0.005),
    partition=rows_over(4),
    chunk=4,
    backend=backend,
  ).to_key
  logits = np.asarray(query, np.float64) @ np.asarray(far, np.float64).T / 0.005
  peak = logits.max(axis=1)
  total = np.exp(logits - peak[:, None]).sum(axis=1)
  expected = peak + np.log(total) - np.diag(logits)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.multidevice
@pytest.mark.parametrize("backend", ["chunked", "ring"])
def test_memory_does_not_grow_with_the_batch(backend):
  """Temporaries of 8 devices against those of 2 at equal rows per device."""

  def temporaries(devices):
    partition = rows_over(devices)
    shape = jax.ShapeDtypeStruct(
      (devices * 512, 256),
      jnp.float32,
      sharding=jax.sharding.NamedSharding(partition.mesh, partition.spec()),
    )
    loss = lambda q, k: contrastive_pair(
      q,
      k,
      temperature=jnp.float32(0.1),
      partition=partition,
      chunk=64,
      backend=backend,
    ).to_key.sum()
    step = jax.jit(jax.grad(loss, (0, 1)))
    memory = step.lower(shape, shape).compile().memory_analysis()
    return memory.temp_size_in_bytes

  one_side = 512 * 256 * 4
  assert temporaries(8) < temporaries(2) + 0.5 * one_side


@pytest.mark.multidevice
def test_dispatch_says_what_and_why(caplog):
  target._log.cache_clear()
  x = jnp.ones((6, 2), jnp.float32)
  options = {"temperature": jnp.float32(1.0)}
  with caplog.at_level(logging.INFO, logger=api.__name__):
    contrastive_pair(x, x, **options)
    contrastive_pair(x, x, partition=rows_over(2), **options)
    contrastive_pair(x, x, partition=rows_over(4), **options)
    contrastive_pair(x, x, partition=rows_over(4), **options)
  assert [r.message for r in caplog.records] == [
    "contrastive loss (softmax): xla (one device, a matrix of 0.0 MiB)",
    "contrastive loss (softmax): chunked, 6 columns at a time "
    "(2 devices; not xla: it gathers a whole side)",
    "contrastive loss (softmax): xla "
    "(not chunked: 6 rows do not divide over 4 devices)",
  ]
  with pytest.raises(NotImplementedError, match="not ring: 6 rows do not"):
    contrastive_pair(x, x, partition=rows_over(4), backend="ring", **options)
  with pytest.raises(ValueError, match="form='hinge' is not one of"):
    contrastive_pair(x, x, form="hinge", **options)


def test_large_batches_of_one_device_go_in_chunks(caplog):
  target._log.cache_clear()
  x = jax.ShapeDtypeStruct((8192, 4), jnp.float32)
  with caplog.at_level(logging.INFO, logger=api.__name__):
    jax.eval_shape(
      lambda x: contrastive_pair(x, x, temperature=jnp.float32(1.0)), x
    )
  assert "chunked, 1024 columns" in caplog.text
  assert "not xla: a matrix of 256 MiB" in caplog.text


def test_rounding_is_asked_for_by_name():
  wanted = run("xla", dtype="bfloat16")
  got = run("chunked", dtype="bfloat16", chunk=4)
  np.testing.assert_allclose(got[1].to_key, wanted[1].to_key, rtol=2e-5)
  close(got[0][:2], wanted[0][:2], 2e-2)
  exact = run("xla")
  assert np.abs(exact[1].to_key - wanted[1].to_key).max() > 1e-4


@pytest.mark.multidevice
def test_a_batch_that_divides_badly_says_so(caplog):
  target._log.cache_clear()
  x = jax.ShapeDtypeStruct((2 * 4099, 4), jnp.float32)
  with caplog.at_level(logging.INFO, logger=api.__name__):
    for backend in ("chunked", "ring"):
      jax.eval_shape(
        lambda x, backend=backend: contrastive_pair(
          x,
          x,
          temperature=jnp.float32(1.0),
          partition=rows_over(2),
          backend=backend,
        ),
        x,
      )
  remark = "not 2046: 4099 rows of a device divide no better"
  assert [
    r.message.removeprefix("contrastive loss ") for r in caplog.records
  ] == [
    f"(softmax): chunked, 2 columns at a time (named; {remark})",
    f"(softmax): ring, 1 columns at a time (named; {remark})",
  ]


def _products(jaxpr):
  """Every product with what it multiplies and how."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "dot_general":
      yield eqn.invars[0].aval.dtype, eqn.params["precision"]
    for value in eqn.params.values():
      for inner in flops.inner_jaxprs(value):
        yield from _products(inner)


@pytest.mark.parametrize("backend", ["xla", "chunked", "ring"])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_float32_is_multiplied_as_float32(backend, form):
  """A matrix unit would round it to bfloat16 (or TF32) on its way."""
  rows = jnp.ones((8, 4), jnp.float32)
  options = {
    "temperature": jnp.float32(0.1),
    "bias": jnp.float32(0.0),
    "form": form,
    "label_smoothing": 0.1,
    "backend": backend,
    "chunk": 4,
  }

  def loss(query, key, negatives, dtype):
    pair = contrastive_pair(
      query, key, negatives=negatives, dtype=dtype, **options
    )
    return jnp.sum(pair.to_key + pair.to_query)

  gradient = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)), static_argnums=3)
  found = list(_products(gradient(rows, rows, rows[:, None], "").jaxpr))
  assert len(found) > 5
  highest = (jax.lax.Precision.HIGHEST,) * 2
  assert {precision for _, precision in found} == {highest}
  found = list(_products(gradient(rows, rows, rows[:, None], "bfloat16").jaxpr))
  assert any(precision is None for _, precision in found)
