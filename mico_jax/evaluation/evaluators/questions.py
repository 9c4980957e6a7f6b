"""Question answering: the generated string must equal the answer.

One question per item, among those that the shown modalities can answer; which
one rotates with the item, so that all kinds of questions are asked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from mico_jax.config import Config
from mico_jax.data.records import Record
from mico_jax.evaluation import metrics
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.examples import Entry
from mico_jax.evaluation.queries import trained
from mico_jax.evaluation.results import Result
from mico_jax.modalities import shown


@dataclasses.dataclass(frozen=True)
class Questions(Evaluator):
  """Share of questions that the model answers word for word.

  One question of each of the first `evaluation.questions` items, for each
  group that trains question answering. Chance is the best constant: the most
  frequent answer.
  """

  name: ClassVar = "questions"
  title: ClassVar = "question"
  measures: ClassVar = {"accuracy": Measure()}

  def needs(self, config: Config) -> Needs | None:
    """The arrays of the trained groups."""
    groups = trained(config, "question_answering")
    if not config.evaluation.questions or not groups:
      return None
    return Needs(read=groups, batches=True)

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group that has an item with a fitting question."""
    results = []
    records = job.gallery.records
    total = job.gallery.count(job.config.evaluation.questions)
    end = job.gallery.end(total)
    for context in trained(job.config, "question_answering"):
      items = job.gallery.usable(context)
      asked = pick_questions(records, items[items < end], context)
      if asked:
        results.append(_accuracy(job, context, asked, total))
    return results


def pick_questions(
  records: Sequence[Record | None],
  items: Int[np.ndarray, " M"],
  letters: str,
) -> list[tuple[int, str, str]]:
  """(item, question, answer) for the items that have a fitting question.

  Args:
    records: of the gallery.
    items: indices of those that may be asked.
    letters: shown modalities; an image counts as seeing what a video shows.
  """
  seen = shown(letters)
  out = []
  for item in items:
    record = records[int(item)]
    if record is None:
      continue
    fitting = [q for q in record.questions if set(q[2]) <= seen]
    if fitting:
      question, answer, _ = fitting[int(item) % len(fitting)]
      out.append((int(item), question, answer))
  return out


def _accuracy(
  job: Job, letters: str, asked: Sequence[tuple[int, str, str]], total: int
) -> Result:
  """Share of questions answered exactly.

  Args:
    job: the evaluation.
    letters: of the context.
    asked: from `pick_questions`.
    total: items that the protocol asks for.
  """
  items = np.asarray([item for item, _, _ in asked], np.int64)
  questions = [question for _, question, _ in asked]
  tokenizer = job.embedder.tokenizer
  # As the tokenizer writes it: case and spacing are not what is asked.
  plain = lambda text: tokenizer.decode(
    tokenizer.encode(text, 2 * len(text.encode()) + 8)
  )
  answers = [plain(answer) for _, _, answer in asked]
  writer = Writer(job.embedder)
  written = writer.answers(job.gallery, letters, items, questions)
  right = metrics.accuracy(written, answers)
  if job.examples is not None:
    job.examples.add_written(
      f"question/{letters}",
      letters,
      [
        Entry(text=question, item=int(item))
        for item, question in zip(items, questions, strict=True)
      ],
      written,
      [[answer] for answer in answers],
      right,
    )
  most = Counter(answers).most_common(1)[0][1]
  return job.protocol.result(
    f"question/{letters}/accuracy",
    right,
    total=total,
    prompts=questions,
    baseline=most / len(answers),
  )
