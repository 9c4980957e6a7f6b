from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from mico_jax.config import ConfigError
from mico_jax.data.records import Record
from mico_jax.evaluation import linear_probe, queries, report, results
from mico_jax.evaluation.evaluators import (
  is_share,
  item_pairs,
  text_retrieval,
  zero_shot,
)
from mico_jax.evaluation.features import Gallery
from mico_jax.testing.tiny_checkpoint import tiny_config


def test_queries_share_equal_texts():
  found = queries.make_queries(
    [["a", "b"], ["b"], ["c", "c"]], np.array([4, 7, 9]), "omni"
  )
  assert found.texts == ["a", "b", "c"]
  assert found.relevant.tolist() == [
    [True, False, False],
    [True, True, False],
    [False, False, True],
  ]


def test_rerank_replaces_the_top_and_zeroes_the_rest():
  rng = np.random.default_rng(0)
  scores = rng.random((5, 8))
  truth = rng.random((5, 8))
  seen = []

  def match(pairs):
    seen.append(pairs)
    return truth[pairs[:, 0], pairs[:, 1]]

  out = text_retrieval.rerank(scores, 3, match)
  assert seen[0].shape == (15, 2)
  for q in range(5):
    top = set(np.argsort(-scores[q])[:3].tolist())
    for g in range(8):
      assert out[q, g] == (truth[q, g] if g in top else 0.0)
  np.testing.assert_array_equal(text_retrieval.rerank(scores, 99, match), truth)
  with pytest.raises(ValueError, match="top=0"):
    text_retrieval.rerank(scores, 0, match)


def test_reranking_by_both_heads_multiplies_what_they_say():
  """The order of P(match) / (1 - P(match)) * exp(similarity / temperature)."""
  rng = np.random.default_rng(1)
  scores, truth = rng.uniform(-1, 1, (2, 5, 8))
  truth = (truth + 1) / 2
  truth[0, :2] = 0, 1  # as float32 gives them: finite all the same
  match = lambda pairs: truth[pairs[:, 0], pairs[:, 1]]
  out = text_retrieval.rerank(scores, 3, match, temperature=0.1)
  assert np.isfinite(out).all()
  for q in range(1, 5):
    best = np.argsort(-scores[q])
    odds = truth[q] / (1 - truth[q]) * np.exp(scores[q] / 0.1)
    want = sorted(best[:3], key=lambda g: -odds[g])
    assert np.argsort(-out[q])[:3].tolist() == want
    assert out[q, best[3:]].max() < out[q, best[:3]].min()
  by_match = text_retrieval.rerank(scores, 3, match)
  assert (np.argmax(out, axis=1) != np.argmax(by_match, axis=1)).any()


def _gallery(embeddings: dict[str, np.ndarray]) -> Gallery:
  n = len(next(iter(embeddings.values())))
  records: list[Record | None] = [Record("r")] * n
  present = {k: np.ones(n, bool) for k in ("image", "audio")}
  present["audio"][0] = False
  return Gallery(records, present, embeddings, {}, [])


def test_class_retrieval_counts_equal_labels():
  eye = np.eye(4, dtype=np.float32)
  gallery = _gallery({"a": eye, "i": eye[[1, 0, 3, 2]]})
  protocol = results.Protocol(bootstrap=10)
  r1, ap = item_pairs.between_items(gallery, "a:i", [0, 0, 1, 1], protocol)
  assert (r1.name, r1.value, r1.n, r1.total) == ("class/a->i/R@1", 1.0, 3, 4)
  assert 0.5 < ap.value <= 1.0
  with pytest.raises(ValueError, match="a:i"):
    item_pairs.between_items(gallery, "ai", [0] * 4, protocol)


def test_an_item_never_finds_itself():
  """Four different items of two classes: the nearest other one is wrong."""
  rows = np.array([[1, 0.0], [0.8, 0.6], [0.9, 0.44], [0.6, 0.8]], np.float32)
  gallery = _gallery({"i": rows, "ii": rows, "a": rows})
  gallery = dataclasses.replace(
    gallery, records=[Record(id) for id in ("p", "q", "r", "s")]
  )
  protocol = results.Protocol()
  found, _ = item_pairs.between_items(gallery, "i:i", [0, 0, 1, 1], protocol)
  # p -> r, q -> r or s, r -> p or q, s -> q
  assert found.value == 0.0
  assert found.baseline == pytest.approx(1 / 3)
  # A copy of the item under its id is no answer either.
  copied = dataclasses.replace(
    gallery, records=[Record(id) for id in ("p", "p", "r", "s")]
  )
  found, _ = item_pairs.between_items(copied, "i:i", [0, 0, 1, 1], protocol)
  assert (found.n, found.total) == (2, 4)
  # Another modality of the same item is one.
  found, _ = item_pairs.between_items(gallery, "a:i", [0, 0, 1, 1], protocol)
  assert found.value == 1.0


def test_items_that_are_lost_count_with_all_their_captions():
  five = [[f"{i} {k}" for k in range(5)] for i in range(3)]
  asked = queries.make_queries(five, np.array([0, 2, 3]), "omni")
  assert text_retrieval.usual_count(asked) == 5
  mixed = queries.make_queries([["a"], ["b", "c"]], np.array([0, 1]), "omni")
  assert text_retrieval.usual_count(mixed) == 2


def test_intervals_of_results():
  protocol = results.Protocol(bootstrap=50, is_share=is_share)
  ten = np.ones(10)
  exact = pytest.approx((0.6915, 1.0), abs=1e-4)
  assert protocol.result("retrieval/t->v/R@1", ten, total=10).interval == exact
  assert protocol.result("unknown/R@1", ten, total=10).interval == exact
  # Equal values of what is no share bound nothing.
  assert protocol.result("caption/v/CIDEr", 0 * ten, total=10).interval is None
  table = report.table([protocol.result("zero-shot/v/accuracy", ten, total=10)])
  assert "0.692 .. 1.000" in table
  with pytest.raises(ValueError, match="1 of 2 values are not finite"):
    protocol.result("x/R@1", np.array([1.0, np.nan]), total=2)


def test_results_are_stable_bytes(tmp_path):
  protocol = results.Protocol(source="s", split="test", command="c")
  values = np.random.default_rng(1).random(20)
  make = lambda: [
    protocol.result("x/R@1", values, total=21, prompts=["p"], ceiling=0.9),
    protocol.result("y/R@5", values, total=20),
  ]
  first, second = tmp_path / "a", tmp_path / "b"
  paths = report.write(make(), str(first))
  report.write(make(), str(second))
  assert {p.rsplit(".")[-1] for p in paths} == {"json", "txt", "png"}
  for path in first.iterdir():
    assert path.read_bytes() == (second / path.name).read_bytes(), path.name
  found = json.loads((first / "evaluation.json").read_text())["results"][0]
  assert found["coverage"] == pytest.approx(20 / 21)
  assert found["interval"][0] < found["value"] < found["interval"][1]
  assert len(found["prompt_sha256"]) == 64
  assert "20/21" in (first / "evaluation.txt").read_text()
  assert report.table([]) == "(no results)"
  with pytest.raises(ValueError, match="0 of 3"):
    protocol.result("z", np.zeros(0), total=3)


def test_prompts_and_classes(tmp_path):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("a photo of {}\n\nthe sound of {}\n")
  assert len(zero_shot.read_prompts(str(prompts))) == 2
  assert zero_shot.read_prompts("") == ["{}"]
  prompts.write_text("no place\n")
  with pytest.raises(ConfigError, match="line 1"):
    zero_shot.read_prompts(str(prompts))
  with pytest.raises(ConfigError, match="cannot be read"):
    zero_shot.read_lines(str(tmp_path / "none"), "evaluation.classes")
  prompts.write_bytes(b"\xff")
  with pytest.raises(ConfigError, match="UTF-8"):
    zero_shot.read_lines(str(prompts), "evaluation.classes")
  names = ["dog", "cat"]
  assert zero_shot.class_index("cat", names) == 1
  assert zero_shot.class_index(1, names) == 1
  assert zero_shot.class_index("0", names) == 0
  assert zero_shot.class_index("cow", names) is None
  assert zero_shot.class_index(None, names) is None


def test_probe_separates_and_is_deterministic():
  rng = np.random.default_rng(3)
  centres = 3 * rng.standard_normal((4, 6)).astype(np.float32)
  labels = rng.integers(0, 4, 200)
  features = centres[labels] + rng.standard_normal((200, 6)).astype(np.float32)
  probe = linear_probe.fit_probe(features[:120], labels[:120], 4, steps=40)
  assert (probe.predict(features[120:]) == labels[120:]).mean() > 0.9
  again = linear_probe.fit_probe(features[:120], labels[:120], 4, steps=40)
  np.testing.assert_array_equal(probe.kernel, again.kernel)
  with pytest.raises(ValueError, match="num_classes"):
    linear_probe.fit_probe(features, labels, 2)
  with pytest.raises(ValueError, match="one or more"):
    linear_probe.fit_probe(features[:0], labels[:0], 2)


def test_a_group_that_no_sample_has_is_named():
  gallery = Gallery(
    records=[None],
    present={"video": np.zeros(1, bool)},
    embeddings={},
    pooled={},
    batches=[],
  )
  message = "caption of kind 'vision'; of its modalities there are: none. Set"
  with pytest.raises(ConfigError, match=message):
    queries.queries_of(tiny_config(), gallery, "v", 1)
