"""Question answering: captioning of the answer behind the question.

Question tokens see the question in both directions and not the answer; answer
tokens see the question and the answer to their left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax.numpy as jnp

from mico_jax.config import QuestionAnsweringConfig
from mico_jax.modalities import letters
from mico_jax.objectives import draws
from mico_jax.objectives.base import Inputs, Need, Objective, Output
from mico_jax.objectives.captioning import token_output


@dataclass(frozen=True)
class QuestionAnswering(Objective):
  """Cross-entropy of the masked answer given question and context.

  Source: mico.md section 3 (QA fine-tuning).
  """

  config: QuestionAnsweringConfig = field(
    default_factory=QuestionAnsweringConfig
  )
  name: ClassVar[str] = "question_answering"
  needs: ClassVar[frozenset[Need]] = frozenset({"context", "question_answer"})

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """See `Objective`."""
    question, answer = inputs.batch["question"], inputs.batch["answer"]
    site = f"question_answering/{group}"
    given = inputs.given(self.name, group)
    if given:
      masked, labels = given["ids"], given["labels"]
    else:
      masked, labels = draws.mask_tokens(
        inputs.keys(site),
        answer,
        info=inputs.tokenizer,
        prob=self.config.mask_prob,
      )
    prefix = question.shape[1]
    hidden = inputs.model.text(
      inputs.params,
      jnp.concatenate([question, masked], axis=1),
      attention="prefix_causal",
      prefix_length=prefix,
      context=inputs.contexts[letters(group)],
      row_keys=inputs.dropout_keys(site),
      train=inputs.train,
    )
    weights = inputs.row_weight(group) * inputs.text_weight(answer)
    return token_output(
      inputs,
      hidden[:, prefix:],
      labels,
      weights * inputs.text_weight(question),
    )
