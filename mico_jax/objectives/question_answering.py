"""Question answering: captioning of the answer behind the question.

Question tokens see the question in both directions and not the answer; answer
tokens see the question and the answer to their left. A causal tower reads both
from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mico_jax.config import QuestionAnsweringConfig
from mico_jax.modalities import letters
from mico_jax.objectives.base import Inputs, Need, Objective, Output
from mico_jax.objectives.captioning import (
  num_scored,
  scored_text,
  token_output,
)


@dataclass(frozen=True)
class QuestionAnswering(Objective):
  """Cross-entropy of the answer given question and context.

  Source: the fine-tuning for question answering of VAST (arXiv:2305.18500),
  which MiCo keeps: questions are blind to the answer.
  """

  config: QuestionAnsweringConfig = field(
    default_factory=QuestionAnsweringConfig
  )
  name: ClassVar[str] = "question_answering"
  needs: ClassVar[frozenset[Need]] = frozenset({"context", "question_answer"})
  curves: ClassVar[tuple[str, ...]] = ("token_accuracy",)
  masking_options: ClassVar[tuple[str, ...]] = ("mask_prob",)

  def _row_weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    weights = inputs.row_weight(group)
    for name in ("answer", "question"):
      weights = weights * inputs.text_weight(inputs.batch[name])
    return weights

  def weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Objective`: how many tokens of the answer are scored."""
    _, labels = scored_text(
      inputs, self.name, group, inputs.batch["answer"], self.config.mask_prob
    )
    return self._row_weights(inputs, group) * num_scored(labels)

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    question, answer = inputs.batch["question"], inputs.batch["answer"]
    site = f"question_answering/{group}"
    read, labels = scored_text(
      inputs, self.name, group, answer, self.config.mask_prob
    )
    prefix = question.shape[1]
    both_ways = inputs.model.tower.reading == "bidirectional"
    hidden = inputs.model.text(
      inputs.params,
      jnp.concatenate([question, read], axis=1),
      attention="prefix_causal" if both_ways else "causal",
      prefix_length=prefix if both_ways else None,
      context=inputs.contexts[letters(group)],
      row_keys=inputs.dropout_keys(site),
      train=inputs.train,
    )
    return token_output(
      inputs,
      hidden[:, prefix:],
      labels,
      self._row_weights(inputs, group),
    )
