"""Suites: which measurements make up an evaluation, on what gallery.

A suite reads its gallery once, embeds every modality once, and asks all its
questions of those embeddings. What it measures follows from the config: the
groups of `evaluation.groups`, or those the tasks train, and of matching,
captions and questions those the tasks train.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from mico_jax.aliases import Params
from mico_jax.config import Config, ConfigError
from mico_jax.data import language
from mico_jax.data.records import Record
from mico_jax.data.samples import groups_of, keys_of
from mico_jax.data.sources import Source, open_source
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.data.worlds import OmniWorldSource
from mico_jax.evaluation import linear_probe, metrics, retrieval, zero_shot
from mico_jax.evaluation.captions import Writer, caption_results
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.questions import pick_questions, question_results
from mico_jax.evaluation.report import Protocol, Result
from mico_jax.kernels import target
from mico_jax.modalities import WHOLE, DecodeError, has_words, letters
from mico_jax.models import MiCo, build
from mico_jax.world import shown_facts
from mico_jax.world.ceiling import facts_key


@dataclasses.dataclass(frozen=True)
class Job:
  """One evaluation: what the measurements share.

  Attributes:
    embedder: the model with its parameters.
    source: the open data source.
    protocol: makes the results.
    cheap: only retrieval and matching, as during training.
  """

  embedder: Embedder
  source: Source
  protocol: Protocol
  cheap: bool = False

  @property
  def config(self) -> Config:
    """Of the run."""
    return self.embedder.config


# ------------------------------------------------------------- what is trained
def trained(config: Config, objective: str) -> tuple[str, ...]:
  """Context letters of the groups that tasks train an objective on."""
  found: dict[str, None] = {}
  for task in config.tasks.values():
    for group in task.objectives.get(objective, ()):
      if group.startswith("t"):
        found[letters(group)] = None
  return tuple(found)


def evaluated_groups(config: Config) -> tuple[str, ...]:
  """Context letters whose retrieval is measured.

  None where captions or answers alone are trained and measured.

  Raises:
    ConfigError: if the config names none, trains none and asks for no texts.
  """
  named = [letters(group) for group in config.evaluation.groups]
  found = tuple(dict.fromkeys(named)) or trained(config, "contrastive")
  if not found and not (_written(config) or _asked(config)):
    raise ConfigError(
      "nothing to evaluate: set evaluation.groups, e.g. ('v', 'a', 'va')."
    )
  return found


def kind_of(config: Config, context: str) -> str:
  """The caption kind that queries of a context use.

  The heaviest trained one; among equals the one that its letters call for.
  """
  group = f"t{context}"
  own = language.default_kind(group)
  for task in config.tasks.values():
    if group in groups_of(task):
      kinds = language.kinds_of(task, group)
      return max((w, kind == own, kind) for kind, w in kinds.items())[-1]
  return own


def texts_of(record: Record, kind: str, count: int) -> list[str]:
  """The first captions of a record; empty if it has none of the kind.

  Args:
    record: the sample.
    kind: caption kind; other kinds stand in as in training.
    count: captions wanted; 0: all.
  """
  try:
    first, found = language.choose_text(record, {kind: 1.0})
  except DecodeError:
    return []
  if count == 1 or found not in record.captions:
    return [first]
  texts = record.captions[found]
  return [text for text in texts[: count or len(texts)] if text.strip()]


def queries_of(
  job: Job, gallery: Gallery, context: str, count: int
) -> retrieval.Queries:
  """Texts of the items that have all letters of a context.

  Raises:
    ConfigError: if no item has both.
  """
  kind = kind_of(job.config, context)
  items, texts = [], []
  for i in gallery.usable(context):
    record = gallery.records[i]
    own = texts_of(record, kind, count) if record is not None else []
    if own:
      items.append(int(i))
      texts.append(own)
  if not items:
    raise ConfigError(
      f"evaluation of {context!r}: none of {len(gallery.records)} samples has "
      f"its modalities and a caption of kind {kind!r}."
    )
  return retrieval.make_queries(texts, np.asarray(items, np.int64), kind)


def world_ceiling(
  gallery: Gallery, queries: retrieval.Queries, context: str
) -> float | None:
  """Best expected text to item R@1 from the scene graphs; None: no scenes.

  A text fits all items that agree in the facts it states and the modalities
  show; its own items are among them, and a perfect model picks at random.
  """
  scenes = []
  for item in queries.items:
    record = gallery.records[item]
    scene = None if record is None else record.fields.get("scene")
    if scene is None:
      return None
    scenes.append(scene)
  names = shown_facts(context, queries.kind)
  keys = [facts_key(scene, names) for scene in scenes]
  shares = []
  for row in queries.relevant:
    fitting = {keys[i] for i in np.flatnonzero(row)}
    shares.append(row.sum() / sum(key in fitting for key in keys))
  return float(np.mean(shares))


# -------------------------------------------------------------------- measuring
def _read_gallery(
  job: Job, contexts: Sequence[str], indices: Sequence[int] | None
) -> Gallery:
  """Reads the gallery with all that the measurements will need."""
  settings = job.config.evaluation
  matching = trained(job.config, "matching")
  others = () if job.cheap else (*_written(job.config), *_asked(job.config))
  paired = [
    part
    for pair in settings.item_pairs
    for part in pair.split(":")
    if part != "t"
  ]
  embedded = tuple(dict.fromkeys((*contexts, *matching, *paired)))
  return job.embedder.embed_gallery(
    job.protocol.source,
    embedded,
    source=job.source,
    size=settings.size,
    indices=indices,
    also_read=others,
    keep_batches=bool(matching or others or settings.rerank),
  )


def _written(config: Config) -> tuple[str, ...]:
  return trained(config, "captioning") if config.evaluation.captions else ()


def _asked(config: Config) -> tuple[str, ...]:
  if not config.evaluation.questions:
    return ()
  return trained(config, "question_answering")


def _retrieval_results(
  job: Job, gallery: Gallery, contexts: Sequence[str]
) -> list[Result]:
  """Retrieval of every group, and matching accuracy where it is trained."""
  settings = job.config.evaluation
  results = []
  for context in contexts:
    queries = queries_of(job, gallery, context, settings.texts_per_item)
    results += retrieval.text_retrieval(
      job.embedder,
      gallery,
      queries,
      context,
      job.protocol,
      top=0 if job.cheap else settings.rerank,
      ceiling=world_ceiling(gallery, queries, context),
    )
  if settings.item_pairs:
    labels = _labels(gallery, settings.label)
    for pair in settings.item_pairs:
      context = pair.removesuffix(":t")
      if context == pair:
        results += retrieval.class_retrieval(
          gallery, pair, labels, job.protocol
        )
        continue
      queries = queries_of(job, gallery, context, 1)
      results += retrieval.class_text_retrieval(
        job.embedder, gallery, queries, context, labels, job.protocol
      )
  for context in trained(job.config, "matching"):
    queries = queries_of(job, gallery, context, 1)
    results += retrieval.matching_accuracy(
      job.embedder, gallery, queries, context, job.protocol
    )
  return results


def _text_results(job: Job, gallery: Gallery) -> list[Result]:
  """Captions and answers that the model writes."""
  settings = job.config.evaluation
  writer = Writer(job.embedder)
  results = []
  for context in _written(job.config):
    kind = kind_of(job.config, context)
    limit = min(settings.captions, len(gallery.records))
    items, texts = [], []
    for i in gallery.usable(context):
      record = gallery.records[i]
      own = (
        texts_of(record, kind, 0) if record is not None and i < limit else []
      )
      if own:
        items.append(int(i))
        texts.append(own)
    if items:
      results += caption_results(
        writer,
        gallery,
        context,
        np.asarray(items, np.int64),
        texts,
        kind,
        job.protocol,
        total=limit,
      )
  for context in _asked(job.config):
    limit = min(settings.questions, len(gallery.records))
    items = gallery.usable(context)
    asked = pick_questions(gallery.records, items[items < limit], context)
    if asked:
      results += question_results(
        writer, gallery, context, asked, job.protocol, total=limit
      )
  return results


def _labels(gallery: Gallery, field: str) -> list[Any]:
  found = [None if r is None else r.fields.get(field) for r in gallery.records]
  # What is no text or number is no label: the sample is left out, as one
  # without the field.
  return [x if isinstance(x, (str, int, float)) else None for x in found]


def _hard_results(
  job: Job, source: OmniWorldSource, contexts: Sequence[str]
) -> list[Result]:
  """R@1 among eight scenes that differ from the queried one in one fact."""
  count = job.config.evaluation.hard
  world = dataclasses.replace(source.world, split="hard")
  protocol = dataclasses.replace(job.protocol, split="hard")
  results = []
  for context in contexts:
    if len(context) < 2 or has_words(context):
      continue
    galleries = [world.hard_gallery(i, letters=context) for i in range(count)]
    size = len(galleries[0])
    records = [
      source.scene_record(scene, i, f"hard-{i}-{k}")
      for i, scenes in enumerate(galleries)
      for k, scene in enumerate(scenes)
    ]
    gallery = job.embedder.embed_gallery(
      job.protocol.source, (context,), records=records
    )
    kind = kind_of(job.config, context)
    texts = [texts_of(records[i * size], kind, 1)[0] for i in range(count)]
    queries = job.embedder.embed_texts(texts, kind)
    items = gallery.embeddings[context].reshape(count, size, -1)
    scores = np.einsum("qe,qge->qg", queries, items).astype(np.float64)
    first = np.zeros((count, size), bool)
    first[:, 0] = True
    names = shown_facts(context, kind)
    keys = [[facts_key(scene, names) for scene in g] for g in galleries]
    results.append(
      protocol.result(
        f"hard/t->{context}/R@1",
        metrics.recall_at(metrics.ranks(scores, first), 1),
        total=count,
        prompts=texts,
        gallery=size,
        ceiling=float(np.mean([1 / k.count(k[0]) for k in keys])),
        baseline=1 / size,
      )
    )
  return results


# ----------------------------------------------------------------------- suites
def retrieval_suite(job: Job) -> list[Result]:
  """Retrieval, matching, captions and questions on any source."""
  contexts = evaluated_groups(job.config)
  gallery = _read_gallery(job, contexts, None)
  results = _retrieval_results(job, gallery, contexts)
  return results if job.cheap else results + _text_results(job, gallery)


def omniworld_suite(job: Job) -> list[Result]:
  """The same on scenes whose captions all differ, and the hard galleries.

  Raises:
    ConfigError: if the source is no OmniWorld.
  """
  source = job.source
  if not isinstance(source, OmniWorldSource):
    raise ConfigError(
      f"evaluation.suite='omniworld' needs an omniworld source; "
      f"{job.protocol.source!r} is another kind: use 'retrieval'."
    )
  settings = job.config.evaluation
  contexts = evaluated_groups(job.config)
  kind = language.STORY if any(map(has_words, contexts)) else WHOLE
  indices = source.world.gallery(settings.size or 256, kind=kind)
  gallery = _read_gallery(job, contexts, indices)
  results = _retrieval_results(job, gallery, contexts)
  if job.cheap:
    return results
  if settings.hard:
    results += _hard_results(job, source, contexts)
  return results + _text_results(job, gallery)


def classification_suite(job: Job) -> list[Result]:
  """Zero-shot classification, and a linear probe where a source is named.

  Classes come from `evaluation.classes`, else from the distinct captions.
  """
  config, settings = job.config, job.config.evaluation
  contexts = evaluated_groups(config)
  probing = bool(settings.probe_source) and not job.cheap
  read = lambda name, source: job.embedder.embed_gallery(
    name,
    contexts,
    source=source,
    size=settings.size if source is job.source else 0,
    keep_pooled=probing,
  )
  gallery = read(job.protocol.source, job.source)
  templates = zero_shot.read_prompts(settings.prompts)
  results = []
  for context in contexts:
    if settings.classes:
      classes = zero_shot.read_lines(settings.classes, "evaluation.classes")
      labels = _labels(gallery, settings.label or "label")
      use = templates
    else:
      labels, classes = _caption_classes(job, gallery, context)
      use = ["{}"]  # captions are sentences already
    results += zero_shot.zero_shot_results(
      job.embedder, gallery, context, labels, classes, use, job.protocol
    )
  if probing:
    name = settings.probe_source
    train = read(name, open_source(config, name))
    for context in contexts:
      results.append(_probe_result(job, train, gallery, context))
  return results


def _caption_classes(
  job: Job, gallery: Gallery, context: str
) -> tuple[list[str | None], list[str]]:
  """The caption of each item, and the distinct ones as classes."""
  kind = kind_of(job.config, context)
  texts = [None if r is None else texts_of(r, kind, 1) for r in gallery.records]
  labels = [own[0] if own else None for own in texts]
  return labels, sorted({text for text in labels if text is not None})


def _probe_result(
  job: Job, train: Gallery, test: Gallery, context: str
) -> Result:
  """Accuracy of a linear probe on the pooled features of some letters."""
  settings = job.config.evaluation
  field = settings.label or "label"

  def rows(
    gallery: Gallery,
  ) -> tuple[np.ndarray, list[Any], Int[np.ndarray, " M"]]:
    labels = _labels(gallery, field)
    items = [i for i in gallery.usable(context) if labels[i] is not None]
    features = np.concatenate([gallery.pooled[x] for x in context], axis=-1)
    return features[items], [labels[i] for i in items], np.asarray(items, int)

  features, labels, _ = rows(train)
  if not labels:
    raise ConfigError(
      f"linear probe: no sample of {settings.probe_source!r} has a field "
      f"{field!r}; set evaluation.label."
    )
  classes = sorted(set(labels), key=str)
  number = {label: i for i, label in enumerate(classes)}
  probe = linear_probe.fit_probe(
    features, np.asarray([number[x] for x in labels]), len(classes)
  )
  test_features, test_labels, _ = rows(test)
  predicted = [classes[i] for i in probe.predict(test_features)]
  return job.protocol.result(
    f"linear probe/{context}/accuracy",
    metrics.accuracy(predicted, test_labels),
    total=len(test.records),
    gallery=len(classes),
    baseline=1 / len(classes),
  )


SUITES: Mapping[str, Callable[[Job], list[Result]]] = {
  "omniworld": omniworld_suite,
  "retrieval": retrieval_suite,
  "classification": classification_suite,
}


def check_evaluation(config: Config) -> None:
  """Checks all that `config.evaluation` names, before a run is trained.

  Raises:
    ConfigError: for an unknown suite, source or group, a group without a
      head, or a file that cannot be read.
  """
  settings, sources = config.evaluation, config.data.sources
  if not settings.source:
    return
  for field in ("source", "probe_source"):
    name = getattr(settings, field)
    if name and name not in sources:
      raise ConfigError(
        f"evaluation.{field}={name!r} is no data source; known: "
        f"{', '.join(sorted(sources))}."
      )
  if settings.suite not in SUITES:
    raise ConfigError(
      f"unknown evaluation.suite={settings.suite!r}; known: "
      f"{', '.join(SUITES)}."
    )
  kind = sources[settings.source].kind
  if settings.suite == "omniworld" and kind != "omniworld":
    raise ConfigError(
      "evaluation.suite='omniworld' needs an omniworld source; "
      f"{settings.source!r} is of kind {kind!r}: use 'retrieval'."
    )
  model = build(config.model)
  try:
    for group in evaluated_groups(config):
      model.head(group)
    for pair in settings.item_pairs:
      retrieval.check_pair(pair)
      for part in pair.split(":"):
        model.head(part)
  except ValueError as error:
    raise ConfigError(f"config.evaluation: {error}") from None
  if settings.item_pairs and not settings.label:
    raise ConfigError("evaluation.item_pairs needs evaluation.label.")
  if settings.classes:
    zero_shot.read_lines(settings.classes, "evaluation.classes")
  zero_shot.read_prompts(settings.prompts)


def evaluate(
  model: MiCo,
  params: Params,
  config: Config,
  tokenizer: Tokenizer,
  *,
  source: Source | None = None,
  cheap: bool = False,
  command: str = "",
  workdir: str = "",
) -> list[Result]:
  """Runs the suite of a config.

  Args:
    model: from `mico_jax.models.build`.
    params: its parameters.
    config: of the run; `config.evaluation` says what is measured.
    tokenizer: of the run.
    source: the open source, if at hand.
    cheap: only retrieval and matching, as during training.
    command: that asked for it; stored in the results.
    workdir: of the run, which keeps the samples that stall; "": none.

  Raises:
    ConfigError: for an unknown suite or source, or nothing to measure.
  """
  settings = config.evaluation
  if not settings.source:
    raise ConfigError("evaluation.source is empty; name a data source.")
  check_evaluation(config)
  if source is None:
    source = open_source(config, settings.source)
  embedder = Embedder(model, params, config, tokenizer, workdir=workdir)
  groups = evaluated_groups(config)
  if cheap and not groups:
    return []
  keys = keys_of((*groups, *_written(config), *_asked(config)))
  protocol = Protocol(
    source=settings.source,
    split=config.data.sources[settings.source].split,
    preprocessing_sha256=embedder.preprocessing_sha256(keys),
    command=command,
    bootstrap=settings.bootstrap,
    seed=config.seed,
  )
  job = Job(embedder, source, protocol, cheap)
  # On one device, as the parameters are, whatever else the host has.
  with target.alone() if _on_one_device(params) else contextlib.nullcontext():
    return SUITES[settings.suite](job)


def _on_one_device(params: Params) -> bool:
  """Whether no array is spread over several devices."""
  arrays = [x for x in jax.tree.leaves(params) if isinstance(x, jax.Array)]
  return all(len(x.sharding.device_set) == 1 for x in arrays)
