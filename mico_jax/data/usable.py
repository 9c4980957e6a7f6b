"""Which groups of the tasks the samples of a source can be used for.

A row whose sample lacks a modality of a group has no part in the losses of that
group; one without a caption is replaced as a broken sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mico_jax.config import Config
from mico_jax.data.identity import tell
from mico_jax.data.language import JOINED, kinds_of, possible_texts
from mico_jax.data.presence import has
from mico_jax.data.records import Record
from mico_jax.data.samples import groups_of
from mico_jax.data.sources import Source
from mico_jax.data.survey import chosen, in_order
from mico_jax.data.targets import tell_targets
from mico_jax.modalities import DecodeError, by_letter, has_text, letters

LOOKED = 512  # samples of a source that are looked at when a run starts
_THREADS = 8


def usable(record: Record, config: Config, task: str, group: str) -> bool:
  """Whether a record has the modalities and a caption of a group."""
  keys = [by_letter(letter).key for letter in letters(group)]
  kinds = kinds_of(config.tasks[task], group)
  if has_text(group) and not possible_texts(record, kinds):
    return False
  return all(has(record, key) for key in keys)


def group_counts(
  config: Config, source: str, records: Sequence[Record]
) -> list[dict[str, Any]]:
  """How many records each group of the tasks that read a source can use.

  Args:
    config: of the run.
    source: name of the source.
    records: of it.

  Returns:
    Rows of `task`, `group`, `samples` and `usable`.
  """
  return [
    {
      "task": task,
      "group": group,
      "samples": len(records),
      "usable": sum(usable(r, config, task, group) for r in records),
    }
    for task, spec in config.tasks.items()
    if spec.sources.get(source) and spec.steps
    for group in groups_of(spec)
  ]


def absent_texts(
  config: Config, source: str, records: Sequence[Record]
) -> list[str]:
  """What the config asks of a source's captions that no record has.

  Another kind takes the place of a missing one, so a misspelt name would pass.

  Args:
    config: of the run.
    source: name of the source.
    records: of it, at least one.

  Returns:
    Fields of the config, with the missing kind or field.
  """
  kinds = {kind for record in records for kind in record.captions}
  fields = {name for record in records for name in record.fields}
  absent = [
    f"tasks.{name}.texts.{group}: no caption of kind {kind!r}"
    for name, task in config.tasks.items()
    if task.sources.get(source) and task.steps
    for group, of in task.texts.items()
    for kind, weight in of.items()
    if weight and kind != JOINED and kind not in kinds
  ]
  named = config.data.sources[source].captions
  return absent + [
    f"data.sources.{source}.captions.{kind}: no field {field!r}"
    for kind, field in named.items()
    if field not in fields
  ]


def tell_groups(config: Config, sources: Mapping[str, Source]) -> None:
  """Says which groups some samples cannot be used for, by task and source.

  Also which kinds of captions the config names, and no sample has, and how many
  samples lack a label.

  Up to `LOOKED` samples of a source are looked at, spread evenly; all of them
  by `mico-jax data inspect --config ... --source NAME --samples N`.

  Raises:
    ConfigError: if none of them has a label that a task learns.
  """
  for name, source in sources.items():
    if not any(spec.sources.get(name) for spec in config.tasks.values()):
      continue
    indices = chosen(len(source), LOOKED)
    records = list(filter(None, in_order(_reader(source), indices, _THREADS)))
    tell_targets(config, name, records)
    absent = absent_texts(config, name, records) if records else []
    if absent:
      tell(
        f"source {name!r}: none of {len(records)} samples looked at has what "
        f"these ask for, and other captions take its place: "
        f"{'; '.join(absent)}."
      )
    short = [
      f"{row['group']} {row['usable']} (task {row['task']})"
      for row in group_counts(config, name, records)
      if row["usable"] < len(records)
    ]
    if short:
      of = "samples" if len(indices) == len(source) else "samples looked at"
      tell(
        f"source {name!r}: of {len(records)} {of} these groups can use: "
        f"{', '.join(short)}; `require` selects by what samples have."
      )


def _reader(source: Source) -> Callable[[int], Record | None]:
  """Index -> record; None for a broken one."""

  def read(index: int) -> Record | None:
    try:
      return source.record(index)
    except DecodeError:
      return None

  return read
