"""Data source of COCO annotations, with a folder of pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.references import FileReader, parent
from mico_jax.data.sources.rows import Media, RowSource, present, some
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Storage
from mico_jax.modalities import DecodeError

_PICTURE = "image"


@dataclasses.dataclass(frozen=True)
class CocoOptions:
  """Where the pictures are."""

  # folder of the pictures, relative to that of the annotations
  images: str = "."


class CocoSource(RowSource):
  """COCO annotations: `captions_*.json`, `instances_*.json`, or both (commas).

  A sample is an image; its id is the id of the image, not of an annotation.
  All captions of an image are alternatives, in the order of the file. Fields
  of instances: `categories`, names each once, and `objects`, their number.
  Karpathy's splits (`sentences` in the images) are read too, with `split`.
  `options.images` is the folder of the pictures, such as `"../val2017"` with
  `root=".."`. Images without annotations are samples without captions.
  """

  kind: ClassVar = "coco"
  reads: ClassVar = ("root",)
  held: ClassVar = 2750
  Options: ClassVar = CocoOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the annotations.

    Raises:
      ConfigError: if they are missing, broken, or repeat the id of an image.
    """
    self._name, self._config, self._storage = name, config, storage
    self._images: dict[Any, dict[str, Any]] = {}
    self._captions: dict[Any, list[Any]] = {}
    self._objects: dict[Any, list[str]] = {}
    digest = hashlib.sha256()
    paths = expand(config.path, name)
    for path in paths:
      try:
        data = storage.read(path, limited=False)
        content = json.loads(data)
      except (DecodeError, ValueError, RecursionError) as error:
        raise self._error(path, " ".join(str(error).split())[:200]) from error
      digest.update(hashlib.sha256(data).digest())
      self._add(path, content)
    self.sha256 = digest.hexdigest()
    folder = self.options(name, config).images
    self._folder = folder
    self._files = FileReader(parent(paths[0]), config.root, storage, name)
    self._list = list(self._images.values())
    self._tell_unknown()
    self._choose(len(self._list))

  def _error(self, path: str, text: str) -> ConfigError:
    return ConfigError(f"data.sources.{self._name}.path: {path}: {text}")

  def _add(self, path: str, content: Any) -> None:
    """Adds the images and annotations of a file."""
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
      raise self._error(path, "expected a JSON object with a list 'images'.")
    seen: Counter[Any] = Counter()
    for image in images:
      if not isinstance(image, dict):
        raise self._error(path, f"an image is no object: {image!r:.60}.")
      number = image.get("id", image.get("cocoid", image.get("imgid")))
      name = _name(image)
      if not _is_id(number) or not isinstance(name, str):
        raise self._error(
          path, f"an image needs 'id' and 'file_name', got {image!r:.100}."
        )
      seen[number] += 1
      known = self._images.setdefault(number, {**image, "id": number})
      if _name(known) != name:
        raise self._error(
          path,
          f"image {number} is {name!r:.80}, but {_name(known)!r:.80} in a file "
          "before it, whose captions it would get; make them sources of their "
          "own.",
        )
    repeated = [n for n, count in seen.items() if count > 1]
    if repeated:
      raise self._error(
        path, f"{len(repeated)} ids of images repeat: {some(repeated)}."
      )
    names = self._categories(path, content)
    annotations = content.get("annotations") or []
    if not isinstance(annotations, list):
      raise self._error(path, "'annotations' is no list.")
    for item in annotations:
      if not isinstance(item, dict) or not _is_id(item.get("image_id")):
        raise self._error(
          path, f"an annotation needs 'image_id', got {item!r:.100}."
        )
      if "caption" in item:
        self._captions.setdefault(item["image_id"], []).append(item["caption"])
      if "category_id" in item:
        category = item["category_id"]
        if not _is_id(category) or category not in names:
          raise self._error(
            path, f"category_id {category!r:.60} is not listed."
          )
        self._objects.setdefault(item["image_id"], []).append(names[category])

  def _categories(
    self, path: str, content: Mapping[str, Any]
  ) -> dict[Any, str]:
    """Number of a category -> name."""
    try:
      return {c["id"]: str(c["name"]) for c in content.get("categories") or []}
    except (TypeError, KeyError) as error:
      raise self._error(path, "a category needs 'id' and 'name'.") from error

  def _tell_unknown(self) -> None:
    known = set(self._images)
    noted = {*self._captions, *self._objects}
    unknown = [n for n in noted if n not in known]
    if unknown:
      self._note(
        f"annotations are of {len(unknown)} images that are not listed and are "
        f"left out: {some(sorted(map(str, unknown)))}."
      )
    bare = [
      i["id"]
      for i in self._list
      if i["id"] not in self._captions and not i.get("sentences")
    ]
    if bare and len(bare) < len(self._list):
      self._note(f"{len(bare)} images have no caption: {some(bare)}.")

  def _fields(self, row: int) -> dict[str, Any]:
    image = self._list[row]
    fields = present({k: v for k, v in image.items() if k != "sentences"})
    texts = self._captions.get(image["id"])
    if texts is None and isinstance(image.get("sentences"), list):
      texts = [s.get("raw") for s in image["sentences"] if isinstance(s, dict)]
    fields |= present({"caption": texts})
    if image["id"] in self._objects:
      names = self._objects[image["id"]]
      fields["categories"] = list(dict.fromkeys(names))
      fields["objects"] = len(names)
    return fields

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    image = self._list[row]
    name = _name(image)
    if isinstance(image.get("filepath"), str) and "file_name" not in image:
      name = posixpath.join(image["filepath"], name)  # Karpathy's
    path = posixpath.join(self._folder, name)
    media = dict(super()._media(row, fields))
    media[_PICTURE] = lambda: self._storage.read(self._files.resolve(path))
    return media


def _name(image: Mapping[str, Any]) -> Any:
  """The name of an image's file, as COCO or as Karpathy writes it."""
  return image.get("file_name", image.get("filename"))


def _is_id(value: Any) -> bool:
  return isinstance(value, (int, str)) and not isinstance(value, bool)
