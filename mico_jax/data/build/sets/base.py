"""What a reader of a data set's official files is, and what it has at hand.

A reader turns the files that a publisher hands out into lines of a manifest
(`mico_jax.data.sources.manifest`): it says the split, the labels and where in
the copy each sample lies, and copies nothing that a manifest can name. What a
manifest cannot name, such as windows of a recording, it writes beside it.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mico_jax.config import ConfigError

_PIECE = 1 << 22  # bytes that are hashed at a time


class Copy:
  """A user's copy of the official files, and the folder of the manifest.

  Attributes:
    facts: what a config needs to know of the training part, such as the mean
      of a target; kept beside the manifest.
    total: steps of the reading, for progress: samples, or what else `done`
      counts; 0: unknown.
    done: of these; 0: as many as samples were given.
  """

  def __init__(self, folder: str, out: str, layout: Sequence[str]):
    """Takes the folders.

    Args:
      folder: of the official files.
      out: of the manifest.
      layout: of the official files, for messages.

    Raises:
      ConfigError: if there is no such folder.
    """
    self._folder, self._out = folder, out
    self._layout = layout
    self._hashes: dict[str, str] = {}
    self.facts: dict[str, Any] = {}
    self.total = self.done = 0
    if not os.path.isdir(folder):
      raise ConfigError(f"--from {folder}: no local folder.")

  def wrong(self, text: str) -> ConfigError:
    """An error about the copy that says what is expected."""
    return ConfigError(f"{self._folder}: {text} {expected(self._layout)}")

  def path(self, name: str) -> str:
    """The full path of a file that must be there.

    Raises:
      ConfigError: if it is not.
    """
    full = os.path.join(self._folder, name)
    if not os.path.isfile(full):
      raise self.wrong(f"there is no {name}.")
    return full

  def index(self, name: str) -> str:
    """The path of a file whose content decides what is read: it is hashed.

    Raises:
      ConfigError: if it is not there.
    """
    full = self.path(name)
    digest = hashlib.sha256()
    with open(full, "rb") as file:
      while piece := file.read(_PIECE):
        digest.update(piece)
    self._hashes[name] = digest.hexdigest()
    return full

  def text(self, name: str) -> str:
    """The content of an index file, UTF-8."""
    with open(self.index(name), encoding="utf-8-sig") as file:
      return file.read()

  def files(self, folder: str) -> list[str]:
    """Names of the files of a folder, sorted, without hidden ones.

    Raises:
      ConfigError: if there is no such folder.
    """
    full = os.path.join(self._folder, folder)
    if not os.path.isdir(full):
      raise self.wrong(f"there is no folder {folder}.")
    with os.scandir(full) as entries:
      return sorted(
        e.name for e in entries if e.is_file() and not e.name.startswith(".")
      )

  def has(self, name: str) -> bool:
    """Whether a file or folder is there."""
    return os.path.exists(os.path.join(self._folder, name))

  def reference(self, name: str) -> str:
    """How the manifest names a file of the copy."""
    full = os.path.join(os.path.abspath(self._folder), name)
    return os.path.relpath(full, os.path.abspath(self._out)).replace(
      os.sep, "/"
    )

  def place(self, name: str) -> str:
    """The path of a file beside the manifest, whose folder is made."""
    full = os.path.join(self._out, name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    return full

  @property
  def hashes(self) -> Mapping[str, str]:
    """SHA-256 of each index file that was read."""
    return self._hashes


def expected(layout: Sequence[str]) -> str:
  """A layout as the end of a message of one line."""
  return f"Expected: {'; '.join(' '.join(x.split()) for x in layout)}."


@dataclasses.dataclass(frozen=True)
class OfficialSet(abc.ABC):
  """A reader of one data set.

  Attributes:
    title: one line.
    source: address of the publisher.
    layout: one line per file or folder that is expected.
    steps: how to get them.
    counts: split -> samples, where the publisher says it.
    note: choices that the publisher leaves open.
  """

  title: ClassVar[str]
  source: ClassVar[str]
  layout: ClassVar[tuple[str, ...]]
  steps: ClassVar[tuple[str, ...]]
  counts: ClassVar[Mapping[str, int]] = {}
  note: ClassVar[str] = ""

  @abc.abstractmethod
  def lines(self, copy: Copy) -> Iterator[dict[str, Any]]:
    """The samples, each with `id`, `split`, its files and its labels.

    Args:
      copy: of the official files; gets `facts`, `total` and `done`.

    Raises:
      ConfigError: for a copy of another layout.
    """
