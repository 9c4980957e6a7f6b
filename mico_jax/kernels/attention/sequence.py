"""Attention with the tokens of a row split over devices (context parallelism).

Every device keeps its own queries and gathers the keys and values of its rows
over the sequence axes of the mesh, in the dtype of the inputs; the gradient of
that is a reduce-scatter. So a device holds 2 S H numbers per head of gathered
keys and values beside its share of everything else, and the backend that the
door picks sees one device: whole keys, a share of the queries. Lengths that do
not divide are filled up here, outside of the kernels, and the filling is
hidden from every query.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mico_jax.kernels import target
from mico_jax.kernels.attention.rules import Rules


def size(machine: target.Target) -> int:
  """Devices that share the tokens of a row, as seen from here."""
  if machine.mesh is None or jax.sharding.get_abstract_mesh().manual_axes:
    return 1
  return math.prod(machine.mesh.shape[name] for name in machine.sequence_axes)


def refusal(
  machine: target.Target,
  *,
  batch: int,
  num_heads: int,
  num_keys: int,
  masked_rows: str,
  drops: bool,
) -> str | None:
  """Why tokens cannot be split here, or None.

  Args:
    machine: with a mesh.
    batch: rows.
    num_heads: N.
    num_keys: S.
    masked_rows: what a query gives that may look nowhere.
    drops: whether attention weights are dropped.
  """
  if machine.mesh is None:
    return "no mesh is known"
  shape = machine.mesh.shape
  rows = math.prod(shape[name] for name in machine.batch_axes)
  heads = math.prod(shape[name] for name in machine.head_axes)
  if batch % rows or num_heads % heads:
    return (
      f"{batch} rows and {num_heads} heads do not divide over {rows} x {heads} "
      "devices"
    )
  if drops:
    return "dropout of weights is drawn for whole rows"
  parts = math.prod(shape[name] for name in machine.sequence_axes)
  if masked_rows == "released" and num_keys % parts:
    # Masked keys are not out of reach there, so filling would be seen.
    return (
      f"{num_keys} keys do not divide over {parts} devices, and "
      "masked_rows='released' hides no filling"
    )
  return None


def _filled(x: Any, axis: int, length: int, *, stays: int = 1) -> Any:
  """Zeros behind axis `axis`, up to a length; None and a size `stays` stay."""
  if x is None or x.shape[axis] in (stays, length):
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, widths)


def _filled_rules(
  rules: Rules, sizes: tuple[int, int, int], lengths: tuple[int, int]
) -> Rules:
  """Rules for more queries and keys, the further ones hidden.

  Args:
    rules: of B rows, L queries and S keys.
    sizes: (B, L, S).
    lengths: queries and keys after filling up.
  """
  batch, num_queries, num_keys = sizes
  if lengths == (num_queries, num_keys):
    return rules
  kv_lengths = rules.kv_lengths
  if kv_lengths is None and lengths[1] != num_keys:
    kv_lengths = jnp.full((batch,), num_keys, jnp.int32)
  return dataclasses.replace(
    rules,
    mask=_filled(_filled(rules.mask, 2, lengths[0]), 3, lengths[1]),
    kv_lengths=kv_lengths,
    query_segments=_filled(rules.query_segments, 1, lengths[0], stays=0),
    kv_segments=_filled(rules.kv_segments, 1, lengths[1], stays=0),
  )


def attention(
  run: Callable[..., Array],
  q: Float[Array, "B L N H"],
  k: Float[Array, "B S N H"],
  v: Float[Array, "B S N H"],
  *,
  machine: target.Target,
  rules: Rules,
  bias: Float[Array, "#B #N L S"] | None,
  **options: Any,
) -> Float[Array, "B L N H"]:
  """Softmax attention; see `mico_jax.kernels.attention.attention`.

  Args:
    run: attention of one device: q, k, v, rules, bias and options.
    q: queries.
    k: keys.
    v: values.
    machine: with the mesh; `refusal` gave None.
    rules: of whole rows.
    bias: likewise.
    **options: passed on.
  """
  axes, parts = machine.sequence_axes, size(machine)
  batch, num_queries = q.shape[:2]
  num_keys = k.shape[1]
  # Too few queries to share: every device computes all of them.
  shares = num_queries >= parts
  rows = -(-num_queries // parts) if shares else num_queries
  lengths = (
    rows * parts if shares else rows,
    -(-num_keys // parts) * parts,
  )
  rules = _filled_rules(rules, (batch, num_queries, num_keys), lengths)
  bias = _filled(_filled(bias, 2, lengths[0]), 3, lengths[1])
  q = _filled(q, 1, lengths[0], stays=0)
  k, v = (_filled(x, 1, lengths[1], stays=0) for x in (k, v))

  spec = PartitionSpec
  over_rows, over_heads = machine.batch_axes or None, machine.head_axes or None
  queries = axes if shares else None

  def like_scores(x: Array | None) -> Any:
    if x is None:
      return None
    return spec(
      over_rows if x.shape[0] > 1 else None,
      over_heads if x.shape[1] > 1 else None,
      queries if x.shape[2] > 1 else None,
    )

  prefix = rules.prefix_lengths
  specs = {
    "mask": like_scores(rules.mask),
    "kv_lengths": spec(over_rows),
    "prefix_lengths": spec(
      None if prefix is None or prefix.shape[0] == 1 else over_rows
    ),
    "query_segments": spec(over_rows, queries),
    "kv_segments": spec(over_rows),
  }
  given = {name: getattr(rules, name) for name in specs}
  given = {name: x for name, x in given.items() if x is not None}

  def local(q: Array, k: Array, v: Array, given: Any, bias: Any) -> Array:
    here = Rules(**given, causal=rules.causal)
    k, v = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (k, v))
    if rules.causal and shares:
      first = jax.lax.axis_index(axes) * rows
      here = dataclasses.replace(here, first_query=first)
    return run(q, k, v, rules=here, bias=bias, **options)

  of_queries = spec(over_rows, queries, over_heads)
  of_keys = spec(over_rows, axes, over_heads)
  out = jax.shard_map(
    local,
    mesh=machine.mesh,
    in_specs=(
      of_queries,
      of_keys,
      of_keys,
      {name: specs[name] for name in given},
      like_scores(bias),
    ),
    out_specs=of_queries,
    check_vma=False,
  )(q, k, v, given, bias)
  return out[:, :num_queries]
