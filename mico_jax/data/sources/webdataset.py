"""WebDataset: tar shards whose members form samples by their names."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import guarded
from mico_jax.data.identity import tell, tell_repeated, tell_split
from mico_jax.data.index import places, samples, tars
from mico_jax.data.index.columns import Columns
from mico_jax.data.index.selection import select
from mico_jax.data.index.shards import Shards
from mico_jax.data.records import (
  CAPTION,
  Record,
  make_record,
  matches,
  parse_fields,
)
from mico_jax.data.sources.base import SourceKind
from mico_jax.data.sources.shards import expand
from mico_jax.data.storage import Span, Storage, is_remote, short
from mico_jax.data.tar import read_member, span_of
from mico_jax.modalities import WHOLE, DecodeError, by_extension

TEXTS = ("json", "cls", "txt")  # endings that hold fields, not media
_INTEGER = re.compile(rb"\s*[+-]?\d{1,18}\s*")
NAMED = 3  # members that a message lists
_NEAR = 1 << 16  # bytes between members up to which they are read at once
_PIECE = 65536  # samples whose rows are handed on at a time


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
    self._config, self._name, self._storage = config, name, storage
    self._left_out: list[str] = []
    self._leaves_out = 0
    try:
      paths = expand(config.path, name)
      self._shards = Shards(paths, self._load, self._check_shard)
    except DecodeError as error:
      raise ConfigError(f"data.sources.{name}: {error}") from error
    self.sha256 = self._shards.sha256
    self.remote = any(map(is_remote, paths))
    if self._leaves_out:
      tell(
        f"source {name!r}: {self._leaves_out} members are no part of a "
        f"sample (hidden files, links that lead nowhere, devices): "
        f"{_some(self._left_out)}."
      )
    self._selection = select(
      len(self._shards),
      {
        "sha256": self.sha256,
        "where": config.where,
        "key_dot": config.key_dot,
      },
      self._pick if config.where else None,
      lambda: self._shards.joined("id_hash"),
    )
    if not self._selection.count:
      raise ConfigError(
        f"data.sources.{name}: no sample in {config.path} with "
        f"where={dict(config.where)!r}."
      )
    tell_repeated(
      name, np.empty(0, np.int64), self._id, self._selection.repeats
    )

  def _load(self, path: str, *, beside: bool = False) -> Columns:
    dot = self._config.key_dot
    return places.load(
      path,
      samples.kind_of(dot),
      self._storage,
      lambda: samples.build(path, self._storage, dot),
      beside=beside,
    )

  def write_index(self) -> list[str]:
    """Writes the index of each shard beside it, where that may be."""
    for shard in self._shards.shards:
      self._load(shard.path, beside=True)
    return [shard.path for shard in self._shards.shards]

  def presence(self) -> dict[str, dict[str, int]]:
    """How many samples have a member of each ending."""
    counts: Counter[str] = Counter()
    for number in range(len(self._shards.shards)):
      columns = self._shards.columns(number)
      patterns, times = columns.meta["patterns"], samples.counts_of(columns)
      for pattern, count in zip(patterns, times, strict=True):
        counts.update(dict.fromkeys(pattern, count))
    return {"fields": dict(counts)}

  def former_sha256(self) -> str:
    """What the source was known by before its shards had hashes."""
    whole = hashlib.sha256()
    for number in range(len(self._shards.shards)):
      tars.add_to_digest(self._shards.columns(number), whole)
    return whole.hexdigest()

  def _id(self, index: int) -> str:
    columns, sample, _ = self._place(index)
    return samples.id_of_key(samples.key_at(columns, sample))

  def _place(self, index: int) -> tuple[Columns, int, str]:
    """The index of the shard, the sample's number there, the shard's path."""
    number, sample = self._shards.place(self._selection.row(index))
    return (
      self._shards.columns(number),
      sample,
      self._shards.shards[number].path,
    )

  # ---------------------------------------------------------- checks of a shard
  def _check_shard(self, path: str, columns: Columns) -> None:
    meta = columns.meta
    if meta["repeats"]:
      shown = [f"{n} {c} times" for n, c in meta["repeated"].items()]
      raise ConfigError(
        f"data.sources.{self._name}: {short(path)}: {meta['repeats']} member "
        f"names repeat ({_some(shown)}), so that {meta['extra']} members would "
        "be lost; write each name once."
      )
    self._leaves_out += meta["leaves_out"]
    self._left_out += meta["left_out"][: NAMED + 1 - len(self._left_out)]
    self._check_patterns(path, columns)

  def _check_patterns(self, path: str, columns: Columns) -> None:
    """Refuses names that leave open which member means what."""
    unread, rivals = [], []
    numbers = [0, 0]
    used = {*self._config.fields.values(), *self._config.captions.values()}
    meta = columns.meta
    counts = samples.counts_of(columns)
    for endings, members, count in zip(
      meta["patterns"], meta["examples"], counts, strict=True
    ):
      seen: dict[str, str] = {}
      for suffix, member in zip(endings, members, strict=True):
        ending = suffix.rpartition(".")[2]
        if suffix in used:
          continue
        if ending in TEXTS and ending != suffix:
          unread.append(member)
          numbers[0] += count
        modality = by_extension(f".{ending}")
        if modality is None or modality.key in self._config.fields:
          continue
        if modality.embedding != "text" and modality.key in seen:
          rivals += [seen[modality.key], member]
          numbers[1] += 2 * count
        seen.setdefault(modality.key, member)
    for names, number, what in (
      (unread, numbers[0], "texts, which belong to no sample"),
      (rivals, numbers[1], "several members of one modality in a sample"),
    ):
      if names:
        raise ConfigError(
          f"data.sources.{self._name}: {short(path)}: keys end at the "
          f"{self._config.key_dot} dot, which gives {what}: {number} "
          f"members such as {_some(names)}. Set key_dot='last' if keys hold "
          "dots, or name the endings in `fields`."
        )

  def having(self, names: Sequence[str]) -> Iterator[np.ndarray]:
    """See `SourceKind.having`."""
    start = 0
    for number in range(len(self._shards.shards)):
      columns, rows = self._shards.columns(number), self._selection.rows
      table = [self._has(p, names) for p in columns.meta["patterns"]]
      pattern, end = columns["pattern"], start + len(columns["pattern"])
      if rows is not None:
        first, last = np.searchsorted(rows, (start, end))
        pattern = pattern[rows[first:last] - start]
      yield np.asarray(table, np.int8)[pattern]
      start = end

  def _has(self, pattern: Sequence[str], names: Sequence[str]) -> int:
    """Whether samples with these endings have all of `names`; -1: unclear."""
    there = set(self._media(dict.fromkeys(pattern, 0)))
    if "txt" in pattern and "json" not in pattern:
      there |= {CAPTION, f"{CAPTION}:{WHOLE}"}
    if there.issuperset(names):
      return 1
    # A member of text tells, or is broken, and a broken sample passes.
    texts = (*TEXTS, *self._config.captions.values())
    return -1 if any(text in pattern for text in texts) else 0

  # -------------------------------------------------------------------- samples
  def _pick(self) -> Iterator[np.ndarray]:
    """The rows that pass `where`; a broken one does, to be named."""
    chosen: list[int] = []
    for row in range(len(self._shards)):
      number, sample = self._shards.place(row)
      columns, path = (
        self._shards.columns(number),
        self._shards.shards[number].path,
      )
      try:
        fields = guarded(
          lambda c=columns, s=sample, p=path: self._fields(
            c, p, samples.members_of(c, s)
          )
        )
      except DecodeError:
        chosen.append(row)
      else:
        if matches(fields, self._config, use_split=False):
          chosen.append(row)
      if len(chosen) >= _PIECE:
        yield np.asarray(chosen, np.int64)
        chosen = []
    yield np.asarray(chosen, np.int64)

  def _fields(
    self, columns: Columns, path: str, members: dict[str, int]
  ) -> dict[str, Any]:
    def read(ending: str) -> bytes:
      return read_member(self._storage, path, columns, members[ending])

    def name(ending: str) -> str:
      return short(tars.normal_name(tars.name_at(columns, members[ending])))

    fields: dict[str, Any] = {}
    if "json" in members:
      fields.update(parse_fields(read("json"), name("json")))
    if "cls" in members:
      data = read("cls")
      if not _INTEGER.fullmatch(data):
        raise DecodeError(
          f"{name('cls')}: expected an integer, got {data!r:.60}."
        )
      fields["label"] = int(data)
    if "txt" in members and "caption" not in fields:
      fields["caption"] = read("txt")
    for suffix in self._config.captions.values():
      # A text of an ending of its own, named by `captions`.
      if suffix not in fields and suffix in members:
        fields[suffix] = read(suffix)
    return fields

  def __len__(self) -> int:
    """Number of samples."""
    return self._selection.count

  def record(self, index: int) -> Record:
    """Sample number `index`.

    Raises:
      DecodeError: for fields that are broken or of a wrong type.
    """
    return guarded(lambda: self._record(index))

  def _media(self, members: dict[str, int]) -> dict[str, int]:
    """Modality -> row of its member."""
    by_field: dict[str, str] = {}
    named = set(self._config.fields.values())
    for suffix in members:
      if suffix in named:  # of the modality that the config says, and no other
        continue
      modality = by_extension(f".{suffix.rpartition('.')[2]}")
      if modality is not None and modality.embedding != "text":
        by_field.setdefault(modality.key, suffix)
    by_field.update(self._config.fields)
    return {k: members[s] for k, s in by_field.items() if s in members}

  def _record(self, index: int) -> Record:
    columns, sample, path = self._place(index)
    members = samples.members_of(columns, sample)
    media = {
      key: self._reader(columns, path, row)
      for key, row in self._media(members).items()
    }
    key = samples.id_of_key(samples.key_at(columns, sample))
    fields = self._fields(columns, path, members)
    config = self._config
    tell_split(config.path, config.split, fields.get("split"))
    return make_record(key, fields, media, self._config)

  def _reader(
    self, columns: Columns, path: str, row: int
  ) -> Callable[[], bytes]:
    return lambda: read_member(self._storage, path, columns, row)

  def spans(self, index: int, keys: Sequence[str]) -> list[Span]:
    """See `SourceKind.spans`: near members are one span."""
    columns, sample, path = self._place(index)
    members = samples.members_of(columns, sample)
    media = self._media(members)
    wanted = {row for key, row in media.items() if key in keys}
    texts = (*TEXTS, *self._config.captions.values())
    wanted.update(members[s] for s in texts if s in members)
    spans: list[Span] = []
    for span in sorted(span_of(path, columns, row) for row in wanted):
      last = spans[-1] if spans else None
      if last is not None and span.offset - last.offset - last.size <= _NEAR:
        end = max(span.offset + span.size, last.offset + last.size)
        spans[-1] = last._replace(size=end - last.offset)
      else:
        spans.append(span)
    return spans


def _some(names: list[str]) -> str:
  more = ", ..." if len(names) > NAMED else ""
  return ", ".join(short(n) for n in names[:NAMED]) + more
