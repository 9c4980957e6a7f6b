"""Cross-entropy of hidden states under a tied decoder, without storing logits.

Only some positions of a masked text are scored, and the logits of a whole
vocabulary are the largest array of a captioning step. So the scored positions
are sorted to the front, and only they are decoded, a block at a time; the
logits of a block are dropped and recomputed for the gradient. The number of
blocks follows from the number of scored positions of the device, so padding
costs nothing. Rows stay on their device; the gradients of table and bias are
summed over devices once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.dtypes import accumulation_dtype


@dataclass(frozen=True)
class Form:
  """Static arguments of the loss; hashable.

  Attributes:
    label_smoothing: target mass moved from the label to the whole vocabulary.
    ignore: label of positions that are not scored.
    chunk: positions decoded at a time.
    precision: JAX precision of the products; None: the default.
    partition: sharding of the positions; None: one device.
  """

  label_smoothing: float
  ignore: int
  chunk: int
  precision: str | None
  partition: BatchSharding | None


def logits(
  x: Float[Array, "*B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  precision: str | None = None,
) -> Float[Array, "*B V"]:
  """Logits of every word, in at least float32."""
  dtype = accumulation_dtype(x.dtype)
  product = jnp.einsum(
    "...w,vw->...v",
    x,
    words.astype(x.dtype),
    preferred_element_type=dtype,
    precision=precision,
  )
  return product + bias.astype(dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def _order(
  form: Form, labels: Int[Array, " B"]
) -> tuple[Int[Array, " C"], Int[Array, ""]]:
  """Positions, scored ones first, padded to whole blocks; number of blocks.

  Padding is one past the last position: reads clip, writes drop.
  """
  total = labels.shape[0]
  scored = labels != form.ignore
  order = jnp.argsort(~scored, stable=True).astype(jnp.int32)
  count = scored.sum().astype(jnp.int32)
  places = jnp.arange(total, dtype=jnp.int32)
  order = jnp.where(places < count, order, jnp.full_like(order, total))
  order = jnp.pad(order, (0, -total % form.chunk), constant_values=total)
  return order, (count + form.chunk - 1) // form.chunk


def _block(
  form: Form, order: Int[Array, " C"], number: Int[Array, ""], *arrays: Array
) -> tuple[Array, ...]:
  """Positions of a block, and the rows of `arrays` at these positions."""
  at = jax.lax.dynamic_slice_in_dim(order, number * form.chunk, form.chunk)
  return at, *(jnp.take(x, at, axis=0, mode="clip") for x in arrays)


def _local_forward(
  form: Form,
  x: Float[Array, "B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  labels: Int[Array, " B"],
) -> tuple[Float[Array, " B"], Float[Array, " B"], Bool[Array, " B"]]:
  """Loss, log-normaliser, and whether the best word is the label."""
  order, blocks = _order(form, labels)
  dtype = accumulation_dtype(x.dtype)

  def body(number: Array, carry: Any) -> Any:
    values, normalisers, hits = carry
    at, rows, wanted = _block(form, order, number, x, labels)
    score = logits(rows, words, bias, form.precision)
    normaliser = jax.nn.logsumexp(score, axis=1)
    index = jnp.maximum(wanted, 0)[:, None]
    chosen = jnp.take_along_axis(score, index, axis=1)[:, 0]
    value = normaliser - chosen
    if form.label_smoothing:
      uniform = normaliser - score.mean(axis=1)
      value = value + form.label_smoothing * (uniform - value)
    hit = jnp.argmax(score, axis=1).astype(wanted.dtype) == wanted
    put = lambda whole, part: whole.at[at].set(part, mode="drop")
    return put(values, value), put(normalisers, normaliser), put(hits, hit)

  zero = jnp.zeros(labels.shape, dtype)
  start = (zero, zero, jnp.zeros(labels.shape, bool))
  return jax.lax.fori_loop(0, blocks, body, start)


def _local_backward(
  form: Form,
  x: Float[Array, "B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  labels: Int[Array, " B"],
  normaliser: Float[Array, " B"],
  cotangent: Float[Array, " B"],
) -> tuple[Float[Array, "B W"], Float[Array, "V W"], Float[Array, " V"]]:
  """Gradients of hidden states, table and bias."""
  order, blocks = _order(form, labels)
  dtype = accumulation_dtype(x.dtype)
  product = functools.partial(
    jnp.einsum, preferred_element_type=dtype, precision=form.precision
  )

  def body(number: Array, carry: Any) -> Any:
    x_grad, words_grad, bias_grad = carry
    at, rows, wanted, norm, weight = _block(
      form, order, number, x, labels, normaliser, cotangent
    )
    live = at < labels.shape[0]
    weight = jnp.where(live, weight, jnp.zeros_like(weight))
    score = logits(rows, words, bias, form.precision)
    probability = jnp.exp(score - norm[:, None])
    index = jnp.maximum(wanted, 0)
    target = jax.nn.one_hot(index, words.shape[0], dtype=dtype)
    e = form.label_smoothing
    error = probability - (1 - e) * target - e / words.shape[0]
    error = jnp.where(live[:, None], error, jnp.zeros_like(error))
    error = (weight[:, None] * error).astype(x.dtype)
    back = product("bv,vw->bw", error, words.astype(x.dtype))
    return (
      x_grad.at[at].set(back.astype(x.dtype), mode="drop"),
      words_grad + product("bv,bw->vw", error, rows),
      bias_grad + error.astype(dtype).sum(axis=0),
    )

  start = (
    jnp.zeros_like(x),
    jnp.zeros(words.shape, dtype),
    jnp.zeros(bias.shape, dtype),
  )
  x_grad, words_grad, bias_grad = jax.lax.fori_loop(0, blocks, body, start)
  if form.partition is not None:
    axes = form.partition.axes
    words_grad, bias_grad = jax.lax.psum((words_grad, bias_grad), axes)
  return x_grad, words_grad, bias_grad


def _specs(form: Form, *rows: bool) -> tuple[PartitionSpec, ...]:
  assert form.partition is not None
  split = form.partition.spec()
  return tuple(split if r else PartitionSpec() for r in rows)


def _forward(
  form: Form,
  x: Float[Array, "B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  labels: Int[Array, " B"],
) -> tuple[Float[Array, " B"], Float[Array, " B"], Bool[Array, " B"]]:
  run: Any = functools.partial(_local_forward, form)
  if form.partition is not None:
    run = form.partition.local(
      run, _specs(form, True, False, False, True), form.partition.spec()
    )
  return run(x, words, bias, labels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss(
  form: Form,
  x: Float[Array, "B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  labels: Int[Array, " B"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
  """See `mico_jax.kernels.cross_entropy.tied_cross_entropy`."""
  values, _, hits = _forward(form, x, words, bias, labels)
  return values, hits


def _loss_forward(form: Form, *arrays: Array) -> Any:
  values, normaliser, hits = _forward(form, *arrays)
  return (values, hits), (*arrays, normaliser)


def _loss_backward(form: Form, saved: Any, cotangents: Any) -> Any:
  _, words, bias, _, _ = saved
  run: Any = functools.partial(_local_backward, form)
  if form.partition is not None:
    run = form.partition.local(
      run,
      _specs(form, True, False, False, True, True, True),
      _specs(form, True, False, False),
    )
  x_grad, words_grad, bias_grad = run(*saved, cotangents[0])
  return (
    x_grad,
    words_grad.astype(words.dtype),
    bias_grad.astype(bias.dtype),
    None,
  )


loss.defvjp(_loss_forward, _loss_backward)
