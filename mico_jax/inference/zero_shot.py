"""Zero-shot classification by prompts, source: CLIP, arXiv:2103.00020, 3.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.data.tokenizer import Tokenizer
from mico_jax.inference.batching import Batching
from mico_jax.inference.class_names import check_class_names
from mico_jax.models import MiCo

EmbedTexts = Callable[[list[str]], Float[np.ndarray, "P E"]]


@dataclasses.dataclass(frozen=True)
class Classified:
  """Inputs against classes.

  Attributes:
    classes: names, one per column.
    similarity: cosine of the embeddings, in [-1, 1].
    probability: softmax of the similarities, divided by the temperature that
      the checkpoint learned; rows sum to 1.
  """

  classes: tuple[str, ...]
  similarity: Float[np.ndarray, "N C"]
  probability: Float[np.ndarray, "N C"]

  def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
    """The most probable classes of each input, with their probabilities.

    Args:
      k: how many; at most all. An input without a value (NaN) has none.
    """
    best = np.argsort(-self.probability, axis=1, kind="stable")[:, :k]
    return [
      []
      if np.isnan(row).any()
      else [(self.classes[c], float(row[c])) for c in order]
      for row, order in zip(self.probability, best, strict=True)
    ]


def class_embeddings(
  embed: EmbedTexts,
  tokenizer: Tokenizer,
  classes: Sequence[str],
  templates: Sequence[str],
) -> tuple[Float[np.ndarray, "C E"], list[str]]:
  """Unit-norm embedding of each class, and all prompts that made them.

  A class is the mean of its prompts' embeddings, made unit-norm.

  Args:
    embed: texts -> unit-norm embeddings.
    tokenizer: of the checkpoint.
    classes: names.
    templates: with "{}" where the name goes.

  Raises:
    ConfigError: for names that the tokenizer reads as nothing.
  """
  check_class_names(tokenizer, classes)
  prompts = [t.replace("{}", name) for name in classes for t in templates]
  rows = embed(prompts).reshape(len(classes), len(templates), -1)
  mean = rows.mean(axis=1)
  norm = np.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / np.maximum(norm, 1e-12), prompts


def check_templates(templates: Sequence[str]) -> None:
  """Checks that every template has a place for the name.

  Raises:
    ValueError: naming one that has none.
  """
  for template in templates:
    if "{}" not in template:
      raise ValueError(
        f"template {template!r} has no {{}} where the class name goes."
      )


def classified(
  embeddings: Float[np.ndarray, "N E"],
  weights: Float[np.ndarray, "C E"],
  classes: Sequence[str],
  temperature: float,
) -> Classified:
  """Compares embeddings with those of classes.

  Args:
    embeddings: of the inputs, unit-norm.
    weights: of the classes, unit-norm.
    classes: their names.
    temperature: by which similarities are divided.
  """
  similarity = embeddings @ weights.T
  logits = similarity.astype(np.float64) / temperature
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  return Classified(tuple(classes), similarity, shares.astype(np.float32))


class ZeroShotMethods(Batching):
  """Methods of `OmniModel` that classify.

  Attributes:
    model: of the checkpoint.
    params: its parameters.
    tokenizer: of the checkpoint.
  """

  model: MiCo
  params: Any
  tokenizer: Tokenizer

  def embed(self, **inputs: Any) -> dict[str, Float[np.ndarray, "N E"]]:
    """See `OmniModel`."""
    raise NotImplementedError

  def zero_shot(
    self,
    images: Any = None,
    classes: Sequence[str] = (),
    templates: str | Sequence[str] = "{}",
    *,
    on_error: str = "raise",
    batch_size: int = 0,
    progress: bool | None = None,
    **inputs: Any,
  ) -> Classified:
    """Classifies inputs by the texts they are most similar to.

    Args:
      images: pictures; None: other modalities, such as `audio=[...]`.
      classes: their names.
      templates: prompts with "{}" where the name goes, such as "a photo of a
        {}"; a class is the mean of its prompts.
      on_error: see `embed`.
      batch_size: see `embed`.
      progress: see `embed`.
      **inputs: aligned lists; several modalities use their joint head.

    Raises:
      ValueError: for no classes, a template without "{}", or a modality or
        head that the checkpoint lacks.
      DecodeError: for an input that cannot be read.
    """
    inputs = inputs if images is None else {"image": images, **inputs}
    if isinstance(classes, str) or not classes:
      raise ValueError(
        "classes must be a list of names, such as ['cat', 'dog']."
      )
    templates = [templates] if isinstance(templates, str) else list(templates)
    check_templates(templates)
    letters = self._letters(inputs)
    embeddings = self.embed(
      groups=letters if len(inputs) > 1 else (),
      on_error=on_error,
      batch_size=batch_size,
      progress=progress,
      **inputs,
    )
    weights, _ = class_embeddings(
      lambda texts: self.embed(text=texts, progress=False)["text"],
      *(self.tokenizer, classes, templates),
    )
    temperature = float(self.model.temperature(self.params, (letters,)))
    (rows,) = embeddings.values()
    return classified(rows, weights, classes, temperature)
