"""Question answering over every question of every item.

The answer is written freely. It is right if it equals the answer word for word
(as the tokenizer writes both), or counts by how many of ten people gave it
(`mico_jax.evaluation.vqa_answers`). An answer that the tokenizer cannot write
at all is never met. Questions of items that are missing count as asked and not
scored.

Source: MiCo, arXiv:2406.09412; VAST, arXiv:2305.18500.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np

from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import Choice
from mico_jax.data.records import Record
from mico_jax.evaluation import metrics
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.examples import Entry
from mico_jax.evaluation.queries import trained
from mico_jax.evaluation.results import Result
from mico_jax.evaluation.vqa_answers import PEOPLE, soft_accuracy
from mico_jax.modalities import DecodeError

EXACT = "accuracy"
SOFT = "soft accuracy"


@dataclasses.dataclass(frozen=True)
class OpenQuestions(Evaluator):
  """Accuracy of the answers to all questions of all items.

  For each group that trains question answering. Chance is the best constant:
  the most frequent answer.
  """

  # "exact": equal to the answer; "vqa": by the answers of ten people, in the
  # field `answers`
  score: Annotated[str, Choice("exact", "vqa")] = "exact"
  name: ClassVar = "open_questions"
  title: ClassVar = "answers"
  measures: ClassVar = {EXACT: Measure(), SOFT: Measure()}

  def needs(self, config: Config) -> Needs | None:
    """The arrays of the trained groups."""
    groups = trained(config, "question_answering")
    return Needs(read=groups, batches=True) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group that has an item with a question."""
    contexts = trained(job.config, "question_answering")
    found = [self._accuracy(job, context) for context in contexts]
    if not any(found):
      raise ConfigError(
        f"open_questions: no sample of {job.protocol.source!r} that was read "
        "has a question; expected fields `question` and `answer`, or "
        "`questions`."
      )
    return [result for result in found if result is not None]

  def _accuracy(self, job: Job, letters: str) -> Result | None:
    """The result of one group; None: nothing could be asked."""
    asked = _asked(job, letters)
    if not asked:
      return None
    records = job.gallery.records
    items = np.asarray([item for item, _ in asked], np.int64)
    questions = [_record(records[i]).questions[n][0] for i, n in asked]
    writer = Writer(job.embedder)
    written = writer.answers(job.gallery, letters, items, questions)
    plain = _as_written(job)
    if self.score == "exact":
      right = [plain(_record(records[i]).questions[n][1]) for i, n in asked]
      values = metrics.accuracy(written, right)
      values *= np.asarray([bool(text) for text in right])
      true: Sequence[Sequence[str]] = [[text] for text in right]
      most = Counter(right).most_common(1)[0][1] / len(right)
    else:
      given = [_answers(_record(records[i]), n) for i, n in asked]
      known = [[plain(text) for text in texts] for texts in given]
      values = np.asarray(
        [soft_accuracy(a, k) for a, k in zip(written, known, strict=True)]
      )
      # Nothing is no answer, though people's may be none that can be written.
      values *= np.asarray([bool(text.strip()) for text in written])
      true, most = [list(dict.fromkeys(texts)) for texts in known], None
    if job.examples is not None:
      job.examples.add_written(
        f"{self.title}/{letters}",
        letters,
        [
          Entry(text=question, item=int(item))
          for item, question in zip(items, questions, strict=True)
        ],
        written,
        true,
        values,
      )
    return job.protocol.result(
      f"{self.title}/{letters}/{EXACT if self.score == 'exact' else SOFT}",
      values,
      total=len(asked) + _lost(job, letters),
      items=items,
      prompts=questions,
      baseline=most,
    )


def _record(record: Record | None) -> Record:
  if record is None:
    raise ValueError("a sample that could not be read was asked a question.")
  return record


def _asked(job: Job, letters: str) -> list[tuple[int, int]]:
  """(item, number of its question) of all questions that can be asked."""
  asked = []
  for item in job.gallery.usable(letters):
    record = job.gallery.records[item]
    if record is not None:
      asked += [(int(item), n) for n in range(len(record.questions))]
  return asked


def _lost(job: Job, letters: str) -> int:
  """Number of questions of the items that cannot be shown."""
  usable = {int(i) for i in job.gallery.usable(letters)}
  records = job.gallery.records
  count = 0
  for i in range(len(records)):
    if i not in usable and i not in job.gallery.repeats:
      try:
        count += max(1, len(job.source.record(i).questions))
      except DecodeError:
        count += 1
  return count


def _answers(record: Record, number: int) -> Sequence[str]:
  """The answers of ten people to a question.

  Raises:
    ConfigError: for another number of answers.
  """
  listed: Any = record.fields.get("answers")
  given = listed[number] if listed and number < len(listed) else ()
  if len(given) != PEOPLE:
    raise ConfigError(
      f"sample {record.id}, question {record.questions[number][0]!r:.80}: "
      f"{len(given)} answers; soft accuracy needs those of {PEOPLE} people. "
      "Use open_questions.score='exact' for one answer."
    )
  return [str(answer) for answer in given]


def _as_written(job: Job) -> Any:
  """Text -> how the tokenizer writes it: case and spacing are not asked."""
  tokenizer = job.embedder.tokenizer
  return lambda text: tokenizer.decode(
    tokenizer.encode(text, 2 * len(text.encode()) + 8)
  )
