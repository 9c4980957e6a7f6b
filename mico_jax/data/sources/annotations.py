"""Data source of a benchmark's own annotation files, beside its media."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mico_jax.config import ConfigError, SourceConfig, to_dict
from mico_jax.data import field_paths
from mico_jax.data.annotation_files import Found, Table, read_table
from mico_jax.data.annotation_options import (
  AnnotationsOptions,
  Join,
  check_options,
)
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell_split
from mico_jax.data.media_names import MediaNames
from mico_jax.data.records import matches
from mico_jax.data.references import FileReader
from mico_jax.data.rotated_depth import rotated
from mico_jax.data.sources.folders import walk
from mico_jax.data.sources.rows import Media, RowSource, some
from mico_jax.data.storage import Storage, is_remote
from mico_jax.modalities import DecodeError

_BLANK = re.compile(r"<[^<>]*>")


class AnnotationsSource(RowSource):
  """A folder with the annotation files of a benchmark, as published.

  `options` say how they are read: which file, where its rows, captions,
  questions and labels are, and how media are named. `path` is the folder. The
  fields of a record: `caption`, `questions`, `answers`, `label`, `labels`, and
  the first row of the sample as `annotation`. A sample without a file has no
  such modality.
  """

  kind: ClassVar = "annotations"
  reads: ClassVar = ("root",)
  Options: ClassVar = AnnotationsOptions

  def __init__(self, name: str, config: SourceConfig, storage: Storage):
    """Reads the annotations.

    Raises:
      ConfigError: if they are missing, or not as the options say.
    """
    self._name, self._config = name, config
    if is_remote(config.path) or not os.path.isdir(config.path):
      raise ConfigError(
        f"data.sources.{name}.path: {config.path!r} is no local folder."
      )
    self._options = self.options(name, config)
    check_options(self._options, f"data.sources.{name}.options")
    self._files = FileReader(
      os.path.abspath(config.path), config.root, storage, name
    )
    self.tables: list[Found] = []
    try:
      self._samples = self._read()
      self.sha256 = self._digest()
    except (DecodeError, ConfigError) as error:
      raise ConfigError(
        f"data.sources.{name}.path: {config.path}: {error}"
      ) from error
    self._choose(len(self._samples), splits=False)

  # -------------------------------------------------------------------- reading
  @functools.cached_property
  def _names(self) -> list[str]:
    """All files below the folder."""
    return walk(self._config.path)

  def _table(self, table: Table) -> Found:
    self.tables.append(read_table(table, self._files, lambda: self._names))
    return self.tables[-1]

  def _read(self) -> list[tuple[str, list[dict[str, Any]]]]:
    """(id, rows) of each sample of the split, in the order of the file."""
    o = self._options
    rows = self._table(o.table).rows
    for name, join in o.joins.items():
      rows = self._joined(rows, name, join)
    samples: dict[str, list[dict[str, Any]]] = {}
    others: set[str] = set()  # not of the split, but known
    for row in rows:
      wanted = self._wanted(row)
      if not wanted and not o.only.table.file:
        continue
      sample_id = field_paths.fill(o.id, row)
      if sample_id is None:
        raise DecodeError(f"row {row[field_paths.ROW]} has no {o.id}.")
      if wanted:
        samples.setdefault(sample_id, []).append(row)
      else:
        others.add(sample_id)
    if o.only.table.file:
      samples = self._listed(samples, others)
    if not samples:
      raise ConfigError(
        f"no row of {self.tables[0].path} has {dict(o.where)!r}."
      )
    if o.order:
      for group in samples.values():
        group.sort(key=lambda row: field_paths.values(row, o.order)[:1])
    if o.num_answers:
      self._check_answers(samples)
    return list(samples.items())

  def _joined(
    self, rows: Sequence[dict[str, Any]], name: str, join: Join
  ) -> list[dict[str, Any]]:
    others: dict[str | None, list[dict[str, Any]]] = {}
    for other in self._table(join.table).rows:
      others.setdefault(field_paths.fill(join.match, other), []).append(other)
    others.pop(None, None)
    found = [
      {**row, name: others.get(field_paths.fill(join.on, row), [])}
      for row in rows
    ]
    if not any(row[name] for row in found):
      raise ConfigError(
        f"no row of {self.tables[0].path} belongs to one of "
        f"{self.tables[-1].path}: {join.on} is never {join.match}."
      )
    return found

  def _wanted(self, row: Mapping[str, Any]) -> bool:
    for path, wanted in self._options.where.items():
      allowed = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
      if not any(v in allowed for v in field_paths.values(row, path)):
        return False
    return True

  def _listed(
    self, samples: Mapping[str, list[dict[str, Any]]], others: Collection[str]
  ) -> dict[str, list[dict[str, Any]]]:
    """The samples of the list, in its order, without `others`."""
    only = self._options.only
    rows = self._table(only.table).rows
    ids = [field_paths.fill(only.id, row) for row in rows]
    names = list(dict.fromkeys(i for i in ids if i is not None))
    unknown = [i for i in names if i not in samples and i not in others]
    if unknown:
      raise ConfigError(
        f"{self.tables[-1].path} names {len(unknown)} samples that "
        f"{self.tables[0].path} does not have: {some(unknown)}."
      )
    return {i: samples[i] for i in names if i in samples}

  def _check_answers(
    self, samples: Mapping[str, Sequence[Mapping[str, Any]]]
  ) -> None:
    o = self._options
    for sample_id, rows in samples.items():
      for row in rows:
        count = len(field_paths.values(row, o.answers))
        if count != o.num_answers:
          question = field_paths.values(row, o.question)[:1]
          raise ConfigError(
            f"sample {sample_id!r}, question {question!r:.80}: {count} "
            f"answers; expected {o.num_answers} of each question."
          )

  def _digest(self) -> str:
    digest = hashlib.sha256()
    for found in self.tables:
      digest.update(found.sha256.encode())
    text = json.dumps(to_dict(self._options), sort_keys=True, default=str)
    digest.update(text.encode())
    return digest.hexdigest()

  # -------------------------------------------------------------------- samples
  @functools.cached_property
  def _media_names(self) -> MediaNames:
    return MediaNames(self._names, self._options.files)

  def _fields(self, row: int) -> dict[str, Any]:
    sample_id, rows = self._samples[row]
    o = self._options
    fields: dict[str, Any] = {"id": sample_id}
    texts = self._texts(rows)
    if texts:
      fields["caption"] = texts
    if o.question:
      fields |= self._questions(rows)
    if o.label:
      fields["label"] = self._label(rows[0])
    if o.labels:
      fields["labels"] = self._labels(rows[0])
    plain = {k: v for k, v in rows[0].items() if _is_plain(v)}
    if not o.where and not o.only.table.file:  # which say the split
      tell_split(self._config.path, self._config.split, plain.get("split"))
    return {**fields, "annotation": plain}

  def _rows_where(self, count: int) -> Iterator[int]:
    """The rows that pass `where`, which may name fields of the annotation."""
    for row in range(count):
      try:
        fields = guarded(lambda row=row: self._fields(row))
        fields = {**fields["annotation"], **fields}
      except DecodeError:
        yield row
        continue
      if matches(fields, self._config, use_split=False):
        yield row

  def _texts(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    o = self._options
    texts = []
    for row in rows:
      for path in o.texts:
        for text in field_paths.values(row, path):
          if not isinstance(text, str):
            raise DecodeError(f"{path!r}: expected text, got {text!r:.60}.")
          texts.append(" ".join(text.split()))
    texts = [text for text in texts if text]
    if o.paragraph:
      return [" ".join(texts)] if texts else []
    return texts[: o.most or len(texts)]

  def _questions(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The questions of a sample, and several people's answers beside them."""
    o, questions, answers = self._options, [], []
    for row in rows:
      asked = field_paths.values(row, o.question)
      given = field_paths.values(row, o.answers) if o.answers else []
      right = field_paths.values(row, o.answer) if o.answer else given
      if not asked or not right:
        raise DecodeError(f"a question or its answer is missing: {row!r:.100}.")
      text = self._without_blanks(str(asked[0]), row)
      questions.append({"question": text, "answer": str(right[0])})
      answers.append([str(answer) for answer in given])
    return {"questions": questions} | (
      {"answers": answers} if o.answers else {}
    )

  def _without_blanks(self, question: str, row: Mapping[str, Any]) -> str:
    if not self._options.blanks:
      return question
    words = field_paths.values(row, self._options.blanks)
    if len(words) == 1 and isinstance(words[0], str):
      words = _listed_words(words[0])
    blanks = _BLANK.findall(question)
    if len(blanks) != len(words):
      raise DecodeError(
        f"{question!r:.80} has {len(blanks)} blanks for {len(words)} words."
      )
    parts = iter(words)
    return _BLANK.sub(lambda _: str(next(parts)), question)

  def _label(self, row: Mapping[str, Any]) -> str | int:
    """The class of a row; a number stays one."""
    o = self._options
    if not o.label_names and not o.label_else:
      paths = field_paths.paths_in(o.label)
      found = field_paths.values(row, paths[0]) if len(paths) == 1 else []
      if o.label == f"{{{''.join(paths)}}}" and _is_number(found):
        return found[0]
    label = field_paths.fill(o.label, row)
    if label is None:
      raise DecodeError(f"the row has no {o.label}.")
    return o.label_names.get(label, o.label_else or label)

  def _labels(self, row: Mapping[str, Any]) -> list[str]:
    found = field_paths.values(row, self._options.labels)
    if len(found) == 1 and isinstance(found[0], str):
      found = found[0].split(",")
    return [str(x).strip() for x in found]

  def _media(self, row: int, fields: Mapping[str, Any]) -> Media:
    first = self._samples[row][1][0]
    return {
      key: self._reader(key, name)
      for key, name in self._media_names.of(first).items()
    }

  def _reader(self, key: str, name: str) -> Callable[[], Any]:
    if key in self._options.rotated:
      return lambda: rotated(self._files.read(name))
    return lambda: self._files.read(name)

  @property
  def has_labels(self) -> bool:
    """Whether the annotations give samples a class, or several."""
    return bool(self._options.label or self._options.labels)

  def labels(self) -> set[str]:
    """The classes that samples of the split have."""
    o, found = self._options, set()
    for row in self._rows:
      first = self._samples[int(row)][1][0]
      if o.label:
        found.add(str(self._label(first)))
      if o.labels:
        found.update(self._labels(first))
    return found

  def questions(self) -> int:
    """Number of questions of all samples."""
    if not self._options.question:
      return 0
    return sum(len(self._samples[int(row)][1]) for row in self._rows)

  def with_fewer_texts(self, count: int) -> list[str]:
    """Ids of the samples that have fewer captions than `count`."""
    chosen = (self._samples[int(row)] for row in self._rows)
    return [name for name, rows in chosen if len(self._texts(rows)) < count]

  def listed_again(self, *, single: bool) -> list[str]:
    """Ids of the samples of which a row stands twice, with all its fields.

    Args:
      single: a sample has one row, so that any second one is too many.
    """
    found = []
    for index in self._rows:
      sample_id, rows = self._samples[int(index)]
      texts = {
        json.dumps({**row, field_paths.ROW: 0}, sort_keys=True, default=str)
        for row in rows
      }
      if len(texts) < len(rows) or (single and len(rows) > 1):
        found.append(sample_id)
    return found

  def extra_table(self, table: Table) -> Found:
    """Rows of a further file of the folder, such as names of classes."""
    return read_table(table, self._files, lambda: self._names)

  def lacking(self) -> dict[str, list[str]]:
    """Modality -> ids of the samples whose file is not in the folder.

    Raises:
      ConfigError: if several files may be that of a sample.
    """
    keys = self._options.files
    lacks: dict[str, list[str]] = {key: [] for key in keys}
    for row in self._rows:
      try:
        there = self._media(int(row), {})
      except DecodeError as error:
        raise ConfigError(
          f"data.sources.{self._name}.path: {self._config.path}: {error}"
        ) from error
      for key in keys:
        if key not in there:
          lacks[key].append(self._samples[int(row)][0])
    return lacks

  def same_files(self) -> dict[str, str]:
    """Modality -> another one that has the same file in every sample.

    Such as sound that is that of the video.
    """
    keys = list(self._options.files)
    same = {(b, a) for i, a in enumerate(keys) for b in keys[i + 1 :]}
    for row in self._rows:
      names = self._media_names.of(self._samples[int(row)][1][0])
      same = {(b, a) for b, a in same if names.get(b) == names.get(a)}
    return {b: a for b, a in sorted(same, reverse=True)}

  def ids(self) -> list[str]:
    """Ids of the samples, in their order."""
    return [self._samples[int(row)][0] for row in self._rows]


def _is_number(found: Sequence[Any]) -> bool:
  return len(found) == 1 and isinstance(found[0], int)


def _is_plain(value: Any) -> bool:
  return isinstance(value, (str, int, float, bool))


def _listed_words(text: str) -> list[str]:
  """The words of a list that is written as a text: '["piano", "left"]'."""
  try:
    words = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    words = None
  if not isinstance(words, list):
    raise DecodeError(f"expected a list of words, got {text!r:.60}.")
  return [str(word) for word in words]
