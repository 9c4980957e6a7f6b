from __future__ import annotations

import tracemalloc

import jax
import numpy as np
import pytest

from mico_jax.evaluation import metrics
from mico_jax.evaluation.queries import make_queries
from mico_jax.evaluation.streamed_ranks import (
  answers_from,
  answers_of,
  streamed_ranks,
)


def _case(queries: int, items: int, seed: int):
  """Whole numbers, so that products are exact, and many ties."""
  rng = np.random.default_rng(seed)
  q = rng.integers(-2, 3, (queries, 12)).astype(np.float32)
  g = rng.integers(-2, 3, (items, 12)).astype(np.float32)
  relevant = rng.random((queries, items)) < 0.05
  relevant[np.arange(queries), rng.integers(0, items, queries)] = True
  return q, g, relevant


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(("queries", "items"), [(1, 1), (37, 41), (129, 7)])
def test_ranks_are_those_of_the_whole_matrix(queries, items, devices):
  if jax.device_count() < devices:
    pytest.skip("needs eight devices")
  q, g, relevant = _case(queries, items, seed=items)
  got = streamed_ranks(
    q, g, answers_of(relevant), block=8, devices=jax.devices()[:devices]
  )
  want = metrics.ranks((q @ g.T).astype(np.float64), relevant)
  np.testing.assert_array_equal(got, want)


def test_equal_items_find_nothing_wherever_a_matrix_ends():
  rng = np.random.default_rng(1)
  q = rng.standard_normal((5, 64)).astype(np.float32)
  for items in (7, 100, 1003):
    same = np.repeat(rng.standard_normal((1, 64)), items, axis=0)
    answers = np.asarray([[0], [1], [items // 2], [items - 2], [items - 1]])
    got = streamed_ranks(q, same.astype(np.float32), answers)
    assert got.tolist() == [items] * 5


def test_broken_rows_are_named():
  q, g, relevant = _case(4, 6, seed=2)
  answers = answers_of(relevant)
  for rows in (q, g):
    rows[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"(query|item) 3 \(1 in all\)"):
      streamed_ranks(q, g, answers)
    rows[3, 5] = 0.0
  with pytest.raises(ValueError, match="answer 6 of 6 items"):
    streamed_ranks(q, g, np.full((4, 1), 6))
  relevant[2] = False
  with pytest.raises(ValueError, match="query 2 has no relevant item"):
    streamed_ranks(q, g, answers_of(relevant))


def test_queries_hold_no_pair_of_a_large_gallery():
  """50,000 texts of as many items: 2.5 GB as a matrix of bytes."""
  count = 50_000
  texts = [[f"text {i % (count - 7)}", f"of {i}"] for i in range(count)]
  tracemalloc.start()
  queries = make_queries(texts, np.arange(count), "omni")
  answers = answers_from(queries.pairs, len(queries.texts))
  back = answers_from(queries.pairs[:, ::-1], count)
  share, first = queries.share, queries.first(of_texts=False)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**28
  assert len(queries.texts) == 2 * count - 7
  assert share == 2 * count / len(queries.texts) / count
  row = queries.texts.index("text 3")
  np.testing.assert_array_equal(answers[row], [3, count - 4])
  np.testing.assert_array_equal(queries.items_of(row), [3, count - 4])
  np.testing.assert_array_equal(back[3], [row, queries.texts.index("of 3")])
  np.testing.assert_array_equal(queries.texts_of(count - 4), back[count - 4])
  np.testing.assert_array_equal(first, back[:, 0])
