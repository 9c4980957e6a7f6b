"""What a protocol states: the fields of its TOML file.

Every file of this folder is one benchmark. It says where the official files
come from and how they lie, how they are read, which samples are the split, how
inputs are sampled, what is measured under which name, and the published
figures with their sources. It holds no code.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Annotated

from mico_jax.config import ConfigError
from mico_jax.config.fields import (
  Choice,
  Frames,
  Group,
  Name,
  NameMap,
  Names,
  Range,
)
from mico_jax.data import field_paths
from mico_jax.data.annotation_files import Table
from mico_jax.data.annotation_options import AnnotationsOptions, check_options
from mico_jax.modalities import MODALITIES, letters
from mico_jax.printing import known_names

# Task -> the evaluator that measures it, and the objective that a task which
# trains it has, by which evaluators know their group.
TASKS: dict[str, tuple[str, str]] = {
  "retrieval": ("text_retrieval", "contrastive"),
  "captioning": ("captions", "captioning"),
  "question_answering": ("open_questions", "question_answering"),
  "zero_shot": ("zero_shot", "contrastive"),
  "tagging": ("tagging", "contrastive"),
}
_PER_ITEM = {"one": 1, "five": 5, "all": 0, "paragraph": 1}
CONTEXT, RERANK = "{context}", "{rerank}"


@dataclasses.dataclass(frozen=True)
class Copy:
  """The user's copy of the official files.

  Attributes:
    source: address of the publisher.
    layout: one line per file or folder that is expected.
    steps: how to get it.
  """

  source: str = ""
  layout: tuple[str, ...] = ()
  steps: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Split:
  """The samples that are measured.

  Attributes:
    name: as results and shards call it.
    count: samples, of each version of the files that is around; (): unknown.
    questions: of all samples; 0: unknown, or none are asked.
    ids: where the list of ids stands, with its column.
    sha256: of the sorted ids, one a line; "": not published, so that only the
      hash of the user's copy is recorded.
    md5: annotation file -> MD5 that its publisher gives.
  """

  name: str = "test"
  count: tuple[int, ...] = ()
  questions: int = 0
  ids: str = ""
  sha256: str = ""
  md5: Mapping[Name, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Texts:
  """The texts of an item.

  Attributes:
    kind: caption kind that they are read as, which decides their length in
      tokens; "": that of the letters of the group.
    rule: the captions of an item that are queries or references: "one", the
      first "five", "all", or one "paragraph" of them; "" for tasks without.
  """

  kind: str = ""
  rule: Annotated[str, Choice("", *_PER_ITEM)] = ""

  @property
  def per_item(self) -> int:
    """Texts of an item; 0: all."""
    return _PER_ITEM.get(self.rule, 0)


@dataclasses.dataclass(frozen=True)
class Classes:
  """Names of classes and their prompts.

  Attributes:
    templates: with "{}" for the name.
    names: of the classes, and `labels` that mean them in the annotations; ():
      the names themselves.
    labels: see `names`.
    table: file of the copy with the names, if they stand there; else, without
      `names`, the labels of the annotations are the names.
    label: of a row of that file.
    name: of a row.
    first: of several names with commas between them, the first counts.
    present: only classes that a sample of the split has.
  """

  templates: tuple[str, ...] = ("{}",)
  names: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()
  table: Table = Table()
  label: str = ""
  name: str = ""
  first: bool = False
  present: bool = False


@dataclasses.dataclass(frozen=True)
class Generation:
  """How texts are written.

  Attributes:
    num_beams: of captions and answers; 1: greedy.
    length_penalty: of captions; that of answers is 1.
    max_new_tokens: of captions; answers are as long as the checkpoint's.
  """

  num_beams: Annotated[int, Range(1, 64, "beams")] = 3
  length_penalty: Annotated[float, Range(-10.0, 10.0)] = 0.6
  max_new_tokens: Annotated[int, Range(1, 1024, "tokens")] = 40


@dataclasses.dataclass(frozen=True)
class Figure:
  """A published number.

  Attributes:
    metric: one of the protocol's.
    value: in the unit of `metric`: rates in [0, 1].
    model: whose number it is.
    setting: "fine-tuned", "zero-shot" or what else sets it apart.
    source: where it is published.
  """

  metric: str
  value: float
  model: str
  setting: str
  source: str


@dataclasses.dataclass(frozen=True)
class BenchmarkProtocol:
  """A benchmark; see the classes above for its parts.

  Attributes:
    title: one line.
    task: key of `TASKS`.
    group: text against these letters.
    clip: which part of a clip is shown, in words.
    frames: modality -> frames or slices of a sample.
    silent: modalities that stand as zeros where a sample lacks them.
    rerank: best candidates that the matching head orders anew; 0: none.
    score: of answers, see the evaluator `open_questions`.
    metric: the one that the benchmark is judged by.
    metrics: full name -> name of the evaluator's result; `{context}` stands for
      the letters, `{rerank}` for the mark of re-ranked results.
    note: choices that the published protocol leaves open.
    depth_unit: of its depth maps.
    units: modality -> unit of other values, where files do not say it.
    rates: modality -> samples of its series per second.
    channels: modality -> names of the channels of its series, with commas.
    annotations: how the official files are read, see the source "annotations".
  """

  title: str
  task: Annotated[str, Choice(*TASKS)]
  group: Group
  metric: Name
  metrics: Mapping[Name, Name]
  copy: Copy
  split: Split
  annotations: AnnotationsOptions
  clip: str = ""
  frames: Mapping[Name, Frames] = dataclasses.field(default_factory=dict)
  silent: Names = ()
  rerank: Annotated[int, Range(0, 10**6, "items")] = 0
  score: Annotated[str, Choice("exact", "vqa")] = "exact"
  texts: Texts = Texts()
  classes: Classes = Classes()
  generation: Generation = Generation()
  figures: tuple[Figure, ...] = ()
  note: str = ""
  depth_unit: Annotated[str, Choice("", "metre", "millimetre", "relative")] = ""
  units: NameMap = dataclasses.field(default_factory=dict)
  rates: Mapping[Name, Annotated[float, Range(1e-9, 1e9, "Hz")]] = (
    dataclasses.field(default_factory=dict)
  )
  channels: NameMap = dataclasses.field(default_factory=dict)

  @property
  def context(self) -> str:
    """The letters that text is compared with."""
    return letters(self.group)

  def named(self, *, rerank: int) -> dict[str, str]:
    """Name of an evaluator's result -> full name.

    Args:
      rerank: candidates that are ordered anew.
    """
    mark = f" (re-ranked {rerank})" if rerank else ""
    fill = lambda text: text.replace(CONTEXT, self.context).replace(
      RERANK, mark
    )
    return {fill(result): name for name, result in self.metrics.items()}

  def best(self, metric: str, model: str = "") -> Figure | None:
    """The best published figure of a metric, or that of a model."""
    figures = [
      f
      for f in self.figures
      if f.metric == metric and f.model.startswith(model)
    ]
    return max(figures, key=lambda f: f.value, default=None)


def check(protocol: BenchmarkProtocol) -> None:
  """Checks what no single field says.

  Raises:
    ConfigError: naming the field.
  """
  try:
    letters(protocol.group)
  except ValueError as error:
    raise ConfigError(f"group={protocol.group!r}: {error}") from None
  for field in ("title", "metric"):
    if not getattr(protocol, field).strip():
      raise ConfigError(f"{field}: expected text.")
  if protocol.metric not in protocol.metrics:
    raise ConfigError(
      f"metric={protocol.metric!r} is none of metrics: "
      f"{', '.join(protocol.metrics)}."
    )
  for name, result in protocol.metrics.items():
    fields = {f for _, f, _, _ in string.Formatter().parse(result) if f}
    if fields - {"context", "rerank"}:
      raise ConfigError(
        f"metrics.{name}={result!r}: only {CONTEXT} and {RERANK} are filled."
      )
  for i, figure in enumerate(protocol.figures):
    if figure.metric not in protocol.metrics:
      raise ConfigError(f"figures[{i}].metric={figure.metric!r} is none.")
    if not (figure.model and figure.setting and figure.source):
      raise ConfigError(f"figures[{i}]: give model, setting and source.")
  check_options(protocol.annotations, "annotations")
  _check_modalities(protocol)
  _check_copy(protocol)
  _check_texts(protocol)
  _check_classes(protocol)


def _check_modalities(protocol: BenchmarkProtocol) -> None:
  for field in ("frames", "silent", "units", "rates", "channels"):
    for key in getattr(protocol, field):
      if key not in MODALITIES:
        raise ConfigError(
          f"{field} names {key!r}; {known_names(key, MODALITIES)}"
        )


def _check_copy(protocol: BenchmarkProtocol) -> None:
  copy, split = protocol.copy, protocol.split
  for field in ("source", "layout", "steps"):
    if not getattr(copy, field):
      raise ConfigError(f"copy.{field}: say it, for users without a copy.")
  if not (split.count or split.questions) or min(split.count, default=1) < 1:
    raise ConfigError("split.count: give the number of samples or questions.")
  if not split.ids:
    raise ConfigError("split.ids: say where the ids come from.")


def _check_texts(protocol: BenchmarkProtocol) -> None:
  rule = protocol.texts.rule
  written = protocol.task in ("retrieval", "captioning")
  if bool(rule) != written or written != bool(protocol.annotations.texts):
    raise ConfigError(
      f"texts.rule={rule!r}: a task {protocol.task!r} has "
      f"{'a rule and annotations.texts' if written else 'no captions'}."
    )
  if (rule == "paragraph") != protocol.annotations.paragraph:
    raise ConfigError(
      f"texts.rule={rule!r} and annotations.paragraph="
      f"{protocol.annotations.paragraph} do not agree."
    )


def _check_classes(protocol: BenchmarkProtocol) -> None:
  classes = protocol.classes
  for template in classes.templates:
    if "{}" not in template:
      raise ConfigError(f"classes.templates: {template!r} has no {{}}.")
  if classes.labels and len(classes.labels) != len(classes.names):
    raise ConfigError("classes.labels: give one for each of classes.names.")
  if classes.table.file and not (classes.label and classes.name):
    raise ConfigError("classes: a table needs `label` and `name`.")
  for field in ("label", "name"):
    field_paths.check_template(getattr(classes, field), f"classes.{field}")
