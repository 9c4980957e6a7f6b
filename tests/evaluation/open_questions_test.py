"""Answers to every question of every item, by one or by ten people."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from mico_jax.config import ConfigError, GenerationConfig
from mico_jax.data.records import Record
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.evaluator import Job
from mico_jax.evaluation.evaluators.open_questions import OpenQuestions
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.queries import make_queries
from mico_jax.evaluation.results import Protocol
from mico_jax.evaluation.vqa_answers import (
  plain_words,
  soft_accuracy,
  without_punctuation,
)
from mico_jax.inference.omni_model import OmniModel
from mico_jax.models import build
from mico_jax.testing import tiny_checkpoint

LENGTHS = {"default": 24, "question": 12, "answer": 4}


def _by_definition(answer: str, given: list[str]) -> float:
  """The mean over all nine of ten people, for answers that need no reading."""
  shares = [
    min(nine.count(answer) / 3, 1.0)
    for nine in map(list, itertools.combinations(given, 9))
  ]
  return sum(shares) / len(shares)


@pytest.mark.parametrize("count", range(11))
def test_soft_accuracy_is_the_mean_over_nine_of_ten(count):
  given = ["yes"] * count + ["no"] * (10 - count)
  assert soft_accuracy("yes", given) == pytest.approx(
    _by_definition("yes", given)
  )


def test_answers_are_read_only_where_people_differ():
  """As the official evaluation does, which is stricter where all agree."""
  assert soft_accuracy("the two", ["2"] * 10) == 0.0
  assert soft_accuracy("the two", ["2"] * 9 + ["3"]) == 1.0
  with pytest.raises(ValueError, match="9 answers"):
    soft_accuracy("x", ["x"] * 9)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Yes.", "yes"),
    ("The Red car", "red car"),
    ("none", "0"),
    ("ten", "10"),
    ("dont", "don't"),
    ("couldn'tve", "couldn't've"),
    ("wed", "wed"),  # as well a word of its own
    ("t-shirt", "t shirt"),
    ("red, white", "red white"),
    ("red,white", "red white"),
    ("1,000 -dollars", "1000 dollars"),
    ("it's 3.5", "it's 3.5"),
    ("a/c", "c"),
  ],
)
def test_reading_of_answers(text, expected):
  assert plain_words(without_punctuation(text)) == expected


def test_each_text_is_a_query_of_its_own():
  items = np.asarray([4, 7])
  texts = [["a", "b"], ["b", "b"]]
  shared = make_queries(texts, items, "omni")
  assert shared.texts == ["a", "b"]
  np.testing.assert_array_equal(shared.relevant, [[1, 0], [1, 1]])
  each = make_queries(texts, items, "omni", each=True)
  assert each.texts == ["a", "b", "b", "b"]
  np.testing.assert_array_equal(each.relevant, [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_silent_modalities_do_not_exclude_an_item():
  present = {
    "video": np.asarray([True, True, False, False]),
    "audio": np.asarray([True, False, True, False]),
  }
  records = [Record(str(i)) for i in range(4)]
  gallery = Gallery(records, present, {}, {}, [])
  assert gallery.usable("va").tolist() == [0]
  silent = dataclasses.replace(gallery, silent=("audio",))
  assert silent.usable("va").tolist() == [0, 1]
  assert silent.usable("a").tolist() == [0, 2]


# --------------------------------------------------------------- with a model
class _Records:
  """A source of records whose second one has no media."""

  sha256 = ""

  def __init__(self, records):
    self._records = records

  def __len__(self):
    return len(self._records)

  def record(self, index):
    return self._records[index]


@pytest.fixture(scope="module")
def job():
  config = tiny_checkpoint.tiny_config()
  tokenizer = dataclasses.replace(config.data.tokenizer, max_length=LENGTHS)
  task = next(iter(config.tasks.values()))
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, tokenizer=tokenizer),
    tasks={
      "qa": dataclasses.replace(
        task, objectives={"question_answering": ("ti",)}
      )
    },
  )
  model = build(config.model)
  params = jax.jit(model.init)(jax.random.key(0))
  embedder = Embedder(
    model, params, config, make_tokenizer(tokenizer), batch_size=2
  )
  rng = np.random.default_rng(0)
  frame = lambda: rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
  records = [
    Record(
      str(i),
      media={"image": frame} if i != 1 else {},
      questions=[(f"what is {i} {j}?", "cube", "") for j in range(count)],
      fields={"answers": [["cube"] * 10] * count},
    )
    for i, count in enumerate((5, 2, 1))
  ]
  source = _Records(records)
  gallery = embedder.embed_gallery(
    "test", (), records=records, also_read=("i",), keep_batches=True
  )
  return Job(embedder, source, gallery, Protocol(source="x", bootstrap=0))


def test_every_question_of_every_item_is_asked(job, monkeypatch):
  asked = {}

  def answers(self, gallery, letters, items, questions):
    asked.update(items=items.tolist(), questions=list(questions))
    return ["cube"] * 4 + ["ball"] * (len(questions) - 4)

  monkeypatch.setattr(Writer, "answers", answers)
  (result,) = OpenQuestions().measure(job)
  assert result.name == "answers/i/accuracy"
  # The two questions of the item without a picture are asked and not scored.
  assert (result.n, result.total) == (6, 8)
  assert result.value == pytest.approx(4 / 6)
  assert asked["items"] == [0, 0, 0, 0, 0, 2]
  (soft,) = OpenQuestions(score="vqa").measure(job)
  assert soft.name == "answers/i/soft accuracy"
  assert soft.value == pytest.approx(4 / 6)


def test_an_answer_of_nothing_is_never_right(job, monkeypatch):
  """Not even where people's answers are nothing that can be written."""
  blank = [
    r
    and dataclasses.replace(
      r, fields={"answers": [[""] * 10] * len(r.questions)}
    )
    for r in job.gallery.records
  ]
  monkeypatch.setattr(
    Writer, "answers", lambda self, gallery, letters, items, asked: [""] * 6
  )
  gallery = dataclasses.replace(job.gallery, records=blank)
  asked = dataclasses.replace(job, gallery=gallery)
  (soft,) = OpenQuestions(score="vqa").measure(asked)
  assert (soft.value, soft.n) == (0.0, 6)


def test_answers_of_too_few_people_are_an_error(job):
  few = dataclasses.replace(
    job.gallery.records[0], fields={"answers": [["cube"] * 9] * 5}
  )
  records = [few, *job.gallery.records[1:]]
  gallery = dataclasses.replace(job.gallery, records=records)
  with pytest.raises(ConfigError, match="9 answers; soft accuracy needs"):
    OpenQuestions(score="vqa").measure(
      dataclasses.replace(job, gallery=gallery)
    )


def test_an_answer_does_not_depend_on_what_is_asked_beside_it(job):
  """Five questions of one item go through steps of two rows."""
  writer = Writer(job.embedder)
  records = job.gallery.records
  questions = [q[0] for q in records[0].questions] + ["what is 2 0?"]
  together = writer.answers(
    job.gallery, "i", np.asarray([0] * 5 + [2]), questions
  )
  alone = [
    writer.answers(job.gallery, "i", np.asarray([item]), [question])[0]
    for item, question in zip([0] * 5 + [2], questions, strict=True)
  ]
  assert together == alone


def test_drawn_answers_are_those_of_the_loaded_checkpoint(job):
  """By seed and number of the question, in batches of two or of four."""
  embedder = job.embedder
  config = dataclasses.replace(
    embedder.config, generation=GenerationConfig(top_p=0.9, seed=4)
  )
  parts = (embedder.model, embedder.params, config, embedder.tokenizer)
  drawing = Embedder(*parts, batch_size=2)
  records = job.gallery.records
  questions = [q[0] for q in records[0].questions] + ["what is 2 0?"]
  items = [0] * 5 + [2]
  drawn = Writer(drawing).answers(
    job.gallery, "i", np.asarray(items), questions
  )
  model = OmniModel(config, *parts[1::2], batch_size=4)
  batches = list(job.gallery.batches)  # the records draw anew
  pictures = [batches[i // 2]["image"][i % 2].reshape(16, 16, 3) for i in items]
  assert model.answer(question=questions, image=pictures) == drawn
  assert model.answer(question=questions, image=pictures, seed=5) != drawn
  last = model.answer(
    question=questions[3:], image=pictures[3:], rows=(3, 4, 5)
  )
  assert last == drawn[3:]
  greedy = Writer(embedder).answers(
    job.gallery, "i", np.asarray(items), questions
  )
  assert model.answer(question=questions, image=pictures, top_p=0.0) == greedy
  with pytest.raises(ValueError, match="same length"):
    model.answer(question=questions[:2], image=pictures)


@pytest.mark.parametrize("limit", [0, 2000])
def test_inputs_that_do_not_fit_in_memory_are_read_again(
  job, monkeypatch, limit
):
  """A batch is 2 x 16 x 16 x 3 bytes; there are two."""
  monkeypatch.setattr("mico_jax.evaluation.kept_inputs.KEPT_BYTES", limit)
  kept = list(job.gallery.batches)
  read = []

  class Counted(dict):
    def __getitem__(self, key):
      read.append(key)
      return super().__getitem__(key)

  picture = np.full((16, 16, 3), 7, np.uint8)
  records = [
    Record(str(i), media=Counted(image=lambda i=i: picture + i * 9))
    for i in range(3)
  ]
  gallery = job.embedder.embed_gallery(
    "test", ("i",), records=records, keep_batches=True
  )
  assert len(gallery.batches) == len(kept) == 2
  once = len(read)
  first, second = list(gallery.batches)
  assert len(read) > once  # not all was kept
  np.testing.assert_array_equal(first["image"][1, 0, 0, 0], [16] * 3)
  np.testing.assert_array_equal(second["image"][0, 0, 0, 0], [25] * 3)
