"""Contract of a data source (`Source`), and base class of its kinds.

A source has a length, a record for each index, and a SHA-256 of its index, by
which a resumed run checks that its data are unchanged.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from mico_jax.config import Config, SourceConfig, from_dict
from mico_jax.data.records import Record
from mico_jax.data.storage import Span, Storage
from mico_jax.modalities import UNSTATED, Stated


@runtime_checkable
class Source(Protocol):
  """Random access to records.

  Attributes:
    sha256: of the index: changes when samples are added, removed or reordered.
  """

  sha256: str

  def __len__(self) -> int:
    """Number of samples."""
    ...

  def record(self, index: int) -> Record:
    """Record of sample `index`; reads no media.

    Raises:
      DecodeError: if the sample's entry is broken.
      TransientError: for storage that stays unreachable.
    """
    ...


@dataclasses.dataclass(frozen=True)
class NoOptions:
  """Options of a kind that has none."""


class SourceKind(abc.ABC):
  """A kind of source; the first paragraph of its docstring is its help text.

  Attributes:
    kind: name in the table, and `kind` in the config.
    reads: fields of `SourceConfig` that not every kind reads, but this one.
    Options: dataclass of the options of this kind, set by
      `data.sources.NAME.options={"<field>": value}`.
    depth_unit: of its depth maps if the config names none; "": unknown.
    remote: whether media lie in a store, so that reading ahead helps.
    sha256: of the index: changes when samples are added, removed or reordered.
  """

  kind: ClassVar[str]
  reads: ClassVar[tuple[str, ...]] = ()
  Options: ClassVar[type] = NoOptions
  depth_unit: ClassVar[str] = ""
  remote: bool = False
  sha256: str

  @classmethod
  def open(cls, name: str, spec: SourceConfig, config: Config) -> SourceKind:
    """Opens a source of a config.

    The constructor gets the `Storage` with the limits of the config as its
    third argument.

    Args:
      name: of the source in the config.
      spec: its fields.
      config: of the run.

    Raises:
      ConfigError: for data that cannot be opened.
      TransientError: for storage that stays unreachable.
    """
    make: Any = cls
    return make(name, spec, Storage.of(config.data))

  @classmethod
  def options(cls, name: str, spec: SourceConfig) -> Any:
    """The options of a source, an instance of `Options`.

    Raises:
      ConfigError: for an unknown option or a wrong value.
    """
    return from_dict(
      spec.options, cls.Options, where=f"data.sources.{name}.options"
    )

  @classmethod
  def usual(cls, spec: SourceConfig, key: str) -> Stated:
    """What holds of the samples of a modality where the config states nothing.

    Args:
      spec: of the source.
      key: of the modality.
    """
    del spec, key
    return UNSTATED

  @abc.abstractmethod
  def __len__(self) -> int:
    """Number of samples."""

  @abc.abstractmethod
  def record(self, index: int) -> Record:
    """Record of sample `index`; reads no media.

    Raises:
      DecodeError: if the sample's entry is broken.
      TransientError: for storage that stays unreachable.
    """

  def former_sha256(self) -> str:
    """The SHA-256 that earlier versions pinned, where it was another; "": none.

    A run that was pinned by it is resumed on the same data.
    """
    return ""

  def write_index(self) -> list[str]:
    """Writes what is kept of the index beside the data, where that may be.

    Returns:
      The files that have an index; none for a kind that keeps none.
    """
    return []

  def having(self, names: Sequence[str]) -> Iterator[np.ndarray] | None:
    """Which samples have all of some things, as far as the index tells.

    Args:
      names: modalities, "caption" or "caption:KIND", as in `require`.

    Returns:
      int8, piece by piece in the order of the samples: 1: it has them, or its
      record is broken; 0: it lacks one; -1: its record tells. None: the index
      tells of none.
    """
    del names

  def spans(self, index: int, keys: Sequence[str]) -> Sequence[Span]:
    """The bytes of remote files that sample `index` needs, if known before.

    Args:
      index: of the sample.
      keys: modalities that will be read.
    """
    del index, keys
    return ()

  def plan(self, owner: Hashable, index: int, keys: Sequence[str]) -> None:
    """Starts to read a sample that will be asked for, if it is remote.

    Args:
      owner: of the bytes, until `forget`.
      index: of the sample.
      keys: modalities that will be read.
    """
    storage: Storage | None = getattr(self, "_storage", None)
    if storage is not None and self.remote:
      storage.plan(owner, lambda: self.spans(index, keys))

  def forget(self, owner: Hashable) -> None:
    """Lets go of what was planned for somebody."""
    storage: Storage | None = getattr(self, "_storage", None)
    if storage is not None and self.remote:
      storage.forget(owner)

  @classmethod
  def summary(cls) -> str:
    """The first paragraph of the docstring in one line."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())


class First:
  """The first samples of a source (`data.sources.*.size`)."""

  def __init__(self, source: Source, size: int):
    """Takes `size` samples, or all if there are fewer."""
    self._source, self._size = source, min(size, len(source))
    self.sha256 = source.sha256

  def __len__(self) -> int:
    """Number of samples."""
    return self._size

  def record(self, index: int) -> Record:
    """Record of sample `index`."""
    return self._source.record(index)

  def __getattr__(self, name: str) -> Any:
    """What else the source can do: plan, inspect, verify."""
    if name.startswith("_"):
      raise AttributeError(name)
    return getattr(self._source, name)
