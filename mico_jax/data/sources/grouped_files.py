"""Data source of a folder of files grouped by name, as img2dataset writes."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.records import parse_fields
from mico_jax.data.references import FileReader
from mico_jax.data.sources.folders import check_folder, walk
from mico_jax.data.sources.rows import Media, RowSource, some
from mico_jax.data.sources.webdataset import TEXTS
from mico_jax.data.storage import Storage, short
from mico_jax.modalities import DecodeError, by_extension

_STATUS, _SUCCESS = "status", "success"


class GroupedFilesSource(RowSource):
  """A folder of files that form samples by their names: `7.jpg`, `7.txt`, ...

  img2dataset writes them so (`files`). As in a WebDataset, the key ends at the
  first dot of a name (`key_dot`), `.json` holds fields, `.txt` a caption,
  `.cls` a label, and other endings are media. Groups without media are left
  out and counted, by the `status` of their `.json` (downloads that failed).
  """

  kind: ClassVar = "files"
  reads: ClassVar = ("root", "key_dot")
  held: ClassVar = 620

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Lists the folder.

    Raises:
      ConfigError: if it has no samples, or their names are ambiguous.
    """
    check_folder(config.path, name, self.kind)
    self._name, self._config, self._storage = name, config, storage
    self._files = FileReader(
      os.path.abspath(config.path), config.root, storage, name
    )
    groups: dict[str, dict[str, str]] = {}
    for path in walk(config.path):
      folder, base = posixpath.split(path)
      key, suffix = self._split_name(base)
      members = groups.setdefault(posixpath.join(folder, key), {})
      if suffix in members:
        raise self._error(
          f"{short(members[suffix])!r} and {short(path)!r} differ in case "
          "only, and would be one member"
        )
      members[suffix] = path
    self._keys, bare = [], []
    self._members = groups
    for key, members in groups.items():
      (self._keys if self._media_of(key, members) else bare).append(key)
    self._tell_bare(bare)
    digest = hashlib.sha256()
    for key in self._keys:
      entry = json.dumps([key, sorted(groups[key].values())])
      digest.update(entry.encode())
    self.sha256 = digest.hexdigest()
    if not self._keys:
      raise self._error("no files of a known modality in it")
    self._choose(len(self._keys))

  def _error(self, text: str) -> ConfigError:
    return ConfigError(
      f"data.sources.{self._name}.path: {self._config.path}: {text}."
    )

  def _split_name(self, base: str) -> tuple[str, str]:
    if self._config.key_dot == "last":
      key, dot, suffix = base.rpartition(".")
      return (key, suffix.lower()) if dot else (base, "")
    key, _, suffix = base.partition(".")
    return key, suffix.lower()

  def _media_of(self, key: str, members: Mapping[str, str]) -> dict[str, str]:
    """Modality -> file.

    Raises:
      ConfigError: if two files of a group may be the same modality.
    """
    named = {k: s for k, s in self._config.fields.items() if s in members}
    media: dict[str, str] = {}
    for suffix, path in members.items():
      ending = suffix.rpartition(".")[2]
      if ending in TEXTS and ending != suffix and suffix not in self._texts():
        raise self._error(
          f"{short(path)!r} is a text of no sample, as keys end at the first "
          "dot; set key_dot='last' if they hold dots"
        )
      modality = by_extension(f".{ending}")
      if modality is None or modality.embedding == "text":
        continue
      if suffix in named.values() or modality.key in named:
        continue
      if modality.key in media:
        raise self._error(
          f"the sample {short(key)!r} has several files of one modality "
          f"({short(media[modality.key])}, {short(path)}); name the ending in "
          "`fields`, or set key_dot='last' if keys hold dots"
        )
      media[modality.key] = path
    return media | {k: members[s] for k, s in named.items()}

  def _texts(self) -> set[str]:
    return {*self._config.captions.values(), *self._config.fields.values()}

  def _tell_bare(self, bare: list[str]) -> None:
    """Reports the groups without media, by the status of their download."""
    reasons: Counter[str] = Counter()
    plain: list[str] = []
    for key in bare:
      try:
        status = self._read_fields(self._members[key]).get(_STATUS)
      except DecodeError:
        status = None
      if status in (None, _SUCCESS):
        plain.append(key)
      else:
        reasons[str(status)[:60]] += 1
    for status, count in sorted(reasons.items()):
      self._note(f"{count} samples are left out, with status {status!r}.")
    if plain:
      self._note(
        f"{len(plain)} names have no medium and are left out: {some(plain)}."
      )

  # ------------------------------------------------------------------- samples
  def _read(self, path: str) -> bytes:
    return self._storage.read(self._files.resolve(path))

  def _read_fields(self, members: Mapping[str, str]) -> dict[str, Any]:
    if "json" not in members:
      return {}
    path = members["json"]
    return parse_fields(self._read(path), short(path))

  def _fields(self, row: int) -> dict[str, Any]:
    members = self._members[self._keys[row]]
    fields = self._read_fields(members)
    if "cls" in members:
      data = self._read(members["cls"])
      try:
        fields["label"] = int(data[:20])
      except ValueError as error:
        raise DecodeError(
          f"{short(members['cls'])}: expected an integer, got {data!r:.60}."
        ) from error
    if "txt" in members and "caption" not in fields:
      fields["caption"] = self._read(members["txt"])
    for suffix in self._config.captions.values():
      if suffix not in fields and suffix in members:
        fields[suffix] = self._read(members[suffix])
    return fields

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    key = self._keys[row]
    return {
      modality: lambda path=path: self._read(path)
      for modality, path in self._media_of(key, self._members[key]).items()
    }

  def _id(self, row: int, fields: Mapping[str, Any]) -> str:
    return self._keys[row].encode("utf-8", "backslashreplace").decode()
