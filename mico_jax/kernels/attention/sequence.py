"""Attention with the tokens of a row split over devices (context parallelism).

Every device keeps its share of the queries and gathers the keys and values of
its rows over the sequence axes of the mesh, in the dtype of the inputs; the
gradient is a reduce-scatter. A device thus holds 2 S H gathered numbers per
head beside its share of everything else, and the attention backend runs as on
one device: all keys, a share of the queries. Lengths that the number of devices
does not divide are padded here, and the padding is hidden from every query.

Source: Llama 3, arXiv:2407.21783, section 3.3.2 (keys and values gathered).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mico_jax.kernels import target
from mico_jax.kernels.attention.rules import Rules


def size(machine: target.Target) -> int:
  """Number of devices that share the tokens of a row; 1 inside a shard_map."""
  if jax.sharding.get_abstract_mesh().manual_axes:
    return 1
  return machine.parts(machine.sequence_axes)


def refusal(
  machine: target.Target,
  *,
  batch: int,
  num_heads: int,
  num_keys: int,
  masked_rows: str,
  drops: bool,
) -> str | None:
  """The reason why tokens cannot be split, or None.

  Args:
    machine: target with a mesh.
    batch: B.
    num_heads: N.
    num_keys: S.
    masked_rows: see `mico_jax.kernels.attention.attention`.
    drops: whether attention weights are dropped.
  """
  rows = machine.parts(machine.batch_axes)
  heads = machine.parts(machine.head_axes)
  if batch % rows or num_heads % heads:
    return (
      f"{batch} rows and {num_heads} heads do not divide over {rows} x {heads} "
      "devices"
    )
  if drops:
    return "dropout of weights is drawn for whole rows"
  parts = machine.parts(machine.sequence_axes)
  if masked_rows == "released" and num_keys % parts:
    # Masked keys keep some weight there, so padding would count.
    return (
      f"{num_keys} keys do not divide over {parts} devices, and "
      "masked_rows='released' does not hide padding"
    )
  return None


def _padded(x: Any, axis: int, length: int, *, broadcast: bool = False) -> Any:
  """Pads an axis of an array, or of None, with zeros up to a length.

  Args:
    x: array or None.
    axis: to pad.
    length: after padding.
    broadcast: leave an axis of size 1 as it is.
  """
  if x is None or x.shape[axis] == length or (broadcast and x.shape[axis] == 1):
    return x
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, length - x.shape[axis])
  return jnp.pad(x, widths)


def _padded_rules(
  rules: Rules, sizes: tuple[int, int, int], lengths: tuple[int, int]
) -> Rules:
  """Rules for padded queries and keys; padded keys are hidden.

  Args:
    rules: of B rows, L queries and S keys.
    sizes: (B, L, S).
    lengths: numbers of queries and keys after padding.
  """
  batch, num_queries, num_keys = sizes
  if lengths == (num_queries, num_keys):
    return rules
  kv_lengths = rules.kv_lengths
  if kv_lengths is None and lengths[1] != num_keys:
    kv_lengths = jnp.full((batch,), num_keys, jnp.int32)
  return dataclasses.replace(
    rules,
    mask=_padded_scores(rules.mask, lengths),
    kv_lengths=kv_lengths,
    query_segments=_padded(rules.query_segments, 1, lengths[0]),
    kv_segments=_padded(rules.kv_segments, 1, lengths[1]),
  )


def _padded_scores(x: Any, lengths: tuple[int, int]) -> Any:
  """Pads [B N L S] or None; axes of size 1 broadcast."""
  x = _padded(x, 2, lengths[0], broadcast=True)
  return _padded(x, 3, lengths[1], broadcast=True)


def _score_spec(
  x: Array | None, machine: target.Target, query_axes: tuple[str, ...] | None
) -> PartitionSpec | None:
  """Partition of a mask or bias [#B #N #L S]; axes of size 1 are copied."""
  if x is None:
    return None
  axes = (machine.batch_axes or None, machine.head_axes or None, query_axes)
  sizes = x.shape[:3]
  return PartitionSpec(
    *(
      name if size > 1 else None for name, size in zip(axes, sizes, strict=True)
    )
  )


def _rule_specs(
  rules: Rules, machine: target.Target, query_axes: tuple[str, ...] | None
) -> dict[str, Any]:
  """Partition of each array of the rules that is set."""
  rows, prefix = machine.batch_axes or None, rules.prefix_lengths
  whole = prefix is None or prefix.shape[0] == 1
  specs = {
    "mask": _score_spec(rules.mask, machine, query_axes),
    "kv_lengths": PartitionSpec(rows),
    "prefix_lengths": PartitionSpec(None if whole else rows),
    "query_segments": PartitionSpec(rows, query_axes),
    "kv_segments": PartitionSpec(rows),
  }
  return {k: v for k, v in specs.items() if getattr(rules, k) is not None}


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
    run: attention on one device, called with q, k, v, rules, bias and options.
    q: queries.
    k: keys.
    v: values.
    machine: target with the mesh, for which `refusal` is None.
    rules: of whole rows.
    bias: see `mico_jax.kernels.attention.attention`.
    **options: passed on to `run`.
  """
  axes, parts = machine.sequence_axes, size(machine)
  batch, num_queries = q.shape[:2]
  num_keys = k.shape[1]
  # Too few queries to share: every device computes all of them.
  shares = num_queries >= parts
  query_axes = axes if shares else None
  rows = -(-num_queries // parts) if shares else num_queries
  lengths = (rows * parts if shares else rows, -(-num_keys // parts) * parts)
  rules = _padded_rules(rules, (batch, num_queries, num_keys), lengths)
  bias = _padded_scores(bias, lengths)
  q = _padded(q, 1, lengths[0])
  k, v = (_padded(x, 1, lengths[1]) for x in (k, v))
  rule_specs = _rule_specs(rules, machine, query_axes)
  rule_arrays = {name: getattr(rules, name) for name in rule_specs}

  def local(q: Array, k: Array, v: Array, arrays: Any, bias: Any) -> Array:
    here = Rules(**arrays, causal=rules.causal)
    k, v = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in (k, v))
    if rules.causal and shares:
      first = jax.lax.axis_index(axes) * rows
      here = dataclasses.replace(here, first_query=first)
    return run(q, k, v, rules=here, bias=bias, **options)

  over_rows, over_heads = machine.batch_axes or None, machine.head_axes or None
  queries = PartitionSpec(over_rows, query_axes, over_heads)
  keys = PartitionSpec(over_rows, axes, over_heads)
  bias_spec = _score_spec(bias, machine, query_axes)
  out = jax.shard_map(
    local,
    mesh=machine.mesh,
    in_specs=(queries, keys, keys, rule_specs, bias_spec),
    out_specs=queries,
    check_vma=False,
  )(q, k, v, rule_arrays, bias)
  return out[:, :num_queries]
