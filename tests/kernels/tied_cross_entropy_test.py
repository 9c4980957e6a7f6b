"""Captions without logits: equal to the naive loss, in less room."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.cross_entropy import IGNORE, api, tied_cross_entropy

ROWS, LENGTH, WIDTH, WORDS = 8, 5, 6, 23


def rows_over(count):
  devices = np.array(jax.devices()[:count])
  return BatchSharding(jax.sharding.Mesh(devices, ("data",)), ("data",))


def case(dtype):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, WORDS, (ROWS, LENGTH))
  labels[rng.random(labels.shape) < 0.6] = IGNORE
  labels[2] = IGNORE
  arrays = [
    rng.standard_normal((ROWS, LENGTH, WIDTH)),
    rng.standard_normal((WORDS, WIDTH)),
    rng.standard_normal(WORDS),
  ]
  weights = rng.random((ROWS, LENGTH))
  return [jnp.asarray(a, dtype) for a in arrays], labels, weights


def run(backend, partition=None, wide=False, **options):
  """Gradients of hidden states, table, bias; values and hits."""
  with jax.enable_x64(wide):
    arrays, labels, weights = case(jnp.float64 if wide else jnp.float32)

    def loss(x, words, bias):
      values, hits = tied_cross_entropy(
        x,
        words,
        bias,
        jnp.asarray(labels, jnp.int32),
        partition=partition,
        backend=backend,
        **options,
      )
      return (values * jnp.asarray(weights, x.dtype)).sum(), (values, hits)

    out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return jax.tree.map(np.asarray, out)


def close(got, wanted, tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    a, b = a.astype(np.float64), b.astype(np.float64)
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def test_naive_loss_in_float64():
  (x, words, bias), labels, weights = case(np.float32)
  x, words, bias = (np.asarray(a, np.float64) for a in (x, words, bias))
  scores = x @ words.T + bias
  prob = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  scored = labels != IGNORE
  target = 0.9 * np.eye(WORDS)[np.where(scored, labels, 0)] + 0.1 / WORDS
  error = (prob - target) * (scored * weights)[..., None]
  values = -(target * np.log(prob)).sum(-1) * scored
  hits = (prob.argmax(-1) == labels) & scored
  wanted = (
    (error @ words, np.einsum("blv,blw->vw", error, x), error.sum((0, 1))),
    (values, hits),
  )
  for backend in api.TIED_BACKENDS:
    got = run(backend, wide=True, label_smoothing=0.1, chunk=3)
    close(got, wanted, 1e-6)  # the inputs were rounded to float32


@pytest.mark.parametrize("chunk", [1, 7, 40])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_blocks_equal_the_logits(chunk, smoothing):
  exact = run("dense", wide=True, label_smoothing=smoothing)
  got = run("chunked", wide=True, label_smoothing=smoothing, chunk=chunk)
  close(got, exact, 1e-12)


@pytest.mark.multidevice
@pytest.mark.parametrize("count", [2, 4, 8])
def test_devices_equal_the_logits(count):
  exact = run("dense", wide=True)
  close(run("chunked", rows_over(count), chunk=2), exact, 1e-6)


def test_nothing_scored_is_zero():
  x, words = jnp.ones((2, 3, 4)), jnp.ones((5, 4))
  labels = jnp.full((2, 3), IGNORE, jnp.int32)
  loss = lambda x, w: tied_cross_entropy(
    x, w, jnp.zeros(5), labels, backend="chunked", chunk=2
  )[0].sum()
  value, grads = jax.value_and_grad(loss, (0, 1))(x, words)
  assert value == 0
  assert not any(np.any(g) for g in grads)


def test_logits_are_never_held(caplog):
  """Compiled temporaries of 2,048 positions: under half of their logits."""
  target._log.cache_clear()
  words, width, rows = 30522, 32, 2048
  shape = jax.ShapeDtypeStruct
  given = (
    shape((rows, width), jnp.float32),
    shape((words, width), jnp.float32),
    shape((words,), jnp.float32),
    shape((rows,), jnp.int32),
  )

  def temporaries(backend):
    loss = lambda x, w, b, y: tied_cross_entropy(x, w, b, y, backend=backend)[
      0
    ].sum()
    step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given).compile()
    return step.memory_analysis().temp_size_in_bytes

  held = rows * words * 4
  with caplog.at_level(logging.INFO, logger=api.__name__):
    assert temporaries("auto") < 0.9 * held < temporaries("dense")
  assert "caption cross-entropy: chunked (logits of 238.5 MiB" in caplog.text


def test_errors_name_the_values():
  x, words, bias = jnp.ones((6, 4)), jnp.ones((5, 4)), jnp.zeros(5)
  labels = jnp.zeros(6, jnp.int32)
  with pytest.raises(ValueError, match="unknown cross-entropy"):
    tied_cross_entropy(x, words, bias, labels, backend="fast")
  with pytest.raises(NotImplementedError, match="do not divide over 4"):
    tied_cross_entropy(
      x, words, bias, labels, backend="chunked", partition=rows_over(4)
    )
