"""How a call of the TPU attention kernels runs, within which memory.

A plan is made from the shape, the dtype and the chip: heads as they lie along
the lanes where they fill lane tiles ("lanes"), else heads apart, which costs a
transposition outside ("heads"); one tile of queries or several; keys and values
resident in VMEM, whose need is computed here and checked against the chip's.
The backward pass needs more of it, so its heads may have to lie apart where the
forward pass takes them side by side.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from mico_jax.kernels import target
from mico_jax.kernels.attention import tpu_resident as resident
from mico_jax.kernels.attention.rules import Rules
from mico_jax.kernels.attention.tpu_layout import Heads, Lanes, lane_groups

LOG2E = math.log2(math.e)
_ONE_TILE = 512  # up to so many queries are one tile
_TILE = 256
_SCORE_TILES = 10  # float32 score tiles that are live at once, about
_HEAD_CHOICES = (4, 2, 1)
_FEW = 64  # up to so many queries the backward scores stand upright


class VmemError(NotImplementedError):
  """Keys and values do not fit into VMEM whole."""


@dataclasses.dataclass(frozen=True)
class TilePlan:
  """How one call runs.

  Attributes:
    forward: spec of the forward kernel.
    backward: spec of the backward kernel.
    num_heads: N, those of one device.
    packed: q, k and v are one array [B, L, 3 N H].
    vmem_limit: bytes that the compiler may use.
    machine: with the mesh over which rows and heads are split.
  """

  forward: resident.Spec
  backward: resident.Spec
  num_heads: int
  packed: bool
  vmem_limit: int
  machine: target.Target

  @property
  def lanes(self) -> bool:
    """Whether heads of the arrays lie side by side."""
    return isinstance(self.forward.layout, Lanes)

  @property
  def mixed(self) -> bool:
    """Whether heads lie apart in the backward pass only."""
    return self.lanes and isinstance(self.backward.layout, Heads)

  def groups(self, spec: resident.Spec) -> int:
    """Groups of heads of one of the two kernels."""
    return self.num_heads // spec.layout.num_heads


def _block_bytes(rows: int, lanes: int, itemsize: int) -> int:
  return -(-rows // 16) * 16 * resident.lane_tiles(lanes) * itemsize


def vmem_bytes(spec: resident.Spec, itemsize: int, *, backward: bool) -> int:
  """VMEM that a kernel needs, about: blocks and rules twice, scratch, scores.

  Args:
    spec: of the kernel.
    itemsize: bytes of a number of the inputs.
    backward: which kernel.
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
  """VMEM of the identities: one is a column, padded to a tile of lanes."""
  total = _block_bytes(1, 1, 4) if spec.prefix else 0
  for given, size, column in (
    (spec.key_ids, spec.num_keys, transposed),
    (spec.query_ids, spec.rows, not transposed),
  ):
    if given:
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
  """The fields of a spec that no choice concerns.

  Args:
    machine: to run on.
    num_queries: L.
    num_keys: S.
    dtype: of the inputs.
    scale: on the products.
    rules: what is hidden.
    dropout: rate of the weights.
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


def make_plan(
  machine: target.Target,
  *,
  num_queries: int,
  num_keys: int,
  num_heads: int,
  head_dim: int,
  dtype: Any,
  scale: float,
  rules: Rules,
  dropout: float = 0.0,
  packed: bool = False,
) -> TilePlan:
  """Chooses layout, group and tile; see the module.

  Args:
    machine: to run on.
    num_queries: L.
    num_keys: S.
    num_heads: N of one device.
    head_dim: H.
    dtype: of the inputs.
    scale: on the products.
    rules: what is hidden.
    dropout: rate of the weights.
    packed: q, k and v are one array.

  Raises:
    NotImplementedError: with the numbers, if nothing fits (`VmemError`).
  """
  common = spec_fields(
    machine,
    num_queries=num_queries,
    num_keys=num_keys,
    dtype=dtype,
    scale=scale,
    rules=rules,
    dropout=dropout,
  )
  layouts: list[Lanes | Heads] = [
    Lanes(group, head_dim) for group in lane_groups(num_heads, head_dim)
  ]
  if packed:
    layouts = [x for x in layouts if x.num_heads == num_heads]
  else:
    layouts += [
      Heads(group, head_dim)
      for group in _HEAD_CHOICES
      if num_heads % group == 0
    ]
  itemsize = jnp.dtype(dtype).itemsize
  budget = machine.vmem * 7 // 8
  fitting: list[tuple[resident.Spec, int]] = []  # forward, backward
  needs = []
  for backward in (False, True):
    specs = [
      resident.Spec(
        layout=layout,
        rows=_tile_rows(num_queries, backward=backward),
        packed=packed and backward,
        upright=backward and num_queries <= _FEW,
        **common,
      )
      for layout in layouts
    ]
    if packed:
      specs = [x for x in specs if x.tiles == 1 or not backward]
    found = [(x, vmem_bytes(x, itemsize, backward=backward)) for x in specs]
    fitting += [(x, need) for x, need in found if need <= budget][:1]
    needs = [need for _, need in found]
  if len(fitting) == 2:
    (forward, one), (backward, other) = fitting
    limit = min(max(2 * max(one, other), 16 * target.MIB), budget)
    return TilePlan(forward, backward, num_heads, packed, limit, machine)
  if not needs:
    raise NotImplementedError(
      f"packed {num_heads} heads of {head_dim} and {num_queries} queries: "
      "needs whole lane tiles of 128 and one tile of queries"
    )
  raise VmemError(
    f"VMEM: {num_queries} queries, {num_keys} keys and {num_heads} heads of "
    f"{head_dim} need {min(needs) / target.MIB:.1f} MiB; "
    f"{machine.generation or 'this chip'} has {budget / target.MIB:.1f}"
  )
