"""Entry points of attention; they choose a backend and log which and why.

The backend is named by the environment variable MICO_JAX_ATTENTION or, without
it, by the caller. "auto" is the first of `AUTO_ORDER` that accepts platform,
shape and dtype; on a TPU a table of static cycles puts the cheaper one first
(`table.py`). A backend refuses by raising NotImplementedError; "auto" logs the
reason once and tries the next one, a named backend passes the error on.

Masks are best described by `causal`, `prefix_lengths`, `kv_lengths` and
segments: kernels take these `Rules` directly, the other backends combine them
into one boolean mask.

`packed_attention` takes queries, keys and values as one array, the output of a
fused projection. On a TPU the caller should fold `folded_scale` into the
projection of the queries, which saves the kernels a multiplication.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

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

_log_once = functools.partial(target.log_once, __name__)


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
    mask: true where a query attends to a key; combined with the rules below by
      "and".
    bias: added to the scaled products in the dtype of the softmax; has a
      gradient (relative positions).
    kv_lengths: keys at or beyond this index are hidden; 0 <= length <= S.
    causal: query i sees keys 0..i.
    prefix_lengths: with `causal`: number of first positions that see each
      other in both directions and nothing after them (prefix LM).
    query_segments: segment of each query, an integer >= 0; a query sees only
      keys of the same segment (packed sequences). Needs `kv_segments`.
    kv_segments: segment of each key.
    scale: factor on the products; None: H ** -0.5.
    masked_rows: result of a query that sees no key: "zero" (with zero
      gradient), or "released", which adds -10000 to masked scores as the
      official MiCo code does.
    dropout_rate: probability to drop an attention weight, in [0, 1); needs
      `row_keys`.
    row_keys: one PRNG key per row; None: no dropout.
    backend: "auto" or a name of `BACKENDS`.

  Returns:
    The attended values, in the dtype of `q`.

  Raises:
    ValueError: for shapes or names that do not fit.
    NotImplementedError: if the named backend does not support the arguments.

  Source: arXiv:1706.03762, section 3.2.
  """
  _check(q, k, v, masked_rows)
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
  return _attend(
    backend,
    (q, k, v),
    rules=rules,
    bias=bias,
    scale=q.shape[-1] ** -0.5 if scale is None else scale,
    masked_rows=masked_rows,
    dropout_rate=dropout_rate,
    row_keys=row_keys,
  )


def _attend(
  backend: str, arrays: Sequence[Array], **options: Any
) -> Float[Array, "B L N H"]:
  """Runs a backend, split over tokens where the mesh has an axis for them.

  Args:
    backend: "auto" or a name of `BACKENDS`.
    arrays: q, k, v.
    **options: the arguments that every backend takes.
  """
  machine = target.current()
  if sequence.size(machine) > 1:
    q, k, v = arrays
    reason = sequence.refusal(
      machine,
      batch=q.shape[0],
      num_heads=q.shape[2],
      num_keys=k.shape[1],
      masked_rows=options["masked_rows"],
      drops=options["dropout_rate"] > 0.0 and options["row_keys"] is not None,
    )
    if reason is None:
      run = functools.partial(_dispatch, backend)
      return sequence.attention(run, q, k, v, machine=machine, **options)
    _log_once(f"attention: tokens of a row stay together: {reason}")
  return _dispatch(backend, *arrays, **options)


def _dispatch(
  backend: str, *arrays: Array, **options: Any
) -> Float[Array, "B L N H"]:
  """Runs the named backend, or for "auto" the first that does not refuse."""
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
  """Backends in the order of "auto"; on a TPU the cheaper ones come first."""
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

  The TPU kernel reads heads from the packed array and writes a packed gradient;
  the array is split for every other backend.

  Args:
    qkv: all heads of the queries, then of the keys, then of the values:
      P = 3 N H.
    num_heads: N.
    mask: see `attention`, as for all that follow.
    kv_lengths: see `attention`.
    causal: see `attention`.
    prefix_lengths: see `attention`.
    segments: `query_segments` and `kv_segments` of `attention`.
    scale: see `attention`.
    masked_rows: see `attention`.
    dropout_rate: see `attention`.
    row_keys: see `attention`.
    backend: see `attention`.

  Returns:
    The attended values, heads side by side: D = N H.

  Raises:
    ValueError: for shapes or names that do not fit.
    NotImplementedError: if the named backend does not support the arguments.
  """
  batch, length, width = qkv.shape
  if width % (3 * num_heads):
    raise ValueError(
      f"packed_attention: {width} columns are not 3 x {num_heads} heads of one "
      "size; give [B, L, 3 N H]."
    )
  head_dim = width // (3 * num_heads)
  options: dict[str, Any] = {
    "rules": _rules(
      (batch, length, length),
      mask=mask,
      kv_lengths=kv_lengths,
      causal=causal,
      prefix_lengths=prefix_lengths,
      query_segments=segments,
      kv_segments=segments,
    ),
    "scale": head_dim**-0.5 if scale is None else scale,
    "masked_rows": masked_rows,
    "dropout_rate": dropout_rate,
    "row_keys": row_keys,
  }
  if _may_pack(backend, length):
    try:
      out = pallas_tpu.packed_attention(qkv, num_heads=num_heads, **options)
    except NotImplementedError as error:
      if target.current().platform == "tpu":
        _log_once(f"attention: not packed: {error}")
    else:
      _log_once("attention: pallas_tpu, packed")
      return out
  heads = (batch, length, num_heads, head_dim)
  q, k, v = (x.reshape(heads) for x in jnp.split(qkv, 3, axis=-1))
  _check(q, k, v, masked_rows)
  out = _attend(backend, (q, k, v), bias=None, **options)
  return out.reshape(batch, length, -1)


def _may_pack(backend: str, length: int) -> bool:
  """Whether `packed_attention` tries the TPU kernel first."""
  machine = target.current()
  name = os.environ.get(ENVIRONMENT) or backend
  if name == "auto":
    name = _order(length)[0]
  return (
    name == "pallas_tpu" and not machine.plain and sequence.size(machine) == 1
  )


def folded_scale(head_dim: int) -> tuple[float, float | None]:
  """Factor to fold into the projection of queries, and the remaining `scale`.

  On a TPU the whole factor of the exponent, H ** -0.5 * log2(e), is folded into
  the weights, so the kernel multiplies by nothing; elsewhere it is (1, None).
  """
  if target.current().platform != "tpu":
    return 1.0, None
  return head_dim**-0.5 * math.log2(math.e), math.log(2.0)


def _rules(
  sizes: tuple[Any, Any, Any],  # ints, or dimensions of an exported graph
  *,
  mask: Shaped[Array, "..."] | None,
  kv_lengths: Shaped[Array, "..."] | None,
  causal: bool,
  prefix_lengths: Int[Array, "*B"] | int | None,
  query_segments: Shaped[Array, "..."] | None,
  kv_segments: Shaped[Array, "..."] | None,
) -> Rules:
  """Checks the rules of a call and combines them."""
  batch, num_queries, num_keys = sizes
  if mask is not None:
    _check_mask(mask, sizes)
  if prefix_lengths is not None and not causal:
    raise ValueError("attention: prefix_lengths needs causal=True.")
  if kv_lengths is not None:
    _check_lengths(kv_lengths, batch, num_keys)
  if (query_segments is None) != (kv_segments is None):
    raise ValueError("attention: give both query_segments and kv_segments.")
  for name, ids, length in (
    ("query_segments", query_segments, num_queries),
    ("kv_segments", kv_segments, num_keys),
  ):
    if ids is not None and ids.shape != (batch, length):
      raise ValueError(
        f"attention: {name} of shape {ids.shape}; expected {(batch, length)}."
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
  """Checks the shape, and outside of a trace the values."""
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
