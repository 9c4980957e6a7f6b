"""Evaluators: what they need, what they measure and how it is drawn.

An evaluation reads and embeds one gallery with all that its evaluators need,
then calls them one after another. The table of evaluators is
`mico_jax.evaluation.evaluators.EVALUATORS`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from mico_jax.config import Config
from mico_jax.data.sources import Source
from mico_jax.evaluation.examples import Examples
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.evaluation.results import Protocol, Result

SHARE = "share"  # unit of a number in [0, 1]


@dataclasses.dataclass(frozen=True)
class Measure:
  """Display and direction of the results of one kind.

  Attributes:
    unit: "share": a number in [0, 1]; else what tables and charts write behind
      it, "" for a number without a unit.
    headline: whether charts show it; tables and JSON show every result.
    lower_is_better: such as a rank, an error rate or a perplexity.
  """

  unit: str = SHARE
  headline: bool = True
  lower_is_better: bool = False

  def text(self, value: float) -> str:
    """A value as tables and charts write it."""
    unit = "" if self.unit == SHARE else self.unit
    return f"{value:.3f} {unit}".rstrip()


@dataclasses.dataclass(frozen=True)
class Needs:
  """Parts of the gallery that an evaluator needs.

  Attributes:
    embed: context letters to embed, e.g. ("v", "va"); each needs a head.
    read: context letters to read without embedding them.
    batches: keep the arrays that were read, for `Embedder.match` and contexts.
    pooled: keep the pooled features of the encoder.
  """

  embed: tuple[str, ...] = ()
  read: tuple[str, ...] = ()
  batches: bool = False
  pooled: bool = False

  def __or__(self, other: Needs) -> Needs:
    """The union of the needs, each context once."""
    union = lambda a, b: tuple(dict.fromkeys((*a, *b)))
    return Needs(
      embed=union(self.embed, other.embed),
      read=union(self.read, other.read),
      batches=self.batches or other.batches,
      pooled=self.pooled or other.pooled,
    )


@dataclasses.dataclass(frozen=True)
class Job:
  """One evaluation, as its evaluators share it.

  Attributes:
    embedder: the model with its parameters.
    source: the open data source.
    gallery: its items, read and embedded as the evaluators need.
    protocol: makes the results.
    cheap: the short form, as during training.
    examples: collects single queries; None: nobody wants them.
  """

  embedder: Embedder
  source: Source
  gallery: Gallery
  protocol: Protocol
  cheap: bool = False
  examples: Examples | None = None

  @property
  def config(self) -> Config:
    """Config of the run."""
    return self.embedder.config


@dataclasses.dataclass(frozen=True)
class Evaluator(abc.ABC):
  """One kind of measurement; the first sentence of its docstring is its help.

  The fields of a subclass are its options, set by
  `evaluation.options={"<name>": {"<field>": value}}`.

  Attributes:
    name: key in the table, and in `evaluation.suite`.
    title: first part of the names of its results, "<title>/.../<measure>".
    measures: last part of those names -> how they are shown.
    cheap: takes part in the evaluations during training.
    source_kind: the only kind of data source that it can measure on; "": any.
  """

  name: ClassVar[str]
  title: ClassVar[str]
  measures: ClassVar[Mapping[str, Measure]]
  cheap: ClassVar[bool] = False
  source_kind: ClassVar[str] = ""

  def check(self, config: Config) -> None:
    """Checks the options, before a device is touched or data is read.

    Called for every evaluator of the table, also for those not in the suite.

    Raises:
      ConfigError: for an option that makes no sense.
    """
    del config

  @abc.abstractmethod
  def needs(self, config: Config) -> Needs | None:
    """Parts to read; None if the config gives it nothing to measure."""

  @abc.abstractmethod
  def measure(self, job: Job) -> list[Result]:
    """The results, from a gallery that has all that it needs."""

  @classmethod
  def summary(cls) -> str:
    """The first paragraph of its docstring in one line."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())
