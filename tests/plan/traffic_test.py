"""Bytes that a GPU program moves."""

from __future__ import annotations

from mico_jax.plan import traffic

PROGRAM = """\
%slice_and_add (p0: f32[10,64], p1: s32[], p2: f32[64]) -> f32[64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[64]{0} parameter(2)
  %slice = f32[1,64]{1,0} dynamic-slice(%p0, %p1), sizes={1,64}
  %flat = f32[64]{0} bitcast(%slice)
  ROOT %sum = f32[64]{0} add(%flat, %p2)
}

%update (q0: f32[10,64], q1: f32[1,64], q2: s32[]) -> f32[10,64] {
  %q0 = f32[10,64]{1,0} parameter(0)
  %q1 = f32[1,64]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%q0, %q1, %q2)
}

%product (r0: f32[8,8]) -> f32[8,8] {
  %r0 = f32[8,8]{1,0} parameter(0)
  ROOT %dot = f32[8,8]{1,0} dot(%r0, %r0), lhs_contracting_dims={1}
}

%body (s: f32[64]) -> f32[64] {
  ROOT %twice = f32[64]{0} add(%s, %s)
}

ENTRY %main (a: f32[10,64], i: s32[], b: f32[64]) -> f32[10,64] {
  %a = f32[10,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(2)
  %x = f32[64]{0} fusion(%a, %i, %b), kind=kLoop, calls=%slice_and_add
  %y = f32[10,64]{1,0} fusion(%a, %v, %i), kind=kLoop, calls=%update
  %z = f32[8,8]{1,0} fusion(%c), kind=kCustom, calls=%product
  %copied = f32[64]{0} copy(%b)
  %loop = f32[64]{0} while(%b), body=%body, TRIPS
  ROOT %gather = f32[10,64]{1,0} all-gather(%b), dimensions={0}
}
""".replace("TRIPS", 'c={"known_trip_count":{"n":"3"}}')


def test_slices_updates_products_and_loops():
  row, index = 64 * 4, 4
  read_a_slice = row + index + row + row  # the slice, where, b, the result
  update = row + index + row  # the row, where, its place
  copy = 2 * row
  loop = 3 * row  # its argument stands in no line
  assert traffic.count(PROGRAM) == read_a_slice + update + copy + loop
