"""What the endpoints compute, as plain values."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import mimetypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.app import previews
from mico_jax.app.gallery import Gallery
from mico_jax.app.limits import Limits, Refused
from mico_jax.app.uploads import UPLOAD, Question, question
from mico_jax.data.guard import Guard
from mico_jax.inference.omni_model import OmniModel
from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, DecodeError, preprocessing

EACH = "each"  # in place of a modality: of all of them
_KEPT = 256  # previews
_KEPT_BYTES = 32 * 2**20


class Engine:
  """A checkpoint and what it searches.

  The methods of questions compute on the device and run one at a time; those of
  previews only decode.

  Attributes:
    model: whose decoding is limited.
    gallery: that is searched.
    limits: of requests.
  """

  def __init__(
    self,
    model: OmniModel,
    gallery: Gallery,
    limits: Limits,
    *,
    show_paths: bool = False,
  ):
    """Takes the parts; see the class.

    Args:
      model: takes the limits of uploads from here on.
      gallery: embedded by that model.
      limits: of requests.
      show_paths: whether hits tell where their files lie.
    """
    self.model, self.gallery, self.limits = model, gallery, limits
    self._show_paths = show_paths
    self._files = model.preparer  # of the gallery, without these limits
    model.preparer = limited(model.preparer, limits)
    self._previews: collections.OrderedDict[Any, tuple[str, bytes]]
    self._previews = collections.OrderedDict()
    self._lock = threading.Lock()

  def question(self, **given: Any) -> Question:
    """See `uploads.question`."""
    return question(self.model.preparer, self.limits, **given)

  def describe(self) -> dict[str, Any]:
    """The checkpoint, the gallery, and what may be uploaded."""
    return {
      "checkpoint": {
        "name": self.model.config.name,
        "step": self.model.step,
        "fingerprint": self.model.fingerprint,
        "embed_dim": self.model.embed_dim,
        "objectives": sorted(
          {x for t in self.model.config.tasks.values() for x in t.objectives}
        ),
      },
      "gallery": {
        "title": self.gallery.title,
        "items": len(self.gallery.index),
        "modalities": self.gallery.index.modalities,
      },
      "uploads": [
        _upload(key)
        for key in self.model.modalities
        if MODALITIES[key].kind != "interface"
      ],
      "limits": dataclasses.asdict(self.limits),
    }

  def embed(self, asked: Question) -> dict[str, Any]:
    """The embeddings of what was given."""
    found = self.model.embed(**asked.inputs(), progress=False)
    return {"embeddings": {key: z[0].tolist() for key, z in found.items()}}

  def search(
    self, asked: Question, k: int, only: str, match: bool
  ) -> dict[str, Any]:
    """The nearest items.

    Args:
      asked: a text, an upload, or the sum of both.
      k: how many; with `EACH`, of each modality.
      only: modality of the items; "": any; `EACH`: all, one after the other, as
        items of the question's own modality are nearer to it than others.
      match: whether the matching head says how probable it is that the question
        and each item belong together, where one of the two is a text; and how
        a text and an upload do that were both given, as `pair`.

    Raises:
      Refused: for too many, or a modality that the gallery lacks.
      DecodeError: for an upload that cannot be used.
    """
    if not 1 <= k <= self.limits.hits:
      raise Refused(400, f"k={k}: expected 1 to {self.limits.hits}.")
    known = self.gallery.index.modalities
    if only and only != EACH and only not in known:
      raise Refused(
        400, f"no {only[:40]!r} here; there are {', '.join(known)}."
      )
    query = self.model.query(**asked.inputs())
    hits = []
    for key in known if only == EACH else (only,):
      (rows,), (scores,) = self.gallery.index.nearest(query, k, key)
      hits += [
        self._hit(int(row), float(score))
        for row, score in zip(rows, scores, strict=True)
      ]
    if not match:
      return {"hits": hits}
    self._add_matches(asked, hits)
    return {"hits": hits} | self._pair(asked)

  def _hit(self, row: int, score: float) -> dict[str, Any]:
    hit = self.gallery.index.hit(row, score)
    name = hit.path.rstrip("/").rpartition("/")[2] or hit.id
    found = {
      "row": row,
      "score": score,
      "modality": hit.modality,
      "name": name,
      "text": self.gallery.text(row),
      "plays": self._plays(hit.modality),
    }
    if self._show_paths:
      found |= {"id": hit.id, "path": hit.path, "source": hit.source}
    return found

  def _plays(self, key: str) -> bool:
    """Whether items of a modality are heard, or move."""
    modality = MODALITIES[key]
    if modality.kind == "interface":
      return False
    sizes = preprocessing.input_config(self.model.config, key)
    return modality.play is not None or sizes.frames > 1

  def _add_matches(self, asked: Question, hits: list[dict[str, Any]]) -> None:
    """Adds `match` to hits; None where there is none to compute."""
    for hit in hits:
      hit["match"] = None
    if asked.text and asked.item is None:
      for key in dict.fromkeys(hit["modality"] for hit in hits):
        if MODALITIES[key].kind != "interface":
          self._match_items(
            asked.text, key, [hit for hit in hits if hit["modality"] == key]
          )
    elif asked.item is not None and not asked.text:
      texts = [hit for hit in hits if hit["text"]]
      if texts:
        array = self.model.preparer.prepare_one(asked.key, asked.item)
        found = self._match([h["text"] for h in texts], asked.key, [array])
        for hit, value in zip(texts, found[0], strict=True):
          hit["match"] = float(value)

  def _match_items(
    self, text: str, key: str, hits: list[dict[str, Any]]
  ) -> None:
    """Adds `match` to hits of a modality, except those that cannot be read."""
    arrays, read = [], []
    for hit in hits:
      with contextlib.suppress(DecodeError):
        item = self.gallery.item(hit["row"])
        arrays.append(self._files.prepare_one(key, item))
        read.append(hit)
    if arrays:
      found = self._match([text], key, arrays)
      for hit, value in zip(read, found[:, 0], strict=True):
        hit["match"] = float(value)

  def _match(
    self, texts: list[str], key: str, arrays: list[np.ndarray]
  ) -> Float[np.ndarray, "N Q"]:
    """Probability that each prepared input and each text belong together."""
    ids = np.stack([self._files.prepare_one("text", text) for text in texts])
    letter = MODALITIES[key].letter
    return self.model.match_arrays(ids, {key: np.stack(arrays)}, letter)

  def _pair(self, asked: Question) -> dict[str, Any]:
    """How a text and an upload that were given together match."""
    if not asked.text or asked.item is None:
      return {}
    z = self.model.embed(**asked.inputs(), progress=False)
    probability = self.model.match(text=[asked.text], **asked.upload())
    return {
      "pair": {
        "score": float(z["text"][0] @ z[asked.key][0]),
        "match": float(probability[0]),
      }
    }

  def caption(self, asked: Question) -> dict[str, Any]:
    """A caption of the upload."""
    (text,) = self.model.caption(**asked.upload(), progress=False)
    return {"caption": text}

  def answer(self, asked: Question) -> dict[str, Any]:
    """The answer to the text as a question about the upload."""
    if not asked.text:
      raise Refused(400, "write the question as the text.")
    (text,) = self.model.answer(
      question=[asked.text], **asked.upload(), progress=False
    )
    return {"answer": text}

  def attention(self, asked: Question) -> dict[str, Any]:
    """Pictures of what the model sees of the upload, and attends to."""
    upload = asked.upload()
    if MODALITIES[asked.key].embedding != "patch":
      raise Refused(400, f"{asked.key} has no patches to draw attention on.")
    maps = self.model.attention(**upload, progress=False)[asked.key][0]
    frames = self._in_time(
      lambda: previews.overlays(
        *(self.model.preparer, asked.key, asked.item, maps),
        side=self.limits.frame,
      )
    )
    return {"frames": frames}

  def _in_time(self, work: Callable[[], Any]) -> Any:
    """The result of decoding an upload.

    Raises:
      StalledDecoder: if it takes too long.
    """
    guard = Guard(self.limits.decode_time)
    guard.at(UPLOAD, 0)
    return guard.run(work)

  # ------------------------------------------------- what shows and plays
  def shown(self, asked: Question) -> tuple[str, bytes]:
    """A JPEG file of the upload, for what a browser does not show."""
    asked.upload()
    ((_, data),) = self._in_time(
      lambda: previews.thumbnails(
        *(self.model.preparer, asked.key, asked.item), side=self.limits.frame
      )
    )
    return previews.JPEG, data

  def played(self, asked: Question) -> tuple[str, bytes]:
    """FLAC or H.264 of the upload, for what a browser does not play."""
    asked.upload()
    return self._in_time(
      lambda: previews.playable(
        *(self.model.preparer, asked.key, asked.item), side=self.limits.frame
      )
    )

  def thumbnail(self, row: int) -> tuple[str, bytes]:
    """A JPEG file of an item.

    Raises:
      Refused: if there is no such row.
      DecodeError: for an item that cannot be read any more, or is a text.
    """

    def make() -> tuple[str, bytes]:
      key = self._shown_key(row)
      item = self.gallery.view(row)
      ((_, data),) = previews.thumbnails(
        self._files, key, item, side=self.limits.frame
      )
      return previews.JPEG, data

    return self._kept(("thumbnail", row), make)

  def player(self, row: int) -> tuple[str, bytes]:
    """FLAC or H.264 of an item; raises as `thumbnail`."""

    def make() -> tuple[str, bytes]:
      key = self._shown_key(row)
      item = self.gallery.view(row)
      return previews.playable(self._files, key, item, side=self.limits.frame)

    return self._kept(("player", row), make)

  def _shown_key(self, row: int) -> str:
    if not 0 <= row < len(self.gallery.index):
      raise Refused(404, f"there is no item {row}.")
    key = self.gallery.index.hit(row, 0.0).modality
    if MODALITIES[key].kind == "interface":
      raise Refused(404, f"item {row} is a text.")
    return key

  def _kept(
    self, name: Any, make: Callable[[], tuple[str, bytes]]
  ) -> tuple[str, bytes]:
    """A preview, made once as long as it is among the last ones."""
    with self._lock:
      if name in self._previews:
        self._previews.move_to_end(name)
        return self._previews[name]
    made = make()
    with self._lock:
      self._previews[name] = made
      size = sum(len(data) for _, data in self._previews.values())
      while self._previews and (
        len(self._previews) > _KEPT or size > _KEPT_BYTES
      ):
        size -= len(self._previews.popitem(last=False)[1][1])
    return made


def limited(preparer: Preparer, limits: Limits) -> Preparer:
  """A preparer that refuses what is larger than the limits."""
  data = preparer.config.data
  data = dataclasses.replace(
    data,
    max_pixels=min(data.max_pixels, limits.pixels),
    timeout=min(data.timeout, limits.decode_time),
    # What a header hides is cut; what is known to be longer was refused.
    audio=dataclasses.replace(
      data.audio, max_seconds=min(data.audio.max_seconds, limits.seconds + 1)
    ),
  )
  config = dataclasses.replace(preparer.config, data=data)
  return Preparer(config, preparer.tokenizer)


def _upload(key: str) -> dict[str, Any]:
  """What a page must know to upload a file of a modality."""
  modality = MODALITIES[key]
  types = {mimetypes.guess_type(f"file{s}")[0] for s in modality.extensions}
  return {
    "modality": key,
    "extensions": list(modality.extensions),
    "types": sorted({t.partition("/")[0] for t in types if t}),
    "statements": list(modality.statements),
    "required": bool(modality.units) and not modality.in_file,
    "rated": bool(modality.rate),
    "attention": modality.embedding == "patch",
  }
