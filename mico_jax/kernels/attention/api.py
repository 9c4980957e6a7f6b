"""The one door to attention: picks a backend, says which and why.

The backend is, in this order: the environment variable MICO_JAX_ATTENTION, the
caller's name, or, for "auto", the first of `AUTO_ORDER` that accepts platform,
shape and dtype; on a TPU a table of static cycles says which of them comes
first (`table.py`). A backend says "I cannot" by
NotImplementedError; its reason is logged once. A backend that was named and
cannot is an error, not a fallback.

Masks are given as what they mean (`causal`, `prefix_lengths`, `kv_lengths`,
segments) where possible: a kernel takes these `Rules` as they are, the other
backends make one boolean mask of them.

`packed_attention` takes queries, keys and values as one array, as a fused
projection leaves them. On a TPU the caller should fold `folded_scale` into the
projection of the queries; then no kernel multiplies by it.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from mico_jax.kernels import target
from mico_jax.kernels.attention import (
  cudnn,
  pallas_tpu,
  reference,
  sequence,
  table,
  xla,
)
from mico_jax.kernels.attention.rules import Rules

BACKENDS: dict[str, Callable[..., Array]] = {
  "pallas_tpu": pallas_tpu.attention,
  "cudnn": cudnn.attention,
  "xla": xla.attention,
  "reference": reference.attention,
}
AUTO_ORDER = ("pallas_tpu", "cudnn", "xla")
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
  query_segments: Int[Array, "B L"] | None = None,
  kv_segments: Int[Array, "B S"] | None = None,
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
    kv_lengths: keys at or beyond this index are hidden; 0 <= length <= S.
    causal: query i sees keys 0..i, its own included.
    prefix_lengths: with `causal`: the first so many positions see each other in
      both directions and nothing behind them.
    query_segments: a query sees the keys of its own segment only (several
      sequences in one row); integers >= 0, given with `kv_segments`.
    kv_segments: segment of each key.
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
  rules = _rules(
    (q.shape[0], q.shape[1], k.shape[1]),
    mask=mask,
    kv_lengths=kv_lengths,
    causal=causal,
    prefix_lengths=prefix_lengths,
    query_segments=query_segments,
    kv_segments=kv_segments,
  )
  options: dict[str, Any] = {
    "rules": rules,
    "bias": bias,
    "scale": q.shape[-1] ** -0.5 if scale is None else scale,
    "masked_rows": masked_rows,
    "dropout_rate": dropout_rate,
    "row_keys": row_keys,
  }
  machine = target.current()
  if sequence.size(machine) > 1:
    reason = sequence.refusal(
      machine,
      batch=q.shape[0],
      num_heads=q.shape[2],
      num_keys=k.shape[1],
      masked_rows=masked_rows,
      drops=dropout_rate > 0.0 and row_keys is not None,
    )
    if reason is None:
      run = functools.partial(_dispatch, backend)
      return sequence.attention(run, q, k, v, machine=machine, **options)
    _log_once(f"attention: tokens of a row stay together: {reason}")
  return _dispatch(backend, q, k, v, **options)


def _dispatch(backend: str, *arrays: Array, **options: Any) -> Array:
  """Runs the named backend or the first that can; logs which, once."""
  if target.current().plain:
    return reference.attention(*arrays, **options)
  backend = os.environ.get(ENVIRONMENT) or backend
  if backend != "auto":
    if backend not in BACKENDS:
      raise ValueError(
        f"unknown attention backend {backend!r}; known: auto, "
        f"{', '.join(BACKENDS)} (config.model.attention or ${ENVIRONMENT})."
      )
    out = BACKENDS[backend](*arrays, **options)
    _log_once(f"attention: {backend} (named)")
    return out
  refusals = []
  for name in _order(arrays[0].shape[1]):
    try:
      out = BACKENDS[name](*arrays, **options)
    except NotImplementedError as error:
      refusals.append(f"{name}: {error}")
      continue
    reasons = f"; not {'; not '.join(refusals)}" if refusals else ""
    _log_once(f"attention: {name}{reasons}")
    return out
  raise NotImplementedError("no attention backend: " + "; ".join(refusals))


def _order(num_queries: int) -> list[str]:
  """Backends to try; on a TPU the cheaper one comes first, where measured."""
  machine = target.current()
  first = []
  if machine.platform == "tpu":
    first = table.cheaper(machine.generation, num_queries)
  return [*first, *(name for name in AUTO_ORDER if name not in first)]


def packed_attention(
  qkv: Float[Array, "B L P"],
  *,
  num_heads: int,
  mask: Bool[Array, "#B #N #L #S"] | None = None,
  kv_lengths: Int[Array, " B"] | None = None,
  causal: bool = False,
  prefix_lengths: Int[Array, " B"] | int | None = None,
  segments: Int[Array, "B L"] | None = None,
  scale: float | None = None,
  masked_rows: str = "zero",
  dropout_rate: float = 0.0,
  row_keys: Key[Array, " B"] | None = None,
  backend: str = "auto",
) -> Float[Array, "B L D"]:
  """Self-attention from one array of queries, keys and values.

  The TPU kernel reads its heads where they lie and writes the gradient the same
  way; every other backend gets them split.

  Args:
    qkv: P = 3 N H: all heads of the queries, then of the keys, of the values.
    num_heads: N.
    mask: see `attention`, as for all that follow.
    kv_lengths: likewise.
    causal: likewise.
    prefix_lengths: likewise.
    segments: of queries and keys.
    scale: likewise.
    masked_rows: likewise.
    dropout_rate: likewise.
    row_keys: likewise.
    backend: likewise.

  Returns:
    The attended values, heads side by side: D = N H.

  Raises:
    ValueError: for shapes or names that do not fit.
    NotImplementedError: if the named backend cannot do this.
  """
  batch, length, width = qkv.shape
  if width % (3 * num_heads):
    raise ValueError(
      f"packed_attention: {width} columns are not 3 x {num_heads} heads of one "
      "size; give [B, L, 3 N H]."
    )
  head_dim = width // (3 * num_heads)
  named = os.environ.get(ENVIRONMENT) or backend
  if named == "auto":
    named = _order(length)[0]
  if target.current().plain:
    named = "reference"
  if named == "pallas_tpu" and sequence.size(target.current()) == 1:
    try:
      rules = _rules(
        (batch, length, length),
        mask=mask,
        kv_lengths=kv_lengths,
        causal=causal,
        prefix_lengths=prefix_lengths,
        query_segments=segments,
        kv_segments=segments,
      )
      out = pallas_tpu.packed_attention(
        qkv,
        num_heads=num_heads,
        rules=rules,
        scale=head_dim**-0.5 if scale is None else scale,
        masked_rows=masked_rows,
        dropout_rate=dropout_rate,
        row_keys=row_keys,
      )
    except NotImplementedError as error:
      if target.current().platform == "tpu":
        _log_once(f"attention: not packed: {error}")
    else:
      _log_once("attention: pallas_tpu, packed")
      return out
  heads = (batch, length, num_heads, head_dim)
  q, k, v = (x.reshape(heads) for x in jnp.split(qkv, 3, axis=-1))
  out = attention(
    q,
    k,
    v,
    mask=mask,
    kv_lengths=kv_lengths,
    causal=causal,
    prefix_lengths=prefix_lengths,
    query_segments=segments,
    kv_segments=segments,
    scale=scale,
    masked_rows=masked_rows,
    dropout_rate=dropout_rate,
    row_keys=row_keys,
    backend=backend,
  )
  return out.reshape(batch, length, -1)


def folded_scale(head_dim: int) -> tuple[float, float | None]:
  """A factor for the projection of queries, and the `scale` that is left.

  On a TPU the whole factor of the exponent, H ** -0.5 * log2(e), goes into the
  weights and the kernel has nothing to multiply; elsewhere nothing changes.
  """
  if target.current().platform != "tpu":
    return 1.0, None
  return head_dim**-0.5 * math.log2(math.e), math.log(2.0)


def _rules(
  sizes: tuple[Any, Any, Any],  # ints, or dimensions of an exported graph
  *,
  mask: Array | None,
  kv_lengths: Array | None,
  causal: bool,
  prefix_lengths: Array | int | None,
  query_segments: Array | None,
  kv_segments: Array | None,
) -> Rules:
  """Checks the rules and puts them together."""
  batch, num_queries, num_keys = sizes
  if mask is not None:
    _check_mask(mask, sizes)
  if prefix_lengths is not None and not causal:
    raise ValueError("attention: prefix_lengths needs causal=True.")
  if kv_lengths is not None:
    _check_lengths(kv_lengths, batch, num_keys)
  if (query_segments is None) != (kv_segments is None):
    raise ValueError("attention: give both query_segments and kv_segments.")
  for name, given, length in (
    ("query_segments", query_segments, num_queries),
    ("kv_segments", kv_segments, num_keys),
  ):
    if given is not None and given.shape != (batch, length):
      raise ValueError(
        f"attention: {name} of shape {given.shape}; expected {(batch, length)}."
      )
  if prefix_lengths is not None:
    prefix_lengths = jnp.atleast_1d(jnp.asarray(prefix_lengths))
  return Rules(
    mask,
    kv_lengths,
    prefix_lengths,
    query_segments,
    kv_segments,
    causal=causal,
  )


def _check_mask(mask: Array, sizes: tuple[Any, Any, Any]) -> None:
  wanted = (sizes[0], None, sizes[1], sizes[2])
  if mask.ndim != 4 or any(
    want is not None and have not in (1, want)
    for have, want in zip(mask.shape, wanted, strict=True)
  ):
    raise ValueError(
      f"attention: mask of shape {mask.shape}; expected [B N L S] with B, L, S "
      f"= {sizes}, each or 1."
    )


def _check_lengths(lengths: Array, batch: Any, num_keys: Any) -> None:
  """Shape always; values where they are known (not under a trace)."""
  if lengths.shape != (batch,):
    raise ValueError(
      f"attention: kv_lengths of shape {lengths.shape}; expected {(batch,)}."
    )
  if isinstance(lengths, jax.core.Tracer):
    return
  known = np.asarray(lengths)
  if known.size and (known.min() < 0 or known.max() > num_keys):
    raise ValueError(
      f"attention: kv_lengths between {known.min()} and {known.max()}; "
      f"expected 0 to {num_keys}, the number of keys."
    )


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
  if not jnp.issubdtype(q.dtype, jnp.floating) or not (
    q.dtype == k.dtype == v.dtype
  ):
    raise ValueError(
      f"attention: dtypes {q.dtype}, {k.dtype}, {v.dtype}; expected one "
      "floating-point dtype of q, k and v."
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
