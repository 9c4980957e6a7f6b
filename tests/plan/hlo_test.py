"""Reading compiled programs."""

from __future__ import annotations

import pytest

from mico_jax.plan import hlo

MESH = {"data": 2, "fsdp": 4}

PROGRAM = """\
HloModule jit_step

%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]) parameter(0)
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %gather = bf16[64,16]{1,0} all-gather(%w), replica_groups=[2,4]<=[8]
  %multiply.1 = f32[8,16]{1,0} fusion(%x), SCOPE, c={"estimated_cycles":"100"}
  %attend.7 = (bf16[4,8]{1,0}, f32[4]{0}) custom-call(%q), CALL
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%cond, body=%body
  %sum = f32[32]{0} all-reduce(%g), replica_groups={{0,4},{1,5},{2,6},{3,7}}
  %copy.1 = f32[8,16]{1,0} copy(%a), backend_config={"estimated_cycles":"7"}
  ROOT %odd = f32[8]{0} copy(%a), c={"estimated_cycles":"9223372036854775807"}
}
"""
PROGRAM = PROGRAM.replace("CALL", 'custom_call_target="tpu_custom_call"')
PROGRAM = PROGRAM.replace("SCOPE", 'metadata={op_name="jit(s)/ViT/mul"}')


def test_loops_count_with_their_trips():
  found = hlo.read(PROGRAM, MESH)
  assert found.cycles == {"vision": 1200, "rest": 7}
  assert found.costliest[0] == (1200, "multiply.1")
  assert found.calls == [hlo.Call("attend.7", "bf16[4,8] f32[4]", "rest", 12)]


def test_collectives_by_kind_and_axis():
  found = {c.kind: c for c in hlo.read(PROGRAM, MESH).collectives}
  gather, reduce = found["all-gather"], found["all-reduce"]
  assert (gather.axes, gather.count) == ("fsdp", 12)
  assert gather.bytes == pytest.approx(12 * 64 * 16 * 2 * 3 / 4)
  assert (reduce.axes, reduce.count, reduce.group) == ("data", 1, (0, 4))
  assert reduce.bytes == pytest.approx(2 * 32 * 4 / 2)


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
  assert hlo.replica_groups(text) == groups


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
    hlo.replica_groups(text)


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
  found = hlo.Operation("x", op, f"{line}, {groups}", 1, "main")
  collective = hlo.collective_of(found, MESH)
  assert collective is not None
  assert collective.bytes == pytest.approx(moved)


def test_axes_of_a_group():
  assert hlo.axes_of((0, 1, 2, 3), MESH) == "fsdp"
  assert hlo.axes_of((1, 5), MESH) == "data"
  assert hlo.axes_of(tuple(range(8)), MESH) == "data+fsdp"
  assert hlo.axes_of((3,), MESH) == "none"


def test_a_collective_beside_a_product_counts_once():
  """Its start, the product that runs meanwhile, and its end all hold it."""
  gather = "= f32[32]{0} all-gather(%p), replica_groups=[2,4]<=[8]"
  text = f"""\
%fused.1 (p: f32[8]) -> f32[32] {{
  ROOT %all-gather.1 {gather}
}}

%async_collective_fusion.2 (p: f32[8]) -> f32[32] {{
  ROOT %all-gather.2 {gather}
}}

%fused.3 (p: f32[8]) -> f32[32] {{
  ROOT %all-gather.3 {gather}
}}

ENTRY %main (p: f32[8]) -> f32[32] {{
  %async-collective-start = f32[32]{{0}} fusion(%p), calls=%fused.1
  %fusion.2 = f32[32]{{0}} fusion(%p), calls=%async_collective_fusion.2
  ROOT %async-collective-done = f32[32]{{0}} fusion(%p), calls=%fused.3
}}
"""
  (found,) = hlo.read(text, MESH).collectives
  assert (found.kind, found.count) == ("all-gather", 1)
  assert found.bytes == pytest.approx(32 * 4 * 3 / 4)


def test_a_reduction_fused_with_its_slice_is_a_scatter():
  text = """\
%all-reduce-scatter.3 (p: f32[32]) -> f32[8] {
  %all = f32[32]{0} all-reduce(%p), replica_groups=[2,4]<=[8]
  ROOT %part = f32[8]{0} dynamic-slice(%all, %i)
}

ENTRY %main (a: f32[32]) -> f32[8] {
  ROOT %f = f32[8]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
  (found,) = hlo.read(text, MESH).collectives
  assert found.kind == "reduce-scatter"
  assert found.bytes == pytest.approx(32 * 4 * 3 / 4)


def _flights(lines: str) -> list[tuple[str, float]]:
  text = f"""\
%body (p: f32[8]) -> f32[8] {{
  ROOT %inner = f32[8]{{0}} fusion(%p), c={{"estimated_cycles":"10"}}
}}

%fused.1 (p: f32[8]) -> f32[32] {{
  ROOT %g = f32[32]{{0}} all-gather(%p), replica_groups=[2,4]<=[8]
}}

ENTRY %main (p: f32[8]) -> f32[32] {{
{lines}
}}
"""
  text = text.replace(
    "TRIPS", 'body=%body, x={"known_trip_count":{"n":"5"}}'
  ).replace("SENT", "source_target_pairs={{0,1},{1,0}}")
  found = hlo.read(text, MESH).asynchronous
  return [(x.collective.kind, x.cycles) for x in found]


_WORK = '  %work.N = f32[8]{0} fusion(%p), c={"estimated_cycles":"100"}\n'
_PERMUTE = (
  "  %sent.N = (f32[8]{0}, f32[8]{0}, u32[], u32[])"
  " collective-permute-start(%p), SENT\n"
)
_PERMUTED = "  %got.N = f32[8]{0} collective-permute-done(%sent.N)\n"


def test_a_collective_hides_behind_what_is_scheduled_before_its_end():
  start = (
    "  %async-collective-start.4 = f32[32]{0} fusion(%p), calls=%fused.1\n"
  )
  end = "  %async-collective-done.4 = f32[32]{0} fusion(%p), calls=%fused.1\n"
  loop = "  %loop = f32[8]{0} while(%p), TRIPS\n"
  assert _flights(_WORK + start + _WORK + loop + end + _WORK) == [
    ("all-gather", 150)
  ]
  assert _flights(_PERMUTE + _WORK + _PERMUTED) == [("collective-permute", 100)]


def test_collectives_under_way_together_share_what_hides_them():
  first, second = _PERMUTE, _PERMUTE.replace(".N", ".M")
  lines = first + _WORK + second + _WORK + _PERMUTED
  assert _flights(lines + _WORK + _PERMUTED.replace(".N", ".M")) == [
    ("collective-permute", 150),
    ("collective-permute", 150),
  ]


def test_a_collective_that_nothing_runs_beside_is_not_hidden():
  assert _flights(_PERMUTE + _PERMUTED + _WORK) == []
  assert _flights(_PERMUTE + _WORK) == []  # its end is not seen
  gather = "  %g = f32[32]{0} all-gather(%p), replica_groups=[2,4]<=[8]\n"
  assert _flights(gather + _WORK) == []
