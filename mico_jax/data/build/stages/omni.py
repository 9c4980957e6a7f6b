"""Omni captions: of everything that a sample shows, out of its others."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice, Range, Text
from mico_jax.data.build.models import check_model, model
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import BatchStage
from mico_jax.data.records import as_texts
from mico_jax.modalities import MODALITIES, WHOLE
from mico_jax.modalities.words import decode_text

FIELD = f"{WHOLE}_caption"
KINDS = tuple(
  dict.fromkeys(m.caption.kind for m in MODALITIES.values() if m.caption)
)


@dataclasses.dataclass(frozen=True)
class OmniOptions:
  """How captions are put together."""

  # kinds in braces; what a sample lacks is left out, and blanks are made one
  template: Annotated[str, Text(1, 10_000)] = "{vision} {audio} {subtitle}"
  # hf:NAME or python:MODULE:FUNCTION: writes the caption, the joined text being
  # its prompt; "": the joined text is the caption
  model: Annotated[str, Text(0, 4096, "name")] = ""
  # hf: of the pipeline
  task: Annotated[str, Choice("text-generation")] = "text-generation"
  # hf: such as "cuda:0"; "": its own choice
  device: Annotated[str, Text(0, 64, "name")] = ""
  max_new_tokens: Annotated[int, Range(1, 4096, "tokens")] = 128
  # prompts per call
  batch: Annotated[int, Range(1, 4096)] = 8


class Omni(BatchStage):
  """Joins the captions of a sample by a template, or lets a model write it.

  Of several texts of a kind the first counts. A sample that has an omni
  caption keeps it; one without any of the kinds has none.
  """

  name: ClassVar[str] = WHOLE
  Options: ClassVar[type] = OmniOptions

  def check(self) -> None:
    """See `Stage`."""
    try:
      parts = list(string.Formatter().parse(self.options.template))
    except ValueError as error:
      raise ConfigError(f"{self.name}.template: {error}.") from error
    kinds = [name for _, name, _, _ in parts if name is not None]
    if unknown := sorted(set(kinds) - set(KINDS)):
      raise ConfigError(
        f"{self.name}.template names {unknown[0]!r}; known: {', '.join(KINDS)}."
      )
    if not kinds:
      raise ConfigError(f"{self.name}.template names no kind of caption.")
    if self.options.model:
      check_model(self.name, self.options.model, ("hf", "python"))

  def item(self, row: Row) -> Any:
    """The joined text; None if there is nothing to join."""
    if as_texts(row.fields.get(FIELD)):
      return None
    texts = {
      kind: next(iter(as_texts(row.fields.get(f"{kind}_caption"))), "")
      for kind in KINDS
    }
    parts = string.Formatter().parse(self.options.template)
    if not any(texts.get(name or "") for _, name, _, _ in parts):
      row.lacks[WHOLE] = "no caption to join"
      return None
    return " ".join(self.options.template.format(**texts).split())

  def call(self, items: Sequence[Any]) -> Sequence[Any]:
    """See `BatchStage`."""
    if not self.options.model:
      return items
    return model(self.options.model, dataclasses.asdict(self.options))(items)

  def store(self, row: Row, result: Any) -> None:
    """See `BatchStage`."""
    row.fields[FIELD] = decode_text(result)
    writer = self.options.model or f"template: {self.options.template}"
    row.fields.setdefault("captioners", {})[FIELD] = writer
