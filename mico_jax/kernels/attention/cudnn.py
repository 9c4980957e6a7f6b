"""Attention by cuDNN's fused kernel, through `jax.nn.dot_product_attention`.

The score matrix is never stored. Not supported: other platforms, GPUs below
compute capability 8.0, float32, attention dropout keyed by row, an additive
bias, and `masked_rows="released"`. Arrays are padded only where cuDNN needs it:
head sizes that are no multiple of 8, and odd lengths (every ViT with a class
token) under a dense mask or where a gradient is taken.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from mico_jax.kernels import target
from mico_jax.kernels.attention.rules import Rules


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  rules: Rules,
  bias: Float[Array, "#B #N L S"] | None = None,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`.

  Raises:
    NotImplementedError: for what cuDNN does not support, with the reason.
  """
  machine = target.current()
  if machine.platform != "gpu":
    raise NotImplementedError(f"platform is {machine.platform}, not gpu")
  if 0.0 < machine.capability < 8.0:
    raise NotImplementedError(
      f"compute capability {machine.capability}, below 8.0"
    )
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"dtype is {q.dtype}, not bfloat16 or float16")
  if dropout_rate and row_keys is not None:
    raise NotImplementedError("attention dropout keyed by row")
  if bias is not None:
    # Its gradient exists in cuDNN for even lengths only; Swin has 49 tokens.
    raise NotImplementedError("additive bias")
  if masked_rows != "zero":
    raise NotImplementedError(f"masked_rows={masked_rows!r}")
  if q.shape[-1] > 128:
    raise NotImplementedError(f"head dim {q.shape[-1]}, above 128")
  simple = rules.mask is None and rules.prefix_lengths is None
  if simple and rules.kv_segments is None and rules.first_query is None:
    return _by_lengths(q, k, v, rules, scale)
  return _by_mask(q, k, v, rules, scale)


def _attend(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  scale: float,
  **options: Any,
) -> Float[Array, "B L N H"]:
  """Calls the kernel; pads head sizes to multiples of 8."""
  head_dim = q.shape[-1]
  if missing := -head_dim % 8:
    widths = ((0, 0), (0, 0), (0, 0), (0, missing))
    q, k, v = (jnp.pad(x, widths) for x in (q, k, v))
  try:
    out = jax.nn.dot_product_attention(
      q, k, v, scale=scale, implementation="cudnn", **options
    )
  except RuntimeError as error:
    if "cuDNN is not detected" not in str(error):
      raise
    raise NotImplementedError("JAX found no cuDNN") from error
  return out[..., :head_dim]


def _by_lengths(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  rules: Rules,
  scale: float,
) -> Float[Array, "B L N H"]:
  """Attention under lengths and causal order, which cuDNN supports."""
  lengths = rules.kv_lengths
  if lengths is not None:
    lengths = lengths.astype(jnp.int32)
  options = (scale, rules.causal)
  if q.shape[1] % 2 or k.shape[1] % 2:
    return _odd(options, (q, k, v), lengths)
  return _within(options, (q, k, v), lengths, q.shape[1])


def _within(
  options: tuple[float, bool],
  arrays: tuple[Float[Array, "B _ N H"], ...],
  lengths: Int[Array, " B"] | None,
  num_queries: int,
) -> Float[Array, "B L N H"]:
  """Attention of the first `num_queries` queries to the first `lengths` keys.

  Args:
    options: scale, whether in causal order.
    arrays: q, k and v.
    lengths: numbers of keys [B]; None: all keys and queries.
    num_queries: number of queries that count if there are lengths.
  """
  q, k, v = arrays
  scale, causal = options
  if lengths is None:
    return _attend(q, k, v, scale, is_causal=causal)
  # A row without keys attends to the first one and is zeroed below, so that
  # neither the kernel nor its gradient gives NaN.
  out = _attend(
    q,
    k,
    v,
    scale,
    is_causal=causal,
    key_value_seq_lengths=jnp.maximum(lengths, 1),
    query_seq_lengths=jnp.full_like(lengths, num_queries),
  )
  seen = (lengths > 0)[:, None, None, None]
  return jnp.where(seen, out, jnp.zeros((), out.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _odd(
  options: tuple[float, bool],
  arrays: tuple[Float[Array, "B _ N H"], ...],
  lengths: Int[Array, " B"] | None,
) -> Float[Array, "B L N H"]:
  """Attention of odd lengths, without padding unless a gradient is taken.

  JAX 0.10 refuses the gradient of all odd lengths, although cuDNN lacks only
  that with a bias.
  """
  return _within(options, arrays, lengths, arrays[0].shape[1])


def _odd_forward(
  options: tuple[float, bool],
  arrays: tuple[Float[Array, "B _ N H"], ...],
  lengths: Int[Array, " B"] | None,
) -> tuple[Float[Array, "B L N H"], Any]:
  """Pads to even lengths; the padding is excluded by lengths."""
  num_queries, num_keys = arrays[0].shape[1], arrays[1].shape[1]
  if lengths is None:
    lengths = jnp.full(arrays[0].shape[:1], num_keys, jnp.int32)

  def even(*arrays: Array) -> Array:
    filled = tuple(
      jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in arrays
    )
    return _within(options, filled, lengths, num_queries)[:, :num_queries]

  return jax.vjp(even, *arrays)


def _odd_backward(
  options: tuple[float, bool], backward: Any, grad: Float[Array, "B L N H"]
) -> tuple[Any, None]:
  del options
  return backward(grad), None


_odd.defvjp(_odd_forward, _odd_backward)


def _by_mask(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  rules: Rules,
  scale: float,
) -> Float[Array, "B L N H"]:
  """Attention under a dense mask, whose gradient needs even lengths."""
  num_queries, num_keys = q.shape[1], k.shape[1]
  mask = rules.dense(num_queries, num_keys)
  assert mask is not None  # else `_by_lengths`
  mask = jnp.broadcast_to(mask, (*mask.shape[:2], num_queries, num_keys))
  odd_queries, odd_keys = num_queries % 2, num_keys % 2
  if odd_queries or odd_keys:
    rows, columns = (0, odd_queries), (0, odd_keys)
    mask = jnp.pad(mask, ((0, 0), (0, 0), rows, columns))
    q = jnp.pad(q, ((0, 0), rows, (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), columns, (0, 0), (0, 0))) for x in (k, v))
  row_seen = jnp.any(mask, axis=-1)
  mask = mask | ~row_seen[..., None]
  out = _attend(q, k, v, scale, mask=mask)
  seen = jnp.swapaxes(row_seen, 1, 2)[..., None]
  out = jnp.where(seen, out, jnp.zeros((), out.dtype))
  return out[:, :num_queries]
