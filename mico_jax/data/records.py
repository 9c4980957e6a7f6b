"""Record of a sample: its texts and fields, and readers of its media.

The texts of a record are taken from its fields by their usual names
(`caption_fields`) or by those that the config of the source gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mico_jax import json_text
from mico_jax.config import SourceConfig
from mico_jax.modalities import MODALITIES, WHOLE, DecodeError

CAPTION = "caption"  # of any kind, where things that samples have are named
# Caption kind -> record fields, in addition to those of the modalities.
_FIELDS: dict[str, tuple[str, ...]] = {
  WHOLE: ("omni_caption", "caption", "text"),
  "alt_text": ("alt_text",),
  "story": ("story",),
}


def caption_fields() -> dict[str, tuple[str, ...]]:
  """Caption kind -> record fields that may hold it; the first present counts.

  They are used for kinds that the source's `captions` does not name. A field
  "<kind>_caption" holds captions of any other kind.
  """
  captions = [m.caption for m in MODALITIES.values() if m.caption]
  return {caption.kind: caption.fields for caption in captions} | _FIELDS


@dataclass(frozen=True)
class Record:
  """One sample of a source.

  Attributes:
    id: name in the source. Ids may repeat: a sample is identified by its source
      and its index there.
    media: modality -> function that reads the file or array.
    captions: caption kind -> alternative texts.
    negatives: caption kind -> texts that are false in a detail.
    questions: (question, answer, letters of the modalities that together show
      the answer; "": any).
    fields: all fields of the sample in the source (labels, split, ...).
    read_many: reads several modalities at once, if that is cheaper.
  """

  id: str
  media: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
  captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
  negatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
  questions: Sequence[tuple[str, str, str]] = ()
  fields: Mapping[str, Any] = field(default_factory=dict)
  read_many: Callable[[Sequence[str]], Mapping[str, Any]] | None = None

  def read(self, keys: Sequence[str]) -> dict[str, Any]:
    """Raw media of the modalities `keys` that the sample has."""
    keys = [key for key in keys if key in self.media]
    if self.read_many is not None and len(keys) > 1:
      return dict(self.read_many(keys))
    return {key: self.media[key]() for key in keys}


class Lazy(Mapping[str, Any]):
  """A mapping whose values are computed on access."""

  def __init__(self, names: Sequence[str], make: Callable[[str], Any]):
    """Takes the keys, and the function that computes the value of one."""
    self._names, self._make = tuple(names), make

  def __getitem__(self, name: str) -> Any:
    """Computes a value."""
    if name not in self._names:
      raise KeyError(name)
    return self._make(name)

  def __contains__(self, name: object) -> bool:
    """Whether there is such a key; computes no value."""
    return name in self._names

  def __iter__(self) -> Iterator[str]:
    """The keys."""
    return iter(self._names)

  def __len__(self) -> int:
    """Number of keys."""
    return len(self._names)


def as_texts(value: Any) -> tuple[str, ...]:
  """Converts a text or a list of texts (str or UTF-8 bytes) to a tuple.

  None gives no texts.

  Raises:
    DecodeError: for other types, and for bytes that are not UTF-8.
  """
  if value is None:
    return ()
  items = value if isinstance(value, (list, tuple)) else [value]
  texts = []
  for item in items:
    if isinstance(item, bytes):
      try:
        item = item.decode("utf-8-sig")
      except UnicodeDecodeError as error:
        raise DecodeError(f"caption is not UTF-8: {error}.") from error
    if not isinstance(item, str):
      raise DecodeError(f"a caption must be text, got {item!r:.60}.")
    texts.append(item)
  return tuple(texts)


def captions_of(
  fields: Mapping[str, Any], config: SourceConfig
) -> dict[str, tuple[str, ...]]:
  """Captions in the fields of a record, by kind.

  In order of precedence: the fields that `config.captions` (kind -> field)
  names, a field `captions` (a mapping by kind, or texts of kind "omni"), and
  the fields of `caption_fields`.
  """
  captions: dict[str, tuple[str, ...]] = {}
  for kind, name in config.captions.items():
    texts = as_texts(fields.get(name))
    if texts:
      captions[kind] = texts
  by_kind = fields.get("captions")
  if isinstance(by_kind, Mapping):
    for kind, value in by_kind.items():
      captions.setdefault(str(kind), as_texts(value))
  elif by_kind is not None:
    captions.setdefault(WHOLE, as_texts(by_kind))
  for kind, names in caption_fields().items():
    for name in names:
      if kind not in captions and fields.get(name) is not None:
        captions[kind] = as_texts(fields[name])
  for name, value in fields.items():
    kind = name.removesuffix("_caption")
    if kind != name and value is not None:
      captions.setdefault(kind, as_texts(value))
  return {kind: texts for kind, texts in captions.items() if texts}


def negatives_of(fields: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """Explicit negatives by caption kind; texts without a kind are "omni"."""
  value = fields.get("negatives")
  if isinstance(value, Mapping):
    return {str(k): as_texts(v) for k, v in value.items()}
  texts = as_texts(value)
  return {WHOLE: texts} if texts else {}


def questions_of(
  fields: Mapping[str, Any],
) -> tuple[tuple[str, str, str], ...]:
  """Questions of a record: (question, answer, letters), see `Record`.

  They are read from `questions`, a list of pairs or of mappings with
  `question`, `answer` and optionally `letters`; else from `question` and
  `answer`.

  Raises:
    DecodeError: for questions of another form.
  """
  items = fields.get("questions")
  if items is None:
    question, answer = fields.get("question"), fields.get("answer")
    items = [(question, answer)] if question and answer else []
  if not isinstance(items, (list, tuple)):
    raise DecodeError(f"questions must be a list, got {items!r:.60}.")
  pairs = []
  for item in items:
    parts = item
    if isinstance(item, Mapping):
      keys = ("question", "answer", "letters")
      parts = [item[k] for k in keys if item.get(k) is not None]
    if (
      not isinstance(parts, (list, tuple))
      or len(parts) not in (2, 3)
      or not all(isinstance(x, (str, bytes)) for x in parts)
    ):
      raise DecodeError(f"a question needs two texts, got {item!r:.80}.")
    question, answer, *letters = as_texts(list(parts))
    pairs.append((question, answer, "".join(letters)))
  return tuple(pairs)


def media_fields(config: SourceConfig) -> dict[str, str]:
  """Modality -> record field: that of `config.fields`, else its own name."""
  return {
    key: config.fields.get(key, key)
    for key, modality in MODALITIES.items()
    if modality.embedding != "text"
  }


def inline_fields(config: SourceConfig) -> dict[str, str]:
  """Modality -> record field, of those whose values stand in the field."""
  return {
    key: field
    for key, field in media_fields(config).items()
    if config.units.get(key) in MODALITIES[key].inline
  }


def parse_fields(text: str | bytes, name: str) -> dict[str, Any]:
  """The fields of a sample from the text of a JSON object.

  Args:
    text: JSON.
    name: of the text, for error messages.

  Raises:
    DecodeError: for anything else, and for repeated fields.
  """
  if isinstance(text, str):
    text = text.removeprefix("\ufeff")
  try:
    fields = json_text.loads_unique(text)
  except (ValueError, RecursionError) as error:
    raise DecodeError(
      f"{name}: not JSON: {' '.join(str(error).split())[:200]}."
    ) from error
  if not isinstance(fields, dict):
    raise DecodeError(
      f"{name}: expected a JSON object, got {type(fields).__name__}."
    )
  return fields


def id_of(fields: Mapping[str, Any], otherwise: str) -> str:
  """The id in the fields of a sample, or `otherwise` if there is none.

  Raises:
    DecodeError: if the id is neither text nor a number.
  """
  name = fields.get("id")
  if name is None:
    return otherwise
  if isinstance(name, bool) or not isinstance(name, (str, int, float)):
    raise DecodeError(f"the id must be text or a number, got {name!r:.60}.")
  # Lone surrogates could not be written to a file.
  return str(name).encode("utf-8", "backslashreplace").decode()


def make_record(
  sample_id: str,
  fields: Mapping[str, Any],
  media: Mapping[str, Callable[[], Any]],
  config: SourceConfig,
) -> Record:
  """Makes a record whose texts are taken from its fields.

  Args:
    sample_id: of the sample.
    fields: of the sample.
    media: modality -> function that reads the file or array.
    config: of the source.

  Raises:
    DecodeError: for fields of a wrong type.
  """
  split = fields.get("split")
  if split is not None and not isinstance(split, (str, bytes)):
    raise DecodeError(f"split must be text, got {split!r:.60}.")
  inline = {
    key: lambda text=str(fields[field]): text.encode()
    for key, field in inline_fields(config).items()
    if fields.get(field) is not None
  }
  return Record(
    id=sample_id,
    media={**media, **inline} if inline else media,
    captions=captions_of(fields, config),
    negatives=negatives_of(fields),
    questions=questions_of(fields),
    fields=fields,
  )


def matches(
  fields: Mapping[str, Any], config: SourceConfig, *, use_split: bool = True
) -> bool:
  """Whether a record passes the filters `split` and `where` of its source.

  A record without a `split` field belongs to every split. So does one whose
  split is no text: it is reported as broken when it is read.
  """
  split = fields.get("split") if use_split and config.split else None
  if isinstance(split, str) and split != config.split:
    return False
  for name, wanted in config.where.items():
    values = wanted if isinstance(wanted, (list, tuple)) else (wanted,)
    if fields.get(name) not in values:
      return False
  return True
