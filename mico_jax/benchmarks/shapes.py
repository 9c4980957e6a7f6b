"""Attention problems of the benchmarks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """One attention problem in bfloat16.

  Attributes:
    num_queries: L.
    num_keys: S.
    num_heads: N.
    head_dim: H.
    batch: number of rows; figures are per row.
    packed: whether q, k and v are one array.
  """

  num_queries: int
  num_keys: int
  num_heads: int
  head_dim: int
  batch: int
  packed: bool = False

  def with_batch(self, batch: int) -> Shape:
    """The problem with another number of rows; 0: unchanged."""
    return dataclasses.replace(self, batch=batch) if batch else self


SHAPES: dict[str, Shape] = {
  "vit_g": Shape(257, 257, 16, 88, 32, packed=True),
  "vit_b": Shape(257, 257, 12, 64, 32, packed=True),
  "vit_b_196": Shape(197, 197, 12, 64, 32, packed=True),
  "text_40": Shape(40, 40, 12, 64, 32, packed=True),
  "apart_257": Shape(257, 257, 16, 88, 32),
  "long_1028": Shape(1028, 1028, 16, 88, 4),
  "long_2056": Shape(2056, 2056, 16, 88, 2),
  "long_4112": Shape(4112, 4112, 16, 88, 1),
  "cross_257": Shape(40, 257, 12, 64, 32),
  "cross_1028": Shape(40, 1028, 12, 64, 16),
  "cross_2056": Shape(40, 2056, 12, 64, 8),
}
