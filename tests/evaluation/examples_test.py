"""Single queries of an evaluation: which, and what of them is kept."""

from __future__ import annotations

import numpy as np

from mico_jax.evaluation import metrics
from mico_jax.evaluation.examples import FIRST, WORST, Entry, Examples, choose


def test_the_first_and_then_the_worst_are_chosen():
  ranks = np.array([1, 1, 3, 1, 9, 2])
  assert choose(ranks, 4) == [(0, FIRST), (1, FIRST), (4, WORST), (2, WORST)]
  assert choose(np.array([1, 1, 1]), 4) == [(0, FIRST), (1, FIRST)]
  assert choose(ranks, 0) == []
  assert len(choose(ranks, 99)) == len(ranks)


def test_answers_are_ordered_as_ranks_count():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (6, 12)).astype(float)  # many ties
  relevant = rng.random((6, 12)) < 0.15
  relevant[np.arange(6), np.arange(6)] = True
  ranks = metrics.ranks(scores, relevant)
  examples = Examples()
  examples.count = 99
  examples.add_ranking(
    "retrieval/t->v",
    "v",
    ranks,
    lambda row: (scores[row], relevant[row]),
    lambda row: Entry(text=f"q{row}"),
    lambda column: Entry(item=column),
  )
  assert len(examples.found) == 6
  for example in examples.found:
    row = int(example.query.text[1:])
    places = [answer.place for answer in example.answers if answer.right]
    assert places[0] == example.rank == ranks[row]
    values = [answer.score for answer in example.answers]
    assert values == sorted(values, reverse=True)
    for answer in example.answers:
      assert answer.score == scores[row, answer.item]
      assert answer.right == relevant[row, answer.item]
    assert example.candidates == 12


def test_written_texts_stand_before_the_true_ones():
  examples = Examples()
  examples.count = 3
  examples.add_written(
    "question/v",
    "v",
    [Entry(text=f"q{i}", item=i) for i in range(4)],
    ["a", "b", "c", "d"],
    [["a"], ["b"], ["x"], ["d"]],
    np.array([1.0, 1.0, 0.0, 1.0]),
  )
  kept = [(e.query.text, e.chosen) for e in examples.found]
  assert kept == [("q0", FIRST), ("q1", FIRST), ("q2", WORST)]
  wrong = examples.found[2].answers
  assert [a.text for a in wrong] == ["c", "x"]
  assert [a.right for a in wrong] == [None, True]
