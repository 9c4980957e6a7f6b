"""Options of the source "annotations": where everything stands in the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from mico_jax.config import ConfigError
from mico_jax.config.fields import Items, Name, NameMap, Scalars
from mico_jax.data import field_paths
from mico_jax.data.annotation_files import Table
from mico_jax.modalities import MODALITIES


@dataclasses.dataclass(frozen=True)
class Join:
  """Rows of another file that belong to a row."""

  table: Table = Table()
  # of a row, and of the other file's rows: they belong together where these
  # templates give the same text
  on: str = ""
  match: str = ""


@dataclasses.dataclass(frozen=True)
class Only:
  """A list of the samples of the split, in a file of its own."""

  table: Table = Table()
  # of the rows of the list; what it gives are ids of samples
  id: str = "{value}"


@dataclasses.dataclass(frozen=True)
class AnnotationsOptions:
  """How the annotations are read. Texts in braces are filled from the row."""

  # file of the annotations: {"file": ("test.csv",)}, with more where its name
  # does not say how it is written (`format`, `rows`, `columns`, `comment`)
  table: Table = Table()
  # field -> rows of another file, which the row gets as a list
  joins: Annotated[Mapping[Name, Join], Items()] = dataclasses.field(
    default_factory=dict
  )
  # path -> value(s): rows of the split
  where: Annotated[Mapping[Name, Annotated[Any, Scalars()]], Items()] = (
    dataclasses.field(default_factory=dict)
  )
  # list of the ids of the split
  only: Only = Only()
  # such as "{video_id}"; rows with the same id are one sample
  id: str = ""
  # paths of the captions, in this order; most of a sample, 0: all
  texts: tuple[Name, ...] = ()
  most: int = 0
  # the captions of a sample are sentences of one text
  paragraph: bool = False
  # path -> by which the rows of a sample are ordered; "": as in the file
  order: str = ""
  # paths of a question, its answer, or all answers of several people
  question: str = ""
  answer: str = ""
  answers: str = ""
  # answers that every question must have; 0: any number
  num_answers: int = 0
  # path of the words that replace <...> in a question, in their order
  blanks: str = ""
  # class of a sample
  label: str = ""
  # label in the file -> label of the sample, and that of all others; "": as in
  # the file
  label_names: NameMap = dataclasses.field(default_factory=dict)
  label_else: str = ""
  # path of several classes; a text is split at commas
  labels: str = ""
  # modality -> names that its file can have, relative to the folder, such as
  # "videos/{id}.mp4"; "{id}.*": any ending of the modality; "**/{id}.mp4": in
  # any folder; "@video": the file of another modality that was found
  files: Annotated[
    Mapping[Name, Annotated[tuple[Name, ...], Items()]], Items()
  ] = dataclasses.field(default_factory=dict)
  # modalities whose 16-bit pictures hold millimetres rotated by three bits, as
  # SUN RGB-D stores them
  rotated: tuple[Name, ...] = ()


def check_options(options: AnnotationsOptions, where: str) -> None:
  """Refuses paths and templates that are none, before a file is read.

  Args:
    options: of a source.
    where: they stand, for messages.

  Raises:
    ConfigError: naming the option.
  """
  o = options
  if not o.id:
    raise ConfigError(f"{where}.id: say what names a sample, as '{{id}}'.")
  templates = {"id": o.id, "label": o.label, "only.id": o.only.id}
  for key, names in o.files.items():
    if key not in MODALITIES:
      raise ConfigError(
        f"{where}.files.{key}: unknown modality; known: "
        f"{', '.join(MODALITIES)}."
      )
    templates |= {f"files.{key}[{i}]": t for i, t in enumerate(names)}
  for name, join in o.joins.items():
    templates |= {f"joins.{name}.on": join.on}
    templates |= {f"joins.{name}.match": join.match}
  for field, template in templates.items():
    field_paths.check_template(template, f"{where}.{field}")
  paths = {"texts": o.texts, "where": tuple(o.where)}
  for field in ("question", "answer", "answers", "blanks", "labels", "order"):
    path = getattr(o, field)
    paths[field] = (path,) if path else ()
  for field, listed in paths.items():
    for path in listed:
      try:
        field_paths.steps(path)
      except ConfigError as error:
        raise ConfigError(f"{where}.{field}: {error}") from None
