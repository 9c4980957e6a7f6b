"""What a source holds, sample by sample: for `data inspect`, `stats`, `verify`.

A survey reads samples in their order, several at a time, each within the time
limit of a decoder.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from mico_jax.config import Config
from mico_jax.data.faults import guarded
from mico_jax.data.guard import Guard, StalledDecoder
from mico_jax.data.input_checks import check_stated
from mico_jax.data.media_files import describe_medium
from mico_jax.data.perceptual import difference_hash
from mico_jax.data.records import Record
from mico_jax.data.samples import load_inputs
from mico_jax.data.sources import Source
from mico_jax.modalities import DecodeError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Looked:
  """One sample.

  Attributes:
    index: in its source.
    id: of the sample.
    record: None if the entry is broken.
    media: modality -> see `describe_medium`.
    digests: modality -> SHA-256 of its bytes, of media that are files.
    hashes: modality -> perceptual hash of its picture.
    errors: modality, or "record" -> reason.
  """

  index: int
  id: str
  record: Record | None
  media: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  digests: dict[str, bytes] = dataclasses.field(default_factory=dict)
  hashes: dict[str, int] = dataclasses.field(default_factory=dict)
  errors: dict[str, str] = dataclasses.field(default_factory=dict)


def chosen(count: int, limit: int) -> Sequence[int]:
  """Indices spread evenly over a source.

  Args:
    count: samples of the source.
    limit: most indices; 0: all.
  """
  if not limit or limit >= count:
    return range(count)
  return [i * count // limit for i in range(limit)]


def in_order(
  call: Callable[[int], T], indices: Sequence[int], threads: int
) -> Iterator[T]:
  """Results of a call for each index, in order, some ahead in threads."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    pending: deque[Any] = deque()
    for index in indices:
      pending.append(pool.submit(call, index))
      if len(pending) >= 2 * threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()


@dataclasses.dataclass(frozen=True)
class Survey:
  """Looks at the samples of a source.

  Attributes:
    config: of the run.
    name: of the source.
    source: open.
    decode: whether to decode and preprocess every medium, and check the texts.
    hashes: whether to hash contents and pictures.
  """

  config: Config
  name: str
  source: Source
  decode: bool = False
  hashes: bool = False

  def look(
    self,
    indices: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
  ) -> Iterator[Looked]:
    """The samples at these indices, in their order.

    Args:
      indices: of the samples.
      progress: called with (samples done, samples in all).

    Raises:
      ConfigError: for depth maps whose source states no unit.
      TransientError: for storage that stays unreachable.
    """
    threads = self.config.data.num_threads
    for done, sample in enumerate(in_order(self._one, indices, threads), 1):
      if progress is not None:
        progress(done, len(indices))
      yield sample

  def _one(self, index: int) -> Looked:
    guard = Guard(self.config.data.timeout)
    guard.at(self.name, index)
    try:
      return guard.run(lambda: self._read(index))
    except StalledDecoder as error:
      reason = " ".join(str(error).split())
      return Looked(index, f"sample {index}", None, errors={"record": reason})

  def _read(self, index: int) -> Looked:
    try:
      record = self.source.record(index)
    except DecodeError as error:
      return Looked(
        index, f"sample {index}", None, errors={"record": str(error)}
      )
    sample = Looked(index, record.id, record)
    if self.decode:
      self._decode(sample, record)
      return sample
    for key, read in record.media.items():
      try:
        raw = guarded(read, reads=True)
        sample.media[key] = describe_medium(raw)
        if self.hashes and isinstance(raw, bytes):
          sample.digests[key] = hashlib.sha256(raw).digest()
          value = difference_hash(raw)
          if value is not None:
            sample.hashes[key] = value
      except DecodeError as error:
        sample.errors[key] = str(error)
    return sample

  def _decode(self, sample: Looked, record: Record) -> None:
    for key in record.media:
      check_stated(self.config, self.name, key)
      try:
        load_inputs(self.config, record, self.name, (key,), None)
      except DecodeError as error:
        sample.errors[key] = str(error).removeprefix(f"{key}: ")
    for kind, texts in record.captions.items():
      if not all(text.strip() for text in texts):
        sample.errors[f"{kind} caption"] = "a text is empty."
