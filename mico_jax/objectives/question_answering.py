"""Question answering: captioning of the answer behind the question.

Question tokens see the question in both directions and not the answer; answer
tokens see the question and the answer to their left. A causal tower reads both
from left to right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mico_jax.config import QuestionAnsweringConfig
from mico_jax.objectives.base import Inputs, Need
from mico_jax.objectives.captioning import Captioning


@dataclass(frozen=True)
class QuestionAnswering(Captioning):
  """Cross-entropy of the answer given question and context.

  Source: the fine-tuning for question answering of VAST (arXiv:2305.18500),
  which MiCo keeps: questions are blind to the answer.
  """

  config: Any = field(default_factory=QuestionAnsweringConfig)
  name: ClassVar[str] = "question_answering"
  needs: ClassVar[frozenset[Need]] = frozenset({"context", "question_answer"})

  def target(self, inputs: Inputs, group: str) -> Int[Array, "B L"]:
    """The answer."""
    del group
    return inputs.batch["answer"]

  def row_weights(self, inputs: Inputs, group: str) -> Float[Array, " B"]:
    """See `Captioning`: 0 without a question or an answer."""
    weights = inputs.row_weight(group)
    for name in ("answer", "question"):
      weights = weights * inputs.text_weight(inputs.batch[name])
    return weights

  def hidden(
    self, inputs: Inputs, group: str, ids: Int[Array, "B L"]
  ) -> Float[Array, "B L W"]:
    """See `Captioning`: states of the answer, read behind the question."""
    question = inputs.batch["question"]
    prefix = question.shape[1]
    both_ways = inputs.model.tower.reading == "bidirectional"
    hidden = self.read(
      inputs,
      group,
      jnp.concatenate([question, ids], axis=1),
      attention="prefix_causal" if both_ways else "causal",
      prefix_length=prefix if both_ways else None,
    )
    return hidden[:, prefix:]
