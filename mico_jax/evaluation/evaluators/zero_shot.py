"""Zero-shot classification: the class whose prompts are most similar.

A class is embedded as the mean of its prompts' embeddings, made unit-norm. The
class file has one name per line; a label is the number of the line, from 0, or
the name itself. A score that several classes share is right for none of them.
The prompt file has one template per line with "{}" where the
name goes. Without a class file the distinct captions are the classes.

Source: CLIP, arXiv:2103.00020, section 3.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from etils import epath

from mico_jax.config import Config, ConfigError
from mico_jax.data.identity import tell
from mico_jax.evaluation import metrics
from mico_jax.evaluation.class_accuracy import MEASURES, class_results
from mico_jax.evaluation.evaluator import Evaluator, Job, Needs
from mico_jax.evaluation.examples import Entry
from mico_jax.evaluation.queries import (
  evaluated_groups,
  kind_of,
  labels_of,
  texts_of,
)
from mico_jax.evaluation.results import Result
from mico_jax.inference.zero_shot import class_embeddings


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluator):
  """Zero-shot classification by the most similar class prompt.

  For each of `evaluation.groups`. The classes are the lines of
  `evaluation.classes`, put into the templates of `evaluation.prompts`; without
  that file they are the distinct captions.
  """

  # names of the classes, instead of the files
  names: tuple[str, ...] = ()
  # the labels that mean them; (): the names, or their numbers
  labels: tuple[str, ...] = ()
  # prompts, with {} for the name
  templates: tuple[str, ...] = ("{}",)
  name: ClassVar = "zero_shot"
  title: ClassVar = "zero-shot"
  measures: ClassVar = MEASURES
  cheap: ClassVar = True

  def check(self, config: Config) -> None:
    """The files can be read, and the options fit each other."""
    check_options("zero_shot", self.names, self.labels, self.templates)
    if config.evaluation.classes:
      read_lines(config.evaluation.classes, "evaluation.classes")
    read_prompts(config.evaluation.prompts)

  def needs(self, config: Config) -> Needs | None:
    """The groups."""
    groups = evaluated_groups(config)
    return Needs(embed=groups) if groups else None

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group."""
    settings = job.config.evaluation
    results = []
    for context in evaluated_groups(job.config):
      labels = labels_of(job.gallery, settings.label or "label")
      if self.names:
        classes, templates = list(self.names), list(self.templates)
      elif settings.classes:
        classes = read_lines(settings.classes, "evaluation.classes")
        templates = read_prompts(settings.prompts)
      else:
        labels, classes = _caption_classes(job, context)
        templates = ["{}"]  # captions are sentences already
      if self.names and self.labels:
        number = {label: i for i, label in enumerate(self.labels)}
        targets = [number.get(str(label)) for label in labels]
      else:
        targets = [class_index(label, classes) for label in labels]
      tell_unknown(
        f"{self.title}/{context}",
        [x for x, t in zip(labels, targets, strict=True) if t is None],
      )
      results += _accuracy(job, context, labels, targets, classes, templates)
    return results


def tell_unknown(name: str, labels: Sequence[Any]) -> None:
  """Says on stderr how many labels are no class; None is no label."""
  unknown = [str(label) for label in labels if label is not None]
  if unknown:
    shown = ", ".join(map(repr, sorted(set(unknown))[:3]))
    tell(
      f"{name}: {len(unknown)} samples have a label that is no class "
      f"({shown}); they do not count."
    )


def check_options(
  name: str,
  names: Sequence[str],
  labels: Sequence[str],
  templates: Sequence[str],
) -> None:
  """Checks classes and templates that are given as options.

  Raises:
    ConfigError: for labels without a name each, repeated labels, or a template
      without "{}".
  """
  where = f"evaluation.options.{name}"
  if labels and len(labels) != len(names):
    raise ConfigError(
      f"{where}: {len(labels)} labels for {len(names)} names; give one each."
    )
  if len(set(labels)) < len(labels):
    raise ConfigError(f"{where}.labels: a label stands for two classes.")
  for template in templates:
    if "{}" not in template:
      raise ConfigError(
        f"{where}.templates: {template!r} has no {{}} where the class name "
        "goes."
      )


def read_lines(path: str, field: str) -> list[str]:
  """The non-empty lines of a text file that a config field names.

  Raises:
    ConfigError: if it cannot be read, is not UTF-8 or is empty.
  """
  try:
    text = epath.Path(path).read_bytes().decode("utf-8-sig")
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
  """Number of the class that a label means; None: unknown.

  Raises:
    ConfigError: for a number that is the name of another class.
  """
  if isinstance(label, str):
    if label in classes:
      return list(classes).index(label)
    label = int(label) if label.isdecimal() else -1
  if isinstance(label, (int, np.integer)) and not isinstance(label, bool):
    name = str(label)
    if name in classes and (
      label >= len(classes) or classes[int(label)] != name
    ):
      raise ConfigError(
        f"label {label} is the number of a class, counted from 0, and the name "
        f"of another one (number {list(classes).index(name)}); write labels as "
        "texts, or give the option `labels` beside `names`."
      )
    return int(label) if 0 <= label < len(classes) else None
  return None


def _caption_classes(
  job: Job, context: str
) -> tuple[list[str | None], list[str]]:
  """The caption of each item, and the distinct ones as classes."""
  kind = kind_of(job.config, context)
  texts = [texts_of(record, kind, 1) for record in job.gallery.records]
  labels = [captions[0] if captions else None for captions in texts]
  return labels, sorted({text for text in labels if text is not None})


def _accuracy(
  job: Job,
  letters: str,
  labels: Sequence[Any],
  targets: Sequence[int | None],
  classes: Sequence[str],
  templates: Sequence[str],
) -> list[Result]:
  """Zero-shot accuracy of one set of letters.

  Args:
    job: the evaluation.
    letters: of the items, e.g. "a".
    labels: of each item of the gallery.
    targets: number of the class that each means; None: left out.
    classes: names.
    templates: with "{}".

  Raises:
    ConfigError: if no item has one of the classes.
  """
  embedder = job.embedder
  weights, prompts = class_embeddings(
    embedder.embed_texts, embedder.tokenizer, classes, templates
  )
  items = [i for i in job.gallery.usable(letters) if targets[i] is not None]
  if not items:
    raise ConfigError(
      f"no sample has one of the {len(classes)} classes; found labels "
      f"{sorted({str(x) for x in labels})[:5]}; check evaluation.label and "
      "evaluation.classes."
    )
  scores = job.gallery.embeddings[letters][items] @ weights.T
  right = np.asarray([targets[i] for i in items])
  if job.examples is not None:
    relevant = right[:, None] == np.arange(len(classes))[None, :]
    job.examples.add_ranking(
      f"zero-shot/{letters}",
      letters,
      metrics.ranks(scores, relevant),
      lambda row: (scores[row].astype(np.float64), relevant[row]),
      lambda row: Entry(item=int(items[row])),
      lambda column: Entry(text=classes[column]),
    )
  return class_results(
    job,
    f"zero-shot/{letters}",
    metrics.predictions(scores).tolist(),
    right.tolist(),
    classes=len(classes),
    gallery=len(classes),
    prompts=prompts,
  )
