"""Attention by cuDNN's fused kernel, through `jax.nn.dot_product_attention`.

The score matrix is never stored. Refuses what the kernel cannot do: other
platforms, float32, attention dropout keyed by row, an additive bias, the
additive -10000.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  mask: Bool[Array, "#B #N #L #S"] | None,
  bias: Float[Array, "#B #N L S"] | None = None,
  scale: float,
  masked_rows: str,
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`.

  Raises:
    NotImplementedError: where cuDNN cannot; dispatch tries the next backend.
  """
  if jax.default_backend() != "gpu":
    raise NotImplementedError(f"platform is {jax.default_backend()}, not gpu")
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(f"dtype is {q.dtype}, not bfloat16 or float16")
  if dropout_rate and row_keys is not None:
    raise NotImplementedError("attention dropout keyed by row")
  if bias is not None:
    # Its gradient exists in cuDNN for even lengths only; Swin has 49 tokens.
    raise NotImplementedError("additive bias")
  if masked_rows != "zero":
    raise NotImplementedError(f"masked_rows={masked_rows!r}")
  if q.shape[-1] % 8 or q.shape[-1] > 128:
    raise NotImplementedError(f"head dim {q.shape[-1]} (multiple of 8, <= 128)")
  row_seen = None
  if mask is not None:
    shape = (*mask.shape[:2], q.shape[1], k.shape[1])
    mask = jnp.broadcast_to(mask, shape)
    # A row that sees nothing gets everything here and is cleared below, so
    # that no NaN arises in the kernel or in its gradient.
    row_seen = jnp.any(mask, axis=-1)
    mask = mask | ~row_seen[..., None]
  out = jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, implementation="cudnn"
  )
  if row_seen is None:
    return out
  seen = jnp.swapaxes(row_seen, 1, 2)[..., None]
  return jnp.where(seen, out, jnp.zeros((), out.dtype))
