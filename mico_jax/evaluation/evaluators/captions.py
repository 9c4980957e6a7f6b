"""Captions that the model writes, scored against true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from mico_jax.config import Config
from mico_jax.data.identity import tell
from mico_jax.evaluation import ptb
from mico_jax.evaluation.caption_metrics import score_captions
from mico_jax.evaluation.captions import Writer
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.examples import Entry
from mico_jax.evaluation.java_metrics import PROGRAMS, Unavailable
from mico_jax.evaluation.queries import described_items, kind_of, trained
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class Captions(Evaluator):
  """CIDEr, BLEU-4, ROUGE-L and token accuracy of written captions.

  Of the first `evaluation.captions` items, for each group that trains
  captioning. Items whose true captions have no word are left out and counted.
  """

  name: ClassVar = "captions"
  title: ClassVar = "caption"
  measures: ClassVar = {
    "CIDEr": Measure(unit=""),
    "BLEU-4": Measure(unit=""),
    "ROUGE-L": Measure(unit=""),
    "token accuracy": Measure(),
    **{name: Measure() for name in PROGRAMS},
  }

  # also METEOR and SPICE, by the Java programs in the package pycocoevalcap; a
  # note on stderr says why one cannot be run
  java: bool = False

  def needs(self, config: Config) -> Needs | None:
    """The arrays of the trained groups."""
    groups = trained(config, "captioning")
    if not config.evaluation.captions or not groups:
      return None
    return Needs(read=groups, batches=True)

  def measure(self, job: Job) -> list[Result]:
    """Scores of each group that has an item with a caption."""
    results = []
    total = job.gallery.count(job.config.evaluation.captions)
    end = job.gallery.end(total)
    for context in trained(job.config, "captioning"):
      kind = kind_of(job.config, context)
      items, texts = described_items(job.gallery, context, kind, 0, limit=end)
      worded = [any(map(ptb.tokenize, captions)) for captions in texts]
      items = items[np.asarray(worded, bool)]
      texts = [
        t for t, has_words in zip(texts, worded, strict=True) if has_words
      ]
      if texts:
        results += _results(
          job, context, items, texts, kind, total, java=self.java
        )
    return results


def _results(
  job: Job,
  letters: str,
  items: Int[np.ndarray, " M"],
  texts: Sequence[Sequence[str]],
  kind: str,
  total: int,
  *,
  java: bool,
) -> list[Result]:
  """Scores of one group.

  Args:
    job: the evaluation.
    letters: of the context.
    items: indices in the gallery.
    texts: true captions of each item.
    kind: caption kind.
    total: items that the protocol asks for.
    java: whether to run the Java programs as well.
  """
  writer, protocol = Writer(job.embedder), job.protocol
  written = writer.captions(job.gallery, letters, items)
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
    f"caption/{letters}/{name}",
    values,
    total=total,
    prompts=[text for captions in texts for text in captions],
  )
  accuracy = result("token accuracy", tokens)

  def corpus(name: str, value: float) -> Result:
    """A property of the corpus, not a mean over items."""
    return dataclasses.replace(
      accuracy,
      name=f"caption/{letters}/{name}",
      value=value,
      interval=None,
      n=len(written),
      values=None,
    )

  programs = _by_programs(written, texts) if java else {}
  return [
    result("CIDEr", scores.cider_items),
    corpus("BLEU-4", scores.bleu[3]),
    result("ROUGE-L", scores.rouge_l_items),
    accuracy,
    *(corpus(name, value) for name, value in programs.items()),
  ]


def _by_programs(
  written: Sequence[str], texts: Sequence[Sequence[str]]
) -> dict[str, float]:
  """Scores of the Java programs that can be run; a note names the others."""
  ours = [ptb.tokenize(text) for text in written]
  theirs = [[ptb.tokenize(text) for text in group] for group in texts]
  scores = {}
  for name, score in PROGRAMS.items():
    try:
      scores[name] = score(ours, theirs)
    except Unavailable as error:
      tell(f"no {name}: {error}")
  return scores
