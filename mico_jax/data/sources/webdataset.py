"""WebDataset: tar shards whose members form samples by their names."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated
from mico_jax.data.records import (
  Record,
  make_record,
  matches,
  parse_fields,
)
from mico_jax.data.remote import Storage, short
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.shards import expand
from mico_jax.data.tar import TarIndex
from mico_jax.modalities import DecodeError, by_extension

TEXTS = ("json", "cls", "txt")  # endings that hold fields, not media
_INTEGER = re.compile(rb"\s*[+-]?\d{1,18}\s*")
NAMED = 3  # members that a message lists

# Shard, key, ending -> member.
_Sample = tuple[int, str, dict[str, str]]


class WebDatasetSource(SourceKind):
  """Tar shards; members of a sample share their name up to the first dot.

  `.json` holds fields, `.txt` a caption, `.cls` a label; other members are
  fields named by what follows the dot. Without `fields` in the config, a
  member's type follows its ending. `key_dot="last"` reads sets whose keys hold
  dots. What the files of an operating system leave behind (`.DS_Store`,
  `._a.jpg`, `__MACOSX/`) is no sample.
  """

  kind: ClassVar = "webdataset"
  reads: ClassVar = ("key_dot",)

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Indexes the shards (`path`: comma-separated files or glob patterns).

    Raises:
      ConfigError: if there is no shard, no sample is left, names repeat within
        a shard, or the names leave open which member belongs to what.
      TransientError: for storage that stays away.
    """
    self._config, self._name = config, name
    self._shards: list[TarIndex] = []
    self._samples: list[_Sample] = []
    self._left_out: list[str] = []
    digest = hashlib.sha256()
    for path in expand(config.path, name):
      try:
        shard = TarIndex(storage.local(path), storage)
      except DecodeError as error:
        raise ConfigError(f"data.sources.{name}: {error}") from error
      self._check_repeated(path, shard)
      self._shards.append(shard)
      for member, offset, size in shard.index:
        place = f"{member} {(offset, size)}"
        digest.update(place.encode("utf-8", "backslashreplace"))
      groups = self._groups(shard)
      self._check_groups(path, groups)
      number = len(self._shards) - 1
      self._samples += [(number, k, v) for k, v in groups.items()]
    self.sha256 = digest.hexdigest()
    if self._left_out:
      tell(
        f"source {name!r}: {len(self._left_out)} members are no part of a "
        f"sample (hidden files, links that lead nowhere, devices): "
        f"{_some(self._left_out)}."
      )
    if config.where:
      self._samples = [s for s in self._samples if self._wanted(s)]
    if not self._samples:
      raise ConfigError(
        f"data.sources.{name}: no sample in {config.path} with "
        f"where={dict(config.where)!r}."
      )
    hashes = np.asarray([hash(s[1]) for s in self._samples], np.int64)
    tell_repeated(name, hashes, lambda i: _id(self._samples[i]))

  def _check_repeated(self, path: str, shard: TarIndex) -> None:
    if not shard.repeated:
      return
    extra = sum(n - 1 for n in shard.repeated.values())
    shown = [f"{n} {c} times" for n, c in shard.repeated.items()]
    raise ConfigError(
      f"data.sources.{self._name}: {short(path)}: {len(shard.repeated)} member "
      f"names repeat ({_some(shown)}), so that {extra} members would be lost; "
      "write each name once."
    )

  def _groups(self, shard: TarIndex) -> dict[str, dict[str, str]]:
    """Key -> ending -> member."""
    self._left_out += shard.dangling
    groups: dict[str, dict[str, str]] = {}
    for member in shard.members:
      folder, base = posixpath.split(member)
      if base.startswith(".") or "__MACOSX" in folder.split("/"):
        self._left_out.append(member)
        continue
      if self._config.key_dot == "last":
        stem, dot, suffix = base.rpartition(".")
        stem, suffix = (stem, suffix) if dot else (base, "")
      else:
        stem, _, suffix = base.partition(".")
      own = groups.setdefault(posixpath.join(folder, stem), {})
      if suffix.lower() in own:
        raise ConfigError(
          f"data.sources.{self._name}: {short(shard.path)}: "
          f"{short(own[suffix.lower()])!r} and {short(member)!r} differ in "
          "case only, and would be one member."
        )
      own[suffix.lower()] = member
    return groups

  def _check_groups(self, path: str, groups: dict[str, dict[str, str]]) -> None:
    """Refuses names that leave open which member means what."""
    unread, rivals = [], []
    used = {*self._config.fields.values(), *self._config.captions.values()}
    for members in groups.values():
      seen: dict[str, str] = {}
      for suffix, member in members.items():
        ending = suffix.rpartition(".")[2]
        if suffix in used:
          continue
        if ending in TEXTS and ending != suffix:
          unread.append(member)
        modality = by_extension(f".{ending}")
        if modality is None or modality.key in self._config.fields:
          continue
        if modality.embedding != "text" and modality.key in seen:
          rivals += [seen[modality.key], member]
        seen.setdefault(modality.key, member)
    for found, what in (
      (unread, "texts, which belong to no sample"),
      (rivals, "several members of one modality in a sample"),
    ):
      if found:
        raise ConfigError(
          f"data.sources.{self._name}: {short(path)}: keys end at the "
          f"{self._config.key_dot} dot, which gives {what}: {len(found)} "
          f"members such as {_some(found)}. Set key_dot='last' if keys hold "
          "dots, or name the endings in `fields`."
        )

  def _wanted(self, sample: _Sample) -> bool:
    """Whether a sample passes `where`; a broken one does, to be named."""
    try:
      fields = guarded(lambda: self._fields(sample))
    except DecodeError:
      return True
    return matches(fields, self._config, use_split=False)

  def _fields(self, sample: _Sample) -> dict[str, Any]:
    number, _, members = sample
    shard = self._shards[number]
    fields: dict[str, Any] = {}
    if "json" in members:
      name = members["json"]
      fields.update(parse_fields(shard.read(name), short(name)))
    if "cls" in members:
      data = shard.read(members["cls"])
      if not _INTEGER.fullmatch(data):
        raise DecodeError(
          f"{short(members['cls'])}: expected an integer, got {data!r:.60}."
        )
      fields["label"] = int(data)
    if "txt" in members and "caption" not in fields:
      fields["caption"] = shard.read(members["txt"])
    for suffix in self._config.captions.values():
      # A text of an ending of its own, named by `captions`.
      if suffix not in fields and suffix in members:
        fields[suffix] = shard.read(members[suffix])
    return fields

  def __len__(self) -> int:
    """Number of samples."""
    return len(self._samples)

  def record(self, index: int) -> Record:
    """Sample number `index`.

    Raises:
      DecodeError: for fields that are broken or of a wrong type.
    """
    return guarded(lambda: self._record(self._samples[index]))

  def _record(self, sample: _Sample) -> Record:
    number, _, members = sample
    shard = self._shards[number]
    by_field, named = {}, set(self._config.fields.values())
    for suffix in members:
      if suffix in named:  # of the modality that the config says, and no other
        continue
      modality = by_extension(f".{suffix.rpartition('.')[2]}")
      if modality is not None and modality.embedding != "text":
        by_field.setdefault(modality.key, suffix)
    by_field.update(self._config.fields)
    media = {
      key: _member(shard, members[suffix])
      for key, suffix in by_field.items()
      if suffix in members
    }
    return make_record(_id(sample), self._fields(sample), media, self._config)


def _id(sample: _Sample) -> str:
  return sample[1].encode("utf-8", "backslashreplace").decode()


def _some(names: list[str]) -> str:
  more = ", ..." if len(names) > NAMED else ""
  return ", ".join(short(n) for n in names[:NAMED]) + more


def _member(shard: TarIndex, name: str) -> Callable[[], bytes]:
  return lambda: shard.read(name)
