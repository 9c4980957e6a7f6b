"""Linear probe on the pooled features of the encoder."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from mico_jax.config import Config, ConfigError
from mico_jax.data.sources import open_source
from mico_jax.evaluation import metrics
from mico_jax.evaluation.evaluator import Evaluator, Job, Measure, Needs
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.linear_probe import fit_probe
from mico_jax.evaluation.queries import evaluated_groups, labels_of
from mico_jax.evaluation.results import Result


@dataclasses.dataclass(frozen=True)
class LinearProbe(Evaluator):
  """Linear probe on frozen features, trained on `evaluation.probe_source`.

  For each of `evaluation.groups`; classes are the values of
  `evaluation.label`.
  """

  name: ClassVar = "linear_probe"
  title: ClassVar = "linear probe"
  measures: ClassVar = {"accuracy": Measure()}

  def check(self, config: Config) -> None:
    """The source exists."""
    name, sources = config.evaluation.probe_source, config.data.sources
    if name and name not in sources:
      raise ConfigError(
        f"evaluation.probe_source={name!r} is no data source; known: "
        f"{', '.join(sorted(sources))}."
      )

  def needs(self, config: Config) -> Needs | None:
    """Pooled features of the groups."""
    groups = evaluated_groups(config)
    if not config.evaluation.probe_source or not groups:
      return None
    return Needs(embed=groups, pooled=True)

  def measure(self, job: Job) -> list[Result]:
    """Accuracy of each group."""
    contexts = evaluated_groups(job.config)
    name = job.config.evaluation.probe_source
    train = job.embedder.embed_gallery(
      name,
      contexts,
      source=open_source(job.config, name),
      keep_pooled=True,
    )
    return [_accuracy(job, train, context) for context in contexts]


def _rows(
  gallery: Gallery, context: str, field: str
) -> tuple[Float[np.ndarray, "N D"], list[Any]]:
  """Features and labels of the items that have both."""
  labels = labels_of(gallery, field)
  items = [i for i in gallery.usable(context) if labels[i] is not None]
  features = np.concatenate([gallery.pooled[x] for x in context], axis=-1)
  return features[items], [labels[i] for i in items]


def _accuracy(job: Job, train: Gallery, context: str) -> Result:
  """Accuracy of one group.

  Raises:
    ConfigError: if no sample of the training source has a label.
  """
  field = job.config.evaluation.label or "label"
  features, labels = _rows(train, context, field)
  if not labels:
    raise ConfigError(
      f"linear probe: no sample of {job.config.evaluation.probe_source!r} has "
      f"a field {field!r}; set evaluation.label."
    )
  classes = sorted(set(labels), key=str)
  number = {label: i for i, label in enumerate(classes)}
  probe = fit_probe(
    features, np.asarray([number[x] for x in labels]), len(classes)
  )
  test_features, test_labels = _rows(job.gallery, context, field)
  chosen = metrics.predictions(probe.logits(test_features))
  predicted = [classes[i] if i >= 0 else None for i in chosen]
  return job.protocol.result(
    f"linear probe/{context}/accuracy",
    metrics.accuracy(predicted, test_labels),
    total=len(job.gallery.records),
    gallery=len(classes),
    baseline=1 / len(classes),
  )
