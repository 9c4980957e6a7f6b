"""Zero-shot classification: the class whose prompts are most similar.

A class is embedded as the mean of its prompts' embeddings, made unit-norm. The
class file has one name per line; a label is the number of the line, from 0, or
the name itself. The prompt file has one template per line with "{}" where the
name goes. Without a class file the distinct captions are the classes.

Source: CLIP, arXiv:2103.00020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from mico_jax.config import ConfigError
from mico_jax.evaluation import metrics
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.report import Protocol, Result


def read_lines(path: str, field: str) -> list[str]:
  """The non-empty lines of a text file that a config field names.

  Raises:
    ConfigError: if it cannot be read, is not UTF-8 or is empty.
  """
  try:
    text = epath.Path(path).read_bytes().decode("utf-8")
  except UnicodeDecodeError:
    raise ConfigError(f"{field}={path!r}: not UTF-8 text.") from None
  except OSError as error:
    raise ConfigError(
      f"{field}={path!r}: cannot be read "
      f"({error.strerror or type(error).__name__})."
    ) from None
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if not lines:
    raise ConfigError(f"{field}={path!r}: the file is empty.")
  return lines


def read_prompts(path: str) -> list[str]:
  """Templates of a prompt file; "" gives the bare class name.

  Raises:
    ConfigError: if a line has no "{}".
  """
  if not path:
    return ["{}"]
  lines = read_lines(path, "evaluation.prompts")
  for number, line in enumerate(lines, start=1):
    if "{}" not in line:
      raise ConfigError(
        f"evaluation.prompts={path!r}: line {number}, {line!r}, has no {{}} "
        "where the class name goes."
      )
  return lines


def class_index(label: Any, classes: Sequence[str]) -> int | None:
  """Number of the class that a label means; None: unknown."""
  if isinstance(label, str):
    if label in classes:
      return list(classes).index(label)
    label = int(label) if label.isdigit() else -1
  if isinstance(label, (int, np.integer)) and 0 <= label < len(classes):
    return int(label)
  return None


def class_embeddings(
  embedder: Embedder, classes: Sequence[str], templates: Sequence[str]
) -> tuple[Float[np.ndarray, "C E"], list[str]]:
  """Unit-norm embedding of each class, and all prompts that made them."""
  prompts = [t.replace("{}", name) for name in classes for t in templates]
  rows = embedder.embed_texts(prompts)
  mean = rows.reshape(len(classes), len(templates), -1).mean(axis=1)
  norm = np.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / np.maximum(norm, 1e-12), prompts


def zero_shot_results(
  embedder: Embedder,
  gallery: Gallery,
  letters: str,
  labels: Sequence[Any],
  classes: Sequence[str],
  templates: Sequence[str],
  protocol: Protocol,
) -> list[Result]:
  """Zero-shot accuracy of one set of letters.

  Args:
    embedder: embeds the prompts.
    gallery: the items.
    letters: of the items, e.g. "a".
    labels: of each item of the gallery; unknown ones are left out.
    classes: names.
    templates: with "{}".
    protocol: makes the results.
  """
  weights, prompts = class_embeddings(embedder, classes, templates)
  targets = [class_index(label, classes) for label in labels]
  items = [i for i in gallery.usable(letters) if targets[i] is not None]
  if not items:
    raise ConfigError(
      f"no sample has one of the {len(classes)} classes; found labels "
      f"{sorted({str(x) for x in labels})[:5]}; check evaluation.label and "
      "evaluation.classes."
    )
  scores = gallery.embeddings[letters][items] @ weights.T
  right = metrics.accuracy(
    scores.argmax(axis=1).tolist(), [targets[i] for i in items]
  )
  return [
    protocol.result(
      f"zero-shot/{letters}/accuracy",
      right,
      total=len(gallery.records),
      prompts=prompts,
      gallery=len(classes),
      baseline=1 / len(classes),
    )
  ]
