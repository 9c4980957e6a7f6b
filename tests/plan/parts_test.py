"""Compiled programs by parts of the step."""

from __future__ import annotations

import pytest

from mico_jax import aot
from mico_jax.models.encoders import ENCODERS, TEXT_ENCODERS
from mico_jax.objectives import OBJECTIVES
from mico_jax.plan import parts

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


def test_each_encoder_tower_and_objective_has_its_part():
  for name, encoder in ENCODERS.items():
    assert parts.part_of(f"jit(s)/{encoder.__name__}/mul") == "vision", name
  for name, tower in TEXT_ENCODERS.items():
    assert parts.part_of(f"jit(s)/{tower.__name__}/mul") == "text", name
  for name in OBJECTIVES:
    assert parts.part_of(f"jit(s)/{name}_tv/mul") == "loss"
  assert parts.part_of("jit(s)/update/mul") == parts.OTHER


def test_loops_count_with_their_trips():
  found = parts.summarize(PROGRAM, MESH)
  assert found.cycles == {"vision": 1200, "rest": 7}
  assert found.costliest[0] == (1200, "multiply.1")
  assert found.calls == [aot.Call("attend.7", "bf16[4,8] f32[4]", "", 12)]


def test_collectives_by_kind_and_axis():
  found = {c.kind: c for c in parts.summarize(PROGRAM, MESH).collectives}
  gather, reduce = found["all-gather"], found["all-reduce"]
  assert (gather.axes, gather.count) == ("fsdp", 12)
  assert gather.bytes == pytest.approx(12 * 64 * 16 * 2 * 3 / 4)
  assert (reduce.axes, reduce.count, reduce.group) == ("data", 1, (0, 4))
  assert reduce.bytes == pytest.approx(2 * 32 * 4 / 2)


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
  (found,) = parts.summarize(text, MESH).collectives
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
  (found,) = parts.summarize(text, MESH).collectives
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
  found = parts.summarize(text, MESH).asynchronous
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
