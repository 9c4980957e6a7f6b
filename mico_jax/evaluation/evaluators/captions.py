"""Captions that the model writes, scored against true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from mico_jax.config import Config
from mico_jax.evaluation.caption_metrics import score_captions
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.examples import Entry
from mico_jax.evaluation.queries import described_items, kind_of, trained
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class Captions(Evaluator):
  """CIDEr, BLEU-4, ROUGE-L and token accuracy of written captions.

  Of the first `evaluation.captions` items, for each group that trains
  captioning.
  """

  name: ClassVar = "captions"
  title: ClassVar = "caption"
  measures: ClassVar = {
    "CIDEr": Measure(unit=""),
    "BLEU-4": Measure(unit=""),
    "ROUGE-L": Measure(unit=""),
    "token accuracy": Measure(),
  }

  def needs(self, config: Config) -> Needs | None:
    """The arrays of the trained groups."""
    groups = trained(config, "captioning")
    if not config.evaluation.captions or not groups:
      return None
    return Needs(read=groups, batches=True)

  def measure(self, job: Job) -> list[Result]:
    """Scores of each group that has an item with a caption."""
    results = []
    total = min(job.config.evaluation.captions, len(job.gallery.records))
    for context in trained(job.config, "captioning"):
      kind = kind_of(job.config, context)
      items, texts = described_items(job.gallery, context, kind, 0, limit=total)
      if texts:
        results += _results(job, context, items, texts, kind, total)
    return results


def _results(
  job: Job,
  letters: str,
  items: Int[np.ndarray, " M"],
  texts: Sequence[Sequence[str]],
  kind: str,
  total: int,
) -> list[Result]:
  """Scores of one group.

  Args:
    job: the evaluation.
    letters: of the context.
    items: indices in the gallery.
    texts: true captions of each item.
    kind: caption kind.
    total: items that the protocol asks for.
  """
  writer, protocol = Writer(job.embedder), job.protocol
  written = writer.captions(job.gallery, letters, items, kind)
  scores = score_captions(written, texts)
  if job.examples is not None:
    job.examples.add_written(
      f"caption/{letters}",
      letters,
      [Entry(item=int(item)) for item in items],
      written,
      texts,
      scores.cider_items,
    )
  tokens = writer.token_accuracy(
    job.gallery,
    letters,
    items,
    [captions[0] for captions in texts],
    kind,
    seed=protocol.seed,
  )
  result = lambda name, values: protocol.result(
    f"caption/{letters}/{name}", values, total=total, prompts=written
  )
  accuracy = result("token accuracy", tokens)
  bleu = dataclasses.replace(
    accuracy,
    name=f"caption/{letters}/BLEU-4",
    value=scores.bleu[3],
    interval=None,  # a property of the corpus, not a mean over items
    n=len(written),
    values=None,
  )
  return [
    result("CIDEr", scores.cider_items),
    bleu,
    result("ROUGE-L", scores.rouge_l_items),
    accuracy,
  ]
