"""Plans of TPU attention kernels with keys resident in VMEM.

A plan follows from shape, dtype and chip. Heads stay side by side along the
lanes where they fill whole lane tiles (`Lanes`), else they are separated, which
costs a transposition outside of the kernel (`Heads`). Queries form one tile or
several. The VMEM that a kernel needs is computed here and compared with the
chip's. The backward pass needs more than the forward pass, so it may need
separate heads where the forward pass does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mico_jax.kernels import target
from mico_jax.kernels.attention import tpu_resident as resident
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_layout import Heads, Lanes, lane_groups

LOG2E = math.log2(math.e)
_ONE_TILE = 512  # most queries that form a single tile
_TILE = 256
_SCORE_TILES = 10  # float32 score tiles that are live at once, roughly
_HEAD_CHOICES = (4, 2, 1)
_FEW = 64  # most queries for which backward scores are [L, S], not [S, L]


class VmemError(NotImplementedError):
  """Raised where keys and values do not fit into VMEM."""


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """How one call runs.

  Attributes:
    forward: spec of the forward kernel.
    backward: spec of the backward kernel.
    num_heads: N of one device.
    packed: whether q, k and v are one array [B, L, 3 N H].
    vmem_limit: bytes that the compiler may use.
    machine: target with the mesh over which rows and heads are split.
  """

  forward: resident.Spec
  backward: resident.Spec
  num_heads: int
  packed: bool
  vmem_limit: int
  machine: target.Target

  @property
  def lanes(self) -> bool:
    """Whether the arrays hold heads side by side."""
    return isinstance(self.forward.layout, Lanes)

  @property
  def mixed(self) -> bool:
    """Whether only the backward pass separates heads."""
    return self.lanes and isinstance(self.backward.layout, Heads)

  def groups(self, spec: resident.Spec) -> int:
    """Number of groups of heads of the forward or backward kernel."""
    return self.num_heads // spec.layout.num_heads


def _block_bytes(rows: int, lanes: int, itemsize: int) -> int:
  return -(-rows // 16) * 16 * resident.lane_tiles(lanes) * itemsize


def vmem_bytes(spec: resident.Spec, itemsize: int, *, backward: bool) -> int:
  """Approximate VMEM of a kernel in bytes.

  Counts blocks and rules twice (double buffering), scratch and scores.

  Args:
    spec: of the kernel.
    itemsize: bytes per element of the inputs.
    backward: whether it is the backward kernel.
  """
  layout = spec.layout
  heads = layout.num_heads
  if isinstance(layout, Lanes):
    lanes, copies = heads * layout.head_dim, 1
  else:
    lanes, copies = layout.head_dim, heads
  queries = _block_bytes(spec.rows, lanes, itemsize) * copies
  keys = _block_bytes(spec.num_keys, lanes, itemsize) * copies
  scores = _block_bytes(spec.rows, spec.num_keys, 4)
  total = (_SCORE_TILES + 2 * (spec.dropout > 0.0)) * scores
  if backward:
    total += 2 * (3 * queries + 4 * keys)
    if spec.tiles > 1:
      total += 2 * heads * _block_bytes(spec.num_keys, layout.width, 4)
  else:
    total += 2 * (2 * queries + 2 * keys)
  transposed = backward and not spec.upright
  return total + 2 * _rule_bytes(spec, transposed=transposed)


def _rule_bytes(spec: resident.Spec, *, transposed: bool) -> int:
  """VMEM of the ids; those in a column are padded to a tile of lanes."""
  total = _block_bytes(1, 1, 4) if spec.prefix else 0
  for has_ids, size, column in (
    (spec.key_ids, spec.num_keys, transposed),
    (spec.query_ids, spec.rows, not transposed),
  ):
    if has_ids:
      total += _block_bytes(*((size, 1) if column else (1, size)), 4)
  return total


def _tile_rows(num_queries: int, *, backward: bool) -> int:
  if num_queries <= _ONE_TILE:
    return num_queries
  if backward:  # queries lie along the lanes of the scores
    sizes = (_TILE, 3 * _TILE // 2)
    return min(sizes, key=lambda rows: (-(-num_queries // rows) * rows, rows))
  tiles = max(round(num_queries / _TILE), 1)
  rows = math.ceil(num_queries / tiles)
  return math.ceil(rows / 8) * 8


def spec_fields(
  machine: target.Target,
  *,
  num_queries: int,
  num_keys: int,
  dtype: Any,
  scale: float,
  rules: Rules,
  dropout: float = 0.0,
) -> dict[str, Any]:
  """Fields of a `Spec` that are the same for every plan.

  Args:
    machine: target.
    num_queries: L.
    num_keys: S.
    dtype: of the inputs.
    scale: factor on the products.
    rules: what is hidden.
    dropout: probability to drop a weight, in [0, 1).
  """
  factor = scale * LOG2E
  return {
    "num_queries": num_queries,
    "num_keys": num_keys,
    "scale": scale,
    "factor": 1.0 if abs(factor - 1.0) < 1e-6 else factor,
    "causal": rules.causal,
    "key_ids": any(
      x is not None for x in (rules.mask, rules.kv_lengths, rules.kv_segments)
    ),
    "query_ids": rules.query_segments is not None,
    "prefix": rules.causal and rules.prefix_lengths is not None,
    "tail": num_keys % machine.matrix_unit == 1 and num_keys > 1,
    "exact": jnp.dtype(dtype) == jnp.float32,
    "dropout": dropout,
  }


def _candidates(
  layouts: Sequence[Lanes | Heads],
  fields: Mapping[str, Any],
  *,
  packed: bool,
  backward: bool,
) -> list[resident.Spec]:
  """Specs of the forward or backward kernel, the preferred one first."""
  num_queries = fields["num_queries"]
  specs = [
    resident.Spec(
      layout=layout,
      rows=_tile_rows(num_queries, backward=backward),
      packed=packed and backward,
      upright=backward and num_queries <= _FEW,
      **fields,
    )
    for layout in layouts
  ]
  return [x for x in specs if x.tiles == 1 or not (packed and backward)]


def _layouts(
  num_heads: int, head_dim: int, *, packed: bool
) -> list[Lanes | Heads]:
  """Layouts of heads, the preferred one first."""
  groups = lane_groups(num_heads, head_dim)
  if packed:
    return [Lanes(group, head_dim) for group in groups if group == num_heads]
  choices = [group for group in _HEAD_CHOICES if num_heads % group == 0]
  return [
    *(Lanes(group, head_dim) for group in groups),
    *(Heads(group, head_dim) for group in choices),
  ]


def make_plan(
  machine: target.Target,
  *,
  num_heads: int,
  head_dim: int,
  packed: bool = False,
  **sizes: Any,
) -> TilePlan:
  """Chooses layout, group and tile; see the module.

  Args:
    machine: target.
    num_heads: N of one device.
    head_dim: H.
    packed: q, k and v are one array.
    **sizes: of the call, as `spec_fields` takes them.

  Raises:
    NotImplementedError: with the numbers, if nothing fits (`VmemError`).
  """
  fields = spec_fields(machine, **sizes)
  layouts = _layouts(num_heads, head_dim, packed=packed)
  itemsize = jnp.dtype(sizes["dtype"]).itemsize
  budget = machine.vmem * 7 // 8
  fitting: list[tuple[resident.Spec, int]] = []  # forward, backward
  needs = []
  for backward in (False, True):
    specs = _candidates(layouts, fields, packed=packed, backward=backward)
    needs = [vmem_bytes(x, itemsize, backward=backward) for x in specs]
    pairs = zip(specs, needs, strict=True)
    fitting += [(spec, need) for spec, need in pairs if need <= budget][:1]
  if len(fitting) == 2:
    (forward, one), (backward, other) = fitting
    limit = min(max(2 * max(one, other), 16 * target.MIB), budget)
    return TilePlan(forward, backward, num_heads, packed, limit, machine)
  if not needs:
    raise NotImplementedError(
      f"packed {num_heads} heads of {head_dim} and {fields['num_queries']} "
      "queries: needs whole lane tiles of 128 and one tile of queries"
    )
  raise VmemError(
    f"VMEM: {fields['num_queries']} queries, {fields['num_keys']} keys and "
    f"{num_heads} heads of {head_dim} need {min(needs) / target.MIB:.1f} MiB; "
    f"{machine.generation or 'this chip'} has {budget / target.MIB:.1f}"
  )
