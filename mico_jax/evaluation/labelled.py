"""Features with labels, of which probes are trained and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax.config import Config, ConfigError
from mico_jax.data.identity import tell
from mico_jax.data.sources import open_source
from mico_jax.evaluation.evaluator import Job, Needs
from mico_jax.evaluation.features import Gallery
from mico_jax.evaluation.queries import evaluated_groups, labels_of


def check_source(config: Config) -> None:
  """The training source exists.

  Raises:
    ConfigError: for an unknown name.
  """
  name, sources = config.evaluation.probe_source, config.data.sources
  if name and name not in sources:
    raise ConfigError(
      f"evaluation.probe_source={name!r} is no data source; known: "
      f"{', '.join(sorted(sources))}."
    )


def probe_needs(config: Config) -> Needs | None:
  """Pooled features of the groups, if there is a training source."""
  groups = evaluated_groups(config)
  if not config.evaluation.probe_source or not groups:
    return None
  return Needs(embed=groups, pooled=True)


def training_gallery(job: Job) -> Gallery:
  """The gallery of `evaluation.probe_source`, read once for all evaluators.

  A note on stderr says how many of its samples are measured on as well.
  """
  name = job.config.evaluation.probe_source
  key = f"training gallery {name}"
  if key not in job.shared:
    train = job.embedder.embed_gallery(
      name,
      evaluated_groups(job.config),
      source=open_source(job.config, name),
      keep_pooled=True,
    )
    job.shared[key] = train
    both = len(same_items(job, train))
    if both:
      tell(
        f"evaluation.probe_source={name!r} holds {both} of the "
        f"{job.gallery.count()} samples that are measured on; results "
        "of probes say how well these were learnt by heart."
      )
  return job.shared[key]


def same_items(job: Job, train: Gallery) -> dict[int, list[int]]:
  """Measured sample -> the training samples that are this sample.

  Those that show the same to the bit, and those of equal ids where both sources
  read the same data.
  """
  found = _same_contents(job.gallery, train)
  sources, settings = job.config.data.sources, job.config.evaluation
  a, b = sources[job.protocol.source], sources[settings.probe_source]
  if (a.kind, a.path) != (b.kind, b.path):
    return found
  places: dict[str, list[int]] = {}
  for place, record in enumerate(train.records):
    if record is not None:
      places.setdefault(record.id, []).append(place)
  for i, record in enumerate(job.gallery.records):
    if record is not None and record.id in places:
      found[i] = sorted({*found.get(i, ()), *places[record.id]})
  return found


def _same_contents(measured: Gallery, train: Gallery) -> dict[int, list[int]]:
  """Measured sample -> training samples with the same inputs."""
  keys = sorted(set(measured.contents) & set(train.contents))
  shown = lambda gallery, i: tuple(int(gallery.contents[k][i]) for k in keys)
  there = lambda gallery, i: any(gallery.present[k][i] for k in keys)
  places: dict[tuple[int, ...], list[int]] = {}
  for i in range(len(train.records)):
    if there(train, i):
      places.setdefault(shown(train, i), []).append(i)
  return {
    i: places[shown(measured, i)]
    for i in range(len(measured.records))
    if there(measured, i) and shown(measured, i) in places
  }


def tell_unseen(
  what: str, labels: Sequence[Any], classes: Sequence[Any]
) -> None:
  """Says on stderr how many measured classes no training sample has."""
  there = set(classes)
  unseen = [x for x in labels if x not in there]
  if unseen:
    shown = ", ".join(map(repr, sorted(set(unseen), key=str)[:3]))
    known = ", ".join(map(repr, list(classes)[:3]))
    tell(
      f"{what}: {len(unseen)} of {len(labels)} samples have a class that no "
      f"training sample has ({shown}; known are such as {known}); they count "
      "as wrong."
    )


def labelled_rows(
  gallery: Gallery, context: str, field: str
) -> tuple[Float[np.ndarray, "N D"], list[Any], Int[np.ndarray, " N"]]:
  """Features and labels of the items that have both, and their indices."""
  labels = labels_of(gallery, field)
  items = [i for i in gallery.usable(context) if labels[i] is not None]
  features = np.concatenate([gallery.pooled[x] for x in context], axis=-1)
  return (
    features[items],
    [labels[i] for i in items],
    np.asarray(items, np.int64),
  )


def labelled_training(
  job: Job, context: str, what: str
) -> tuple[Float[np.ndarray, "N D"], list[Any], Int[np.ndarray, " N"]]:
  """`labelled_rows` of the training source.

  Args:
    job: the evaluation.
    context: letters.
    what: name of the evaluator, for the message.

  Raises:
    ConfigError: if no sample of it has a label.
  """
  field = job.config.evaluation.label or "label"
  rows = labelled_rows(training_gallery(job), context, field)
  if not len(rows[1]):
    raise ConfigError(
      f"{what}: no sample of {job.config.evaluation.probe_source!r} has a "
      f"field {field!r}; set evaluation.label."
    )
  return rows


def validation_part(
  labels: Sequence[Any], share: float, seed: int
) -> Bool[np.ndarray, " N"] | None:
  """A part of the training samples to choose settings on, never to fit.

  Args:
    labels: classes; each gives about the share of its samples, one or more.
    share: in (0, 1).
    seed: of the draw.

  Returns:
    Which samples belong to it; None: a class has a single sample.
  """
  rng = np.random.default_rng(seed)
  values, number = np.unique([str(x) for x in labels], return_inverse=True)
  out = np.zeros(len(labels), bool)
  for i in range(len(values)):
    members = rng.permutation(np.flatnonzero(number == i))
    if len(members) < 2:
      return None
    count = min(len(members) - 1, max(1, round(share * len(members))))
    out[members[:count]] = True
  return out
