"""A folder of videos, with or without a list of them."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError
from mico_jax.data.build.inputs.base import Input
from mico_jax.data.build.inputs.metadata import read_metadata
from mico_jax.data.build.raw import Raw
from mico_jax.data.build.rows import Entry, Row, Unit, runs
from mico_jax.data.identity import tell
from mico_jax.data.records import parse_fields
from mico_jax.data.storage import MAX_FILE_BYTES, Storage, is_remote
from mico_jax.modalities import WHOLE, DecodeError
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.video import VIDEO

PER_UNIT = 64  # files of a unit, where the number of shards is not said
NAMED = 3  # files that a message lists


@dataclasses.dataclass(frozen=True)
class _File:
  """A raw file and what is said of it."""

  name: str  # in the folder; "": there is none
  size: int
  entries: tuple[Entry, ...]


class VideosInput(Input):
  """A folder of video and sound files, by name; a list says what they are.

  Without a list each file is one sample called by its path without ending, and
  `sidecars` reads the `.txt` (a caption of the whole) and `.json` (kept under
  "metadata") beside it, as video2dataset writes them.
  """

  kind: ClassVar[str] = "videos"

  def __init__(
    self,
    folder: str,
    *,
    metadata: str = "",
    layout: str = "columns",
    columns: Mapping[str, str] | None = None,
    sidecars: bool = False,
    split: str = "",
  ):
    """Lists the folder and the list.

    Args:
      folder: with all below it; local.
      metadata: files that list clips; "": every file is a sample.
      layout: of the list, see `mico_jax.data.build.inputs.metadata`.
      columns: role -> column of the list.
      sidecars: see the class.
      split: name of the split that the result is called by.

    Raises:
      ConfigError: for a folder without videos, or a list that is none.
    """
    self.folder, self.split, self._sidecars = folder, split, sidecars
    self._paths = _listed(folder)
    if (columns or layout != "columns") and not metadata:
      raise ConfigError("layout and columns are of a list; name it: metadata.")
    if metadata:
      if sidecars:
        raise ConfigError("either a list or sidecars says what a file is.")
      self._files = self._named(read_metadata(metadata, layout, columns or {}))
      self.spans = any(e.span for f in self._files for e in f.entries)
    else:
      self._files = [
        _File(name, size, (Entry(os.path.splitext(name)[0]),))
        for name, size in self._paths.items()
      ]

  def _named(self, lines: list[tuple[str, str, Entry]]) -> list[_File]:
    """The files that a list names, each once, in its order."""
    stems: dict[str, list[str]] = {}
    for name in self._paths:
      stems.setdefault(pathlib.PurePosixPath(name).stem, []).append(name)
    grouped: dict[str, list[Entry]] = {}
    lost: list[_File] = []
    for stem, file, entry in lines:
      names = stems.get(stem, []) if stem else [file]
      reason, wanted = entry.reason, stem or file
      if not reason and len(names) > 1:
        reason = f"{stem}: {len(names)} files are called so: {names[0]}, ..."
      if not reason and (not names or names[0] not in self._paths):
        reason = f"{wanted}: no such file in the folder."
      name = entry.id or os.path.splitext(names[0] if names else wanted)[0]
      entry = dataclasses.replace(entry, id=name, reason=reason)
      if reason:
        lost.append(_File("", 0, (entry,)))
      else:
        grouped.setdefault(names[0], []).append(entry)
    if unused := [name for name in self._paths if name not in grouped]:
      more = ", ..." if len(unused) > NAMED else ""
      tell(
        f"data build: {len(unused)} of {len(self._paths)} files are not in the "
        f"list and not used: {', '.join(unused[:NAMED])}{more}"
      )
    files = [
      _File(name, self._paths[name], tuple(entries))
      for name, entries in grouped.items()
    ]
    return files + lost

  def identity(self) -> dict[str, Any]:
    """Names and sizes of the files, and what is said of them."""
    return {
      "kind": self.kind,
      "sidecars": self._sidecars,
      "files": [dataclasses.asdict(file) for file in self._files],
    }

  def units(self, shards: int) -> list[Unit]:
    """See `Input`; 0: one unit per `PER_UNIT` files."""
    count = len(self._files)
    shards = shards or -(-count // PER_UNIT)
    if not 1 <= shards <= count:
      raise ConfigError(
        f"{shards=} must be from 1 to the number of files, {count}."
      )
    return [
      Unit(i, len(part), tuple(self._files[j] for j in part))
      for i, part in enumerate(runs(count, shards))
    ]

  def __getstate__(self) -> dict[str, Any]:
    """Workers get their files with their units."""
    return {**self.__dict__, "_files": [], "_paths": {}}

  def rows(self, unit: Unit) -> Iterator[tuple[int, list[Row]]]:
    """See `Input`."""
    storage = Storage(max_file_bytes=MAX_FILE_BYTES)
    for file in unit.payload:
      rows = []
      path = os.path.join(self.folder, file.name)
      raw = Raw(
        file.name,
        lambda path=path: storage.read(path),
        key=_key_of(file.name),
        path=path,
      )
      for entry in file.entries:
        row = Row(entry.id, raw=raw if file.name else None, span=entry.span)
        row.fields["file"] = file.name
        if entry.fields:
          row.fields["metadata"] = dict(entry.fields)
        for kind, texts in entry.texts.items():
          row.fields[f"{kind}_caption"] = list(texts)
        if entry.reason:
          row.fail("input", entry.reason)
        elif self._sidecars:
          _read_sidecars(row, path, storage)
        rows.append(row)
      yield file.size, rows


def _listed(folder: str) -> dict[str, int]:
  """Name -> size of the video and sound files below a folder, sorted."""
  if is_remote(folder):
    raise ConfigError(f"{folder!r} is remote; mount it, or use tar shards.")
  endings = (*VIDEO.extensions, *AUDIO.extensions)
  names: dict[str, int] = {}
  for base, folders, files in os.walk(folder):
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    for file in files:
      path = os.path.join(base, file)
      if file.startswith(".") or not file.lower().endswith(endings):
        continue
      # What is no file, such as a link that leads nowhere, is a failed row.
      name = os.path.relpath(path, folder).replace(os.sep, "/")
      names[name] = os.path.getsize(path) if os.path.isfile(path) else 0
  if not names:
    raise ConfigError(
      f"{folder!r} holds no video or sound file ({' '.join(endings)})."
    )
  return dict(sorted(names.items()))


def _key_of(name: str) -> str:
  is_video = name.lower().endswith(tuple(VIDEO.extensions))
  return VIDEO.key if is_video else AUDIO.key


def _read_sidecars(row: Row, path: str, storage: Storage) -> None:
  """Adds what lies beside a file; what cannot be read fails the row."""
  stem = os.path.splitext(path)[0]
  try:
    if os.path.isfile(f"{stem}.json"):
      data = storage.read(f"{stem}.json")
      row.fields["metadata"] = parse_fields(data, f"{row.id}.json")
    if os.path.isfile(f"{stem}.txt"):
      text = storage.read(f"{stem}.txt").decode("utf-8-sig").strip()
      row.fields[f"{WHOLE}_caption"] = text
  except UnicodeDecodeError as error:
    row.fail("input", f"{row.id}.txt is not UTF-8: byte {error.start}.")
  except DecodeError as error:
    row.fail("input", str(error))
