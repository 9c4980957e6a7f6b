"""A user's inputs as prepared batches, a chunk of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from mico_jax.config import Config
from mico_jax.inference.prepare import Preparer, trained_contexts
from mico_jax.inference.progress import bar
from mico_jax.inference.skipping import Skipped
from mico_jax.inference.text_methods import Call, pad_rows
from mico_jax.modalities import MODALITIES, items


class Chunk(NamedTuple):
  """The usable inputs of a batch.

  Attributes:
    part: aligned lists by modality.
    arrays: their prepared arrays.
    rows: their places among all inputs.
  """

  part: Mapping[str, Sequence[Any]]
  arrays: Mapping[str, np.ndarray]
  rows: Int[np.ndarray, " N"]


class Batching:
  """Methods of `OmniModel` that read and prepare inputs.

  Attributes:
    config: of the run that made the checkpoint.
    preparer: decodes and preprocesses.
    batch_size: largest number of inputs per compiled call.
  """

  config: Config
  preparer: Preparer
  batch_size: int

  def prepare(self, **inputs: Any) -> dict[str, Shaped[np.ndarray, "N ..."]]:
    """Inputs decoded and preprocessed, as `PureFunctions.pixels` takes them.

    Args:
      **inputs: aligned lists by modality.

    Raises:
      ValueError: for a modality that the checkpoint lacks.
      DecodeError: for an input that cannot be read.
    """
    chunk = self._prepare(self._lists(inputs), 0, Skipped())
    assert chunk is not None  # the first input that cannot be used is an error
    return dict(chunk.arrays)

  def _lists(self, inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """A user's inputs as lists, checked to be of the model's modalities."""
    for key in inputs:
      self.preparer.check_key(key)
    return {key: items.as_list(key, rows) for key, rows in inputs.items()}

  def _letters(self, inputs: Mapping[str, Any]) -> str:
    """Context letters of the given modalities, in the table's order."""
    if not inputs:
      raise ValueError("no inputs given, e.g. image=['photo.jpg'].")
    letters = [self.preparer.check_key(key).letter for key in inputs]
    if "t" in letters:
      raise ValueError("text=[...] cannot be its own context.")
    return context_order(letters, self.config)

  def _batches(
    self, arrays: Mapping[str, np.ndarray], most: int = 0
  ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of fixed sizes, the last padded; their numbers of real rows."""
    count = len(next(iter(arrays.values())))
    most = most or self.batch_size
    size = min(most, 1 << max(count - 1, 0).bit_length())
    for start in range(0, count, size):
      batch = {k: v[start : start + size] for k, v in arrays.items()}
      real = min(size, count - start)
      yield {k: pad_rows(v, size) for k, v in batch.items()}, real

  def _prepare(
    self, inputs: Mapping[str, Sequence[Any]], start: int, skipped: Skipped
  ) -> Chunk | None:
    """Host arrays of aligned lists; None: no row can be used."""
    arrays, usable = {}, set(range(items.lengths_of(inputs)))
    for key, values in inputs.items():
      array, kept, errors = self.preparer.prepare(key, values)
      arrays[key] = array, kept
      failed = sorted(set(range(len(values))) - set(kept))
      for row, error in zip(failed, errors, strict=True):
        skipped.add(start + row, error)
      usable &= set(kept)
    if not usable:
      return None
    rows = sorted(usable)
    return Chunk(
      {key: [values[row] for row in rows] for key, values in inputs.items()},
      {
        key: array if len(kept) == len(rows) else array[np.isin(kept, rows)]
        for key, (array, kept) in arrays.items()
      },
      start + np.asarray(rows),
    )

  def _chunks(
    self,
    inputs: Mapping[str, Sequence[Any]],
    call: Call,
    what: str,
    skipped: Skipped,
  ) -> Iterator[Chunk]:
    """Batches of the usable inputs with their prepared arrays."""
    count = items.lengths_of(inputs)
    size = call.batch_size or self.batch_size
    with bar(count, what, call.progress) as shown:
      for start in range(0, count, size):
        part = {k: v[start : start + size] for k, v in inputs.items()}
        chunk = self._prepare(part, start, skipped)
        if chunk is not None:
          yield chunk
        shown.update(min(size, count - start))
    skipped.tell(count)


def context_order(letters: Sequence[str], config: Config) -> str:
  """Letters of a context in the order of training.

  A context concatenates its modalities, so with a position table their order
  matters. It is that of the first trained group or head with the same letters,
  else that of the table of modalities.
  """
  wanted = frozenset(letters)
  for group in (*trained_contexts(config), *config.model.heads):
    if frozenset(group) == wanted:
      return group
  order = [m.letter for m in MODALITIES.values()]
  return "".join(sorted(wanted, key=order.index))
