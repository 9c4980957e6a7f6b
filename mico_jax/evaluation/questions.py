"""Question answering: the generated string must equal the answer.

One question per item, among those that the shown modalities can answer; which
one rotates with the item, so that all kinds of questions are asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mico_jax.data.records import Record
from mico_jax.evaluation import metrics
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.report import Protocol, Result
from mico_jax.modalities import shown


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


def question_results(
  writer: Writer,
  gallery: Gallery,
  letters: str,
  asked: Sequence[tuple[int, str, str]],
  protocol: Protocol,
  *,
  total: int,
) -> list[Result]:
  """Share of questions answered exactly.

  The baseline is the best constant: the most frequent answer.

  Args:
    writer: writes the answers.
    gallery: the items, made with `keep_batches`.
    letters: of the context.
    asked: from `pick_questions`.
    protocol: makes the results.
    total: items that the protocol asks for.
  """
  items = np.asarray([item for item, _, _ in asked], np.int64)
  questions = [question for _, question, _ in asked]
  tokenizer = writer.embedder.tokenizer
  # As the tokenizer writes it: case and spacing are not what is asked.
  plain = lambda text: tokenizer.decode(
    tokenizer.encode(text, 2 * len(text.encode()) + 8)
  )
  answers = [plain(answer) for _, _, answer in asked]
  written = writer.answers(gallery, letters, items, questions)
  most = Counter(answers).most_common(1)[0][1] if answers else 0
  return [
    protocol.result(
      f"question/{letters}/accuracy",
      metrics.accuracy(written, answers),
      total=total,
      prompts=questions,
      baseline=most / max(1, len(answers)),
    )
  ]
