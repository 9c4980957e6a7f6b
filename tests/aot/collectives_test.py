"""Collectives as a program's text names them."""

from __future__ import annotations

import pytest

from mico_jax.aot import collectives
from mico_jax.aot.text import Operation

MESH = {"data": 2, "fsdp": 4}


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,2},{1,3}}", [(0, 2), (1, 3)]),
    ("replica_groups=[2,2]<=[4]", [(0, 1), (2, 3)]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [(0, 2), (1, 3)]),
    ("source_target_pairs={{0,1},{1,0}}", [(0, 1), (1, 0)]),
    ("no groups at all", []),
    ("replica_groups={}, to_apply=%add", []),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [(0, 1), (2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [(0, 2), (1, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [(0, 1, 2, 3)]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}", [(0, 2, 1, 3)]),
    ("replica_groups=mesh['a'=2] {}", [(0,), (1,)]),
    (
      "replica_groups=mesh['a'=2,'b'=1,'c'=3], device_ids=([3,2]T(1,0)) {'a'}",
      [(0, 1), (2, 3), (4, 5)],
    ),
    (
      "replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, channel_id=1",
      [(0, 2), (1, 3), (4, 6), (5, 7)],
    ),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", [(0, 2), (1, 3), (4, 6), (5, 7)]),
    (
      "replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}",
      [(0, 1, 4, 5), (2, 3, 6, 7)],
    ),
  ],
)
def test_replica_groups(text, groups):
  assert collectives.replica_groups(text) == groups


@pytest.mark.parametrize(
  "text",
  [
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([0,2,1,3]) {'b'}",
    "replica_groups=mesh['a'=8] {'a':(3)2}",
    "replica_groups=mesh['a'=8] {'a':(4)4}",
    "replica_groups=<[4]>",
  ],
)
def test_unknown_groups_are_no_guess(text):
  with pytest.raises(ValueError, match="groups"):
    collectives.replica_groups(text)


@pytest.mark.parametrize(
  ("line", "moved"),
  [
    ("(f32[8]{0}, f32[32]{0}) all-gather-start(%p)", 32 * 4 * 3 / 4),
    ("((f32[32]{0}), f32[8]{0}) reduce-scatter-start(%p)", 32 * 4 * 3 / 4),
    (
      "((f32[4]{0}, f32[4]{0}), (f32[4]{0}, f32[4]{0}), u32[]{:S(2)})"
      " all-to-all-start(%p, %q)",
      2 * 4 * 4 * 3 / 4,
    ),
    ("f32[32]{0} all-reduce-start(%p)", 2 * 32 * 4 * 3 / 4),
    (
      "(f32[32]{0}, f32[32]{0}, u32[], u32[]) collective-permute-start(%p)",
      32 * 4,
    ),
  ],
)
def test_a_started_collective_counts_its_results_once(line, moved):
  op = line.split("(%")[0].split()[-1]
  groups = "replica_groups=[2,4]<=[8]"
  if op.startswith("collective"):
    groups = "source_target_pairs={{0,1},{1,0}}"
  found = Operation("x", op, f"{line}, {groups}", 1, "main")
  collective = collectives.collective_of(found, MESH)
  assert collective is not None
  assert collective.bytes == pytest.approx(moved)


def test_axes_of_a_group():
  assert collectives.axes_of((0, 1, 2, 3), MESH) == "fsdp"
  assert collectives.axes_of((1, 5), MESH) == "data"
  assert collectives.axes_of(tuple(range(8)), MESH) == "data+fsdp"
  assert collectives.axes_of((3,), MESH) == "none"
