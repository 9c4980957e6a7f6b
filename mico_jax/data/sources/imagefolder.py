"""Data source of a folder of pictures, with a folder for each class."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import posixpath
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.config.fields import Choice
from mico_jax.data.records import id_of, media_fields, parse_fields
from mico_jax.data.references import FileReader
from mico_jax.data.sources.folders import check_folder, subfolders, walk
from mico_jax.data.sources.rows import Media, RowSource, present, some
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError, by_extension

_PICTURE = "image"
# Pictures that the modality does not claim by their extension.
_MORE = (".ppm", ".pgm", ".tif", ".tiff", ".gif", ".jp2")
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE = "file_name"
_CLASS = "class"
_LABEL = "label"


@dataclasses.dataclass(frozen=True)
class ImageFolderOptions:
  """How the folders are named."""

  # whether the folders of `path` are splits ("train", "val"); "auto": if one
  # has the name of `split`
  splits: Annotated[str, Choice("auto", "yes", "no")] = "auto"


class ImageFolderSource(RowSource):
  """A folder of pictures: `cat/1.jpg`, `dog/2.png`, or `train/cat/1.jpg`.

  The first folder below is the class: field `class`, and `label`, its number
  among the sorted names of the classes of all splits, empty ones included. A
  `metadata.csv` or `metadata.jsonl` in any folder gives further fields of the
  pictures that its column `file_name` names, relative to itself. Pictures are
  sorted by path, which is their id. Hidden files are left out.
  """

  kind: ClassVar = "imagefolder"
  reads: ClassVar = ("root",)
  held: ClassVar = 130
  Options: ClassVar = ImageFolderOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Lists the folder.

    Raises:
      ConfigError: if it has no pictures, or splits cannot be told from classes.
    """
    path = config.path
    check_folder(path, name, self.kind)
    self._name, self._config, self._storage = name, config, storage
    self._files = FileReader(os.path.abspath(path), config.root, storage, name)
    names = walk(path)
    self._split = self._split_of(names)
    pictures = [n for n in names if _is_picture(n)]
    self._metadata = self._read_metadata(names)
    known = set(pictures)
    extra = sorted(set(self._metadata) - known)  # listed, but not there
    self._paths = sorted(n for n in (*pictures, *extra) if self._inside(n))
    folders = _class_folders(path, self._split is not None)
    self._labels = {c: i for i, c in enumerate(sorted(folders))}
    if not self._paths:
      raise ConfigError(
        f"data.sources.{name}.path: no pictures in {path} (split "
        f"{config.split!r}); its other files: {some(names) or 'none'}."
      )
    self._describe(names, known)
    digest = hashlib.sha256()
    for item in (*self._paths, *sorted(self._labels)):
      digest.update(item.encode("utf-8", "surrogateescape") + b"\0")
    for item in self._paths:
      digest.update(repr(sorted(self._metadata.get(item, {}).items())).encode())
    self.sha256 = digest.hexdigest()
    self._choose(len(self._paths), splits=True)

  # ------------------------------------------------------------------- folders
  def _split_of(self, names: list[str]) -> str | None:
    """The folder of the split, "" for all splits; None: none are splits."""
    choice = self.options(self._name, self._config).splits
    split = self._config.split
    tops = sorted({n.partition("/")[0] for n in names if n.count("/")})
    if choice == "no" or (choice == "auto" and split not in tops):
      usual = {"train", "training", "val", "valid", "validation", "test"}
      if choice == "auto" and tops and set(tops) <= usual:
        if not split:
          return ""
        raise ConfigError(
          f"data.sources.{self._name}.split={split!r}: {self._config.path} has "
          f"the splits {', '.join(tops)}; name one, or '' for all."
        )
      return None
    if choice == "auto":
      deep = {n.split("/")[0] for n in names if n.count("/") > 1}
      flat = [t for t in tops if t not in deep and t != split]
      if flat:
        raise ConfigError(
          f"data.sources.{self._name}.path: nothing says whether the folder "
          f"{split!r} of {self._config.path} is a split or a class, as it lies "
          f"beside folders of files ({some(flat)}); set options="
          "{'splits': 'yes'} or {'splits': 'no'}, or name the folder of the "
          "classes."
        )
    elif split and split not in tops:
      raise ConfigError(
        f"data.sources.{self._name}.split={split!r}: {self._config.path} has "
        f"no such folder, but {', '.join(tops) or 'none'}."
      )
    return split

  def _inside(self, name: str) -> bool:
    return not self._split or name.startswith(f"{self._split}/")

  def _class_of(self, name: str) -> str | None:
    parts = name.split("/")[0 if self._split is None else 1 :]
    return parts[0] if len(parts) > 1 else None

  # ------------------------------------------------------------------ metadata
  def _read_metadata(self, names: list[str]) -> dict[str, dict[str, Any]]:
    """Path of a picture -> fields that a metadata file gives it."""
    table: dict[str, dict[str, Any]] = {}
    for file in names:
      folder, base = posixpath.split(file)
      if base not in _METADATA or (folder and not self._inside(file)):
        continue
      for fields in self._rows_of(file):
        reference = fields.pop(_FILE, None)
        if not isinstance(reference, str):
          raise ConfigError(
            f"data.sources.{self._name}: {file}: every row needs a path in "
            f"the column {_FILE!r}, got {reference!r:.60}."
          )
        path = posixpath.normpath(posixpath.join(folder, reference))
        if path in table:
          raise ConfigError(
            f"data.sources.{self._name}: {file}: two rows name {path!r:.80}; "
            "write its captions as one row: a list in metadata.jsonl."
          )
        for key, field in media_fields(self._config).items():
          if key != _PICTURE and isinstance(fields.get(field), str):
            fields[field] = posixpath.join(folder, fields[field])
        table[path] = fields
    return table

  def _rows_of(self, file: str) -> Iterator[dict[str, Any]]:
    try:
      data = self._storage.read(self._files.resolve(file), limited=False)
      text = data.decode("utf-8-sig")
      if file.endswith(".csv"):
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        if any(None in row for row in rows):
          raise DecodeError("a row has more cells than the header")
      else:
        lines = [line for line in text.split("\n") if line.strip()]
        rows = [parse_fields(x, f"line {i}") for i, x in enumerate(lines, 1)]
    except (DecodeError, ValueError, csv.Error) as error:
      raise ConfigError(
        f"data.sources.{self._name}: {file}: {error}"
      ) from error
    return map(present, rows)

  def _describe(self, names: list[str], pictures: set[str]) -> None:
    others = [
      n
      for n in names
      if n not in pictures
      and posixpath.basename(n) not in _METADATA
      and not self._is_named(n)
    ]
    if others:
      self._note(f"{len(others)} files are no pictures: {some(others)}.")
    if self._metadata:
      bare = [p for p in self._paths if p not in self._metadata]
      if bare:
        self._note(f"{len(bare)} pictures have no metadata: {some(bare)}.")
    used = {self._class_of(p) for p in self._paths}
    empty = [c for c in self._labels if c not in used]
    if empty:
      self._note(f"{len(empty)} class folders have no picture: {some(empty)}.")

  def _is_named(self, name: str) -> bool:
    """Whether a file is another modality, which the metadata name."""
    fields = [f for k, f in media_fields(self._config).items() if k != _PICTURE]
    if not hasattr(self, "_named"):
      self._named = {
        posixpath.normpath(str(row[f]))
        for row in self._metadata.values()
        for f in fields
        if f in row
      }
    return name in self._named

  # ------------------------------------------------------------------- samples
  def _fields(self, row: int) -> dict[str, Any]:
    path = self._paths[row]
    fields = dict(self._metadata.get(path, {}))
    name = self._class_of(path)
    if name is not None and name in self._labels:
      fields.setdefault(_CLASS, name)
      fields.setdefault(_LABEL, self._labels[name])
    if self._split is not None:
      fields.setdefault("split", path.split("/")[0])
    return fields

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    media = dict(super()._media(row, fields))
    path = self._paths[row]
    media[_PICTURE] = lambda: self._storage.read(self._files.resolve(path))
    return media

  def _id(self, row: int, fields: Mapping[str, Any]) -> str:
    path = self._paths[row].encode("utf-8", "backslashreplace").decode()
    return id_of(fields, path)


def _is_picture(name: str) -> bool:
  suffix = posixpath.splitext(name)[1].lower()
  modality = by_extension(suffix)
  return suffix in _MORE or (modality is not None and modality.key == _PICTURE)


def _class_folders(root: str, splits: bool) -> set[str]:
  """Names of the class folders, of all splits if there are any."""
  roots = subfolders(root) if splits else [root]
  return {
    os.path.basename(folder) for top in roots for folder in subfolders(top)
  }
