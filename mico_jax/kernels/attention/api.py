"""The one door to attention: picks a backend, says which and why.

The backend is, in this order: the environment variable MICO_JAX_ATTENTION, the
caller's name, or, for "auto", the first of `AUTO_ORDER` that accepts platform,
shape and dtype. A backend says "I cannot" by NotImplementedError; its reason is
logged once. A backend that was named and cannot is an error, not a fallback.

Masks are given as what they mean (`causal`, `prefix_lengths`, `kv_lengths`)
where possible, so that a kernel can skip blocks; the backends of today receive
one boolean mask made from all of them.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.kernels.attention import cudnn, reference, xla

BACKENDS: dict[str, Callable[..., Array]] = {
  "cudnn": cudnn.attention,
  "xla": xla.attention,
  "reference": reference.attention,
}
AUTO_ORDER = ("cudnn", "xla")
MASKED_ROWS = ("zero", "released")
ENVIRONMENT = "MICO_JAX_ATTENTION"

_logger = logging.getLogger(__name__)


@functools.cache
def _log_once(message: str) -> None:
  _logger.info("%s", message)


def attention(
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  mask: Bool[Array, "#B #N #L #S"] | None = None,
  bias: Float[Array, "#B #N L S"] | None = None,
  kv_lengths: Int[Array, " B"] | None = None,
  causal: bool = False,
  prefix_lengths: Int[Array, " B"] | int | None = None,
  scale: float | None = None,
  masked_rows: str = "zero",
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
  backend: str = "auto",
) -> Float[Array, "B L N H"]:
  """Multi-head softmax attention; softmax in float32 (float64 for float64).

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: true where a query may look; combined with the rules below by "and".
    bias: added to the scaled products in the dtype of the softmax; has a
      gradient (relative positions).
    kv_lengths: keys at or beyond this index are hidden.
    causal: query i sees keys 0..i, its own included.
    prefix_lengths: with `causal`: the first so many positions see each other in
      both directions and nothing behind them.
    scale: factor on the products; None: H ** -0.5.
    masked_rows: what a query gives that may look nowhere: "zero" (and zero
      gradient) or "released" (-10000 is added to masked scores).
    dropout_rate: of attention weights, in [0, 1); needs `row_keys`.
    row_keys: one random key per row; None: no dropout.
    backend: "auto" or a name of `BACKENDS`.

  Returns:
    The attended values, in the dtype of `q`.

  Raises:
    ValueError: for shapes or names that do not fit.
    NotImplementedError: if the named backend cannot do this.
  """
  _check(q, k, v, masked_rows, prefix_lengths, causal)
  _check_bias(bias, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))
  mask = combine_masks(
    mask,
    q.shape[1],
    k.shape[1],
    kv_lengths=kv_lengths,
    causal=causal,
    prefix_lengths=prefix_lengths,
  )
  options = {
    "mask": mask,
    "bias": bias,
    "scale": q.shape[-1] ** -0.5 if scale is None else scale,
    "masked_rows": masked_rows,
    "dropout_rate": dropout_rate,
    "row_keys": row_keys,
  }
  backend = os.environ.get(ENVIRONMENT) or backend
  if backend != "auto":
    if backend not in BACKENDS:
      raise ValueError(
        f"unknown attention backend {backend!r}; known: auto, "
        f"{', '.join(BACKENDS)} (config.model.attention or ${ENVIRONMENT})."
      )
    out = BACKENDS[backend](q, k, v, **options)
    _log_once(f"attention: {backend} (named)")
    return out
  refusals = []
  for name in AUTO_ORDER:
    try:
      out = BACKENDS[name](q, k, v, **options)
    except NotImplementedError as error:
      refusals.append(f"{name}: {error}")
      continue
    reasons = f"; not {'; not '.join(refusals)}" if refusals else ""
    _log_once(f"attention: {name}{reasons}")
    return out
  raise NotImplementedError("no attention backend: " + "; ".join(refusals))


def combine_masks(
  mask: Bool[Array, "#B #N #L #S"] | None,
  num_queries: int,
  num_keys: int,
  *,
  kv_lengths: Int[Array, " B"] | None = None,
  causal: bool = False,
  prefix_lengths: Int[Array, " B"] | int | None = None,
) -> Bool[Array, "#B #N #L #S"] | None:
  """One boolean mask out of all rules; None if nothing is hidden."""
  masks = [] if mask is None else [mask]
  keys = jnp.arange(num_keys)[None, None, None, :]
  if kv_lengths is not None:
    masks.append(keys < kv_lengths[:, None, None, None])
  if causal:
    last_seen = jnp.arange(num_queries)[None, None, :, None]
    if prefix_lengths is not None:
      lengths = jnp.atleast_1d(jnp.asarray(prefix_lengths))
      last_seen = jnp.maximum(last_seen, lengths[:, None, None, None] - 1)
    masks.append(keys <= last_seen)
  return functools.reduce(jnp.logical_and, masks) if masks else None


def _check(
  q: Array,
  k: Array,
  v: Array,
  masked_rows: str,
  prefix_lengths: Array | int | None,
  causal: bool,
) -> None:
  if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
    raise ValueError(
      f"attention takes q [B L N H] and k, v [B S N H]; got {q.shape}, "
      f"{k.shape}, {v.shape}."
    )
  if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
    raise ValueError(
      f"attention: batch, heads and head dim of q {q.shape} and k {k.shape} "
      "differ."
    )
  if masked_rows not in MASKED_ROWS:
    raise ValueError(f"{masked_rows=} must be one of {', '.join(MASKED_ROWS)}.")
  if prefix_lengths is not None and not causal:
    raise ValueError("attention: prefix_lengths needs causal=True.")


def _check_bias(bias: Array | None, scores: tuple[Any, ...]) -> None:
  if bias is None:
    return
  fits = bias.ndim == 4 and bias.shape[2:] == scores[2:]
  if not fits or any(
    have not in (1, want)
    for have, want in zip(bias.shape[:2], scores[:2], strict=True)
  ):
    raise ValueError(
      f"attention: bias of shape {bias.shape}; expected [B N L S] = {scores}, "
      "where B and N may be 1."
    )
