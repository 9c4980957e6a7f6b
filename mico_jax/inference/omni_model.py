"""Inference with a checkpoint: load, embed, match, caption, answer, score.

    model = mico_jax.load("runs/demo")
    z = model.embed(image=["a.jpg"], audio=["b.flac"], text=["a dog barks"])

Inputs run in batches of a few fixed sizes (powers of two up to `batch_size`),
so repeated calls compile nothing new.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Float, Int

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer, tokenizer_from_files
from mico_jax.inference import scores
from mico_jax.inference.prepare import Preparer, trained_contexts
from mico_jax.inference.self_check import model_params, self_check
from mico_jax.inference.text_methods import ContextBatch, TextMethods, pad_rows
from mico_jax.inference.writing import TextWriter
from mico_jax.kernels.compiler import forward_options
from mico_jax.layers.stack import split_layers
from mico_jax.modalities import MODALITIES, by_letter, items, played_by
from mico_jax.models import build, forward
from mico_jax.models.text_tower import ContextKV
from mico_jax.parallel.backend import require_backend


class OmniModel(TextMethods):
  """A model with its tokenizer and preprocessing, ready to use.

  Inputs are lists: paths, bytes or raw arrays of a modality (`image`, `video`,
  `audio`, `depth`, `normal`), or strings (`text`, `subtitle`). The unit of a
  depth file is part of its name: "mm:d.png", "m:d.npy", "relative:d.png"; a
  depth array is in metres unless `mico_jax.inference.prepare.Item` gives its
  unit, or relative where the checkpoint was trained on relative depth. A single
  input counts as a list of one, see `mico_jax.modalities.items.as_list`.

  Attributes:
    config: of the run that made the checkpoint.
    step: of that run.
    params: parameters on the default device; on CPU the layers are unstacked
      (`mico_jax.layers.stack.split_layers`).
    objective_params: what objectives trained beside the model, such as heads of
      classes; see `mico_jax.objectives`.
    notes: steps skipped and problems tolerated while loading, one line each.
    fingerprint: hash of the checkpoint's manifest; "" without one.
  """

  def __init__(
    self,
    config: Config,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    step: int = 0,
    batch_size: int = 32,
    notes: Sequence[str] = (),
    fingerprint: str = "",
  ):
    """Wraps parameters; `mico_jax.load` makes one from a checkpoint.

    Args:
      config: of the model and its preprocessing.
      params: nested dict; low-rank deltas are merged.
      tokenizer: of the checkpoint.
      step: of the run.
      batch_size: largest number of inputs per compiled call.
      notes: see the class.
      fingerprint: see the class.
    """
    self.config = config
    self.step = step
    self.tokenizer = tokenizer
    self.notes = tuple(notes)
    self.fingerprint = fingerprint
    self.batch_size = batch_size
    self.preparer = Preparer(config, tokenizer)
    options: dict[str, Any] = {"remat": "none"}
    merged = model_params(params, config)
    if jax.default_backend() == "cpu":
      options["scan"] = False
      merged = split_layers(merged)
    self.model = build(dataclasses.replace(config.model, **options))
    place = lambda x: jnp.asarray(x, jnp.float32)
    self.params = jax.tree.map(place, merged)
    self.objective_params = jax.tree.map(place, params.get("objective", {}))
    jit = functools.partial(jax.jit, compiler_options=forward_options())
    self._embed = jit(self._embed_batch, static_argnums=2)
    self._context = jit(self._context_batch, static_argnums=2)
    self._match = jit(functools.partial(forward.match_probability, self.model))
    self._texts = TextWriter(self.model, config, tokenizer)

  @property
  def modalities(self) -> tuple[str, ...]:
    """Keys of the modalities that this checkpoint accepts."""
    return self.preparer.keys

  @property
  def embed_dim(self) -> int:
    """Size of the joint space."""
    return self.config.model.embed_dim

  # -------------------------------------------------------------- compiled
  def _encode(
    self, params: Any, arrays: Mapping[str, jax.Array]
  ) -> forward.Encoded:
    encoded = forward.encode_inputs(
      self.model, self.config, params, arrays, pad=self.tokenizer.info.pad
    )
    for key in arrays:
      letter, head = MODALITIES[key].letter, MODALITIES[key].head
      if head not in encoded.tokens:
        encoded = encoded.also(head, of=letter)
    return encoded

  def _embed_batch(
    self, params: Any, arrays: Mapping[str, jax.Array], letters: str
  ) -> Float[Array, "B E"]:
    encoded = self._encode(params, arrays)
    return forward.embed(self.model, params, encoded, (letters,))[letters]

  def _context_batch(
    self, params: Any, arrays: Mapping[str, jax.Array], letters: str
  ) -> ContextKV:
    encoded = self._encode(params, arrays)
    return forward.project(self.model, params, encoded, letters)

  # --------------------------------------------------------------- batching
  def _batches(
    self, arrays: Mapping[str, np.ndarray]
  ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of fixed sizes, the last padded; their numbers of real rows."""
    count = len(next(iter(arrays.values())))
    size = min(self.batch_size, 1 << max(count - 1, 0).bit_length())
    for start in range(0, count, size):
      batch = {k: v[start : start + size] for k, v in arrays.items()}
      real = min(size, count - start)
      yield {k: pad_rows(v, size) for k, v in batch.items()}, real

  def _prepare(
    self, inputs: Mapping[str, Sequence[Any]]
  ) -> dict[str, np.ndarray]:
    """Host arrays of aligned lists; the first broken input is an error."""
    arrays = {}
    for key, values in inputs.items():
      array, _, errors = self.preparer.prepare(key, values)
      if errors:
        raise errors[0]
      assert array is not None  # No input failed, and there is at least one.
      arrays[key] = array
    return arrays

  def _chunks(
    self, inputs: Mapping[str, Sequence[Any]]
  ) -> Iterator[tuple[dict[str, Sequence[Any]], dict[str, np.ndarray]]]:
    """Batches of inputs with their prepared arrays, one at a time."""
    count = items.lengths_of(inputs)
    for start in range(0, count, self.batch_size):
      end = start + self.batch_size
      part = {k: v[start:end] for k, v in inputs.items()}
      yield part, self._prepare(part)

  def _embed_rows(
    self, inputs: Mapping[str, Sequence[Any]], letters: str
  ) -> Float[np.ndarray, "N E"]:
    rows = [np.zeros((0, self.embed_dim), np.float32)]
    for part, arrays in self._chunks(inputs):
      rows.append(self.embed_arrays(arrays, letters))
      items.check_finite(rows[-1], part, "the embedding")
    return np.concatenate(rows)

  def embed_arrays(
    self, arrays: Mapping[str, np.ndarray], letters: str
  ) -> Float[np.ndarray, "N E"]:
    """Embeddings of prepared inputs (see `Preparer`), for pipelines.

    Args:
      arrays: {modality: stacked rows}.
      letters: of the head: one letter, or those of a joint head.
    """
    return np.concatenate(
      [
        np.asarray(self._embed(self.params, batch, letters))[:real]
        for batch, real in self._batches(arrays)
      ]
    )

  def match_arrays(
    self,
    ids: Int[np.ndarray, "Q L"],
    arrays: Mapping[str, np.ndarray],
    letters: str,
  ) -> Float[np.ndarray, "N Q"]:
    """Probability in [0, 1] that each row of prepared inputs matches each text.

    Args:
      ids: token ids of the texts.
      arrays: {modality: stacked rows}.
      letters: of the context.
    """
    blocks = []
    for batch, real in self._batches(arrays):
      context = self._context(self.params, batch, letters)
      size = len(next(iter(batch.values())))
      columns = [
        self._match(self.params, np.repeat(row[None], size, axis=0), context)
        for row in ids
      ]
      blocks.append(np.stack(columns, axis=1)[:real])
    return np.concatenate(blocks)

  # ------------------------------------------------------------- public use
  def embed(
    self, *, groups: str | Sequence[str] = (), **inputs: Any
  ) -> dict[str, Float[np.ndarray, "N E"]]:
    """Unit-norm embeddings in the joint space.

    Args:
      groups: joint heads to use, such as "va": aligned lists of those
        modalities give one embedding per row; empty: each modality alone.
      **inputs: lists by modality.

    Returns:
      {modality or group: embeddings}.

    Raises:
      ValueError: for a modality or head that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose embedding is not
        finite.
    """
    if not inputs:
      raise ValueError("no inputs to embed; give e.g. image=['photo.jpg'].")
    embeddings, lists = {}, self._lists(inputs)
    if not groups:
      for key, values in lists.items():
        letter = MODALITIES[key].letter
        embeddings[key] = self._embed_rows({key: values}, letter)
      return embeddings
    for group in [groups] if isinstance(groups, str) else groups:
      self.model.head(group)  # Raises for an unknown one.
      keys = dict.fromkeys(self._key_of(letter, lists) for letter in group)
      embeddings[group] = self._embed_rows(
        {key: lists[key] for key in keys}, group
      )
    return embeddings

  def _lists(self, inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """A user's inputs as lists, checked to be of the model's modalities."""
    for key in inputs:
      self.preparer.check_key(key)
    return {key: items.as_list(key, rows) for key, rows in inputs.items()}

  def _key_of(self, letter: str, inputs: Mapping[str, Any]) -> str:
    """The input for a letter; an image may serve as a video."""
    if key := played_by(letter, inputs):
      return key
    raise ValueError(
      f"letter {letter!r} needs {by_letter(letter).key}=[...]; given: "
      f"{', '.join(inputs)}."
    )

  def _letters(self, inputs: Mapping[str, Any]) -> str:
    """Context letters of the given modalities, in the table's order."""
    if not inputs:
      raise ValueError("no inputs given, e.g. image=['photo.jpg'].")
    letters = [self.preparer.check_key(key).letter for key in inputs]
    if "t" in letters:
      raise ValueError("text=[...] cannot be its own context.")
    return context_order(letters, self.config)

  def match(
    self, *, text: Sequence[str], **inputs: Any
  ) -> Float[np.ndarray, " N"]:
    """Probability in [0, 1] that text i matches the inputs i.

    Args:
      text: one per row.
      **inputs: aligned lists; several modalities form one context.

    Raises:
      ValueError: for a modality that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose probability is
        not finite.
    """
    letters = self._letters(inputs)
    lists = self._lists({"text": text, **inputs})
    rows = [np.zeros((0,), np.float32)]
    for part, arrays in self._chunks(lists):
      for batch, real in self._batches(arrays):
        ids = batch.pop("text")
        context = self._context(self.params, batch, letters)
        rows.append(np.asarray(self._match(self.params, ids, context))[:real])
      items.check_finite(rows[-1], part, "the matching probability")
    return np.concatenate(rows)

  def _contexts(
    self, inputs: Mapping[str, Any], **texts: Sequence[Any] | None
  ) -> Iterator[ContextBatch]:
    """See `TextMethods`."""
    letters, lists = self._letters(inputs), self._lists(inputs)
    given = {key: rows for key, rows in texts.items() if rows is not None}
    items.lengths_of({**given, **lists})
    start = 0
    for part, arrays in self._chunks(lists):
      for batch, real in self._batches(arrays):
        place, prompt = slice(start, start + real), None
        context = self._context(self.params, batch, letters)
        if "question" in given:
          prompt = self._texts.prompts(given["question"][place])
          prompt = pad_rows(prompt, context.keys.shape[1])
        yield ContextBatch(part, context, prompt, place)
        start += real

  def score(
    self, texts: Sequence[str], files: Sequence[Any], *, skip: bool = False
  ) -> scores.Scores:
    """Scores every text against every file.

    Args:
      texts: at least one.
      files: paths; the modality follows from the extension or a prefix,
        "depth:mm:FILE" or "normal:FILE".
      skip: whether to leave out files that cannot be used, as long as others
        can; their names and the reasons are in `failed`.

    Raises:
      DecodeError: for a text or file that cannot be used.
    """
    return scores.score(self, texts, files, skip=skip)


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


def load(
  path: epath.PathLike,
  *,
  check: restore.Check = "full",
  strict: bool = True,
  ema: bool = True,
  batch_size: int = 32,
) -> OmniModel:
  """Loads a checkpoint for use; needs no mesh and no target tree.

  Args:
    path: a workdir (its newest checkpoint that verifies) or a step folder.
    check: "full": content hashes and the self-check's outputs; "fast": hashes
      only; "off": neither.
    strict: false turns mismatches into warnings.
    ema: use the averaged weights if there are any.
    batch_size: largest number of inputs per compiled call.

  Raises:
    CheckpointError: if a file is missing, altered or cut short, or if the
      model's outputs differ from the stored ones.
    ConfigError: if JAX has no device to compute on.
  """
  require_backend()  # else reading the arrays would fail, and seem at fault
  checkpoint = restore.open_checkpoint(
    path, check=check, strict=strict, ema=ema
  )
  notes = list(checkpoint.warnings)
  files = checkpoint.tokenizer_files()
  try:
    tokenizer = tokenizer_from_files(files)
  except ValueError as e:
    raise CheckpointError(f"{checkpoint.folder}: {e}") from e
  if check == "full":
    notes += self_check(
      checkpoint,
      tokenizer,
      strict=strict,
      otherwise="strict=False loads it all the same",
    )
  for note in notes:
    warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
  return OmniModel(
    checkpoint.config,
    checkpoint.params,
    tokenizer,
    step=checkpoint.step,
    batch_size=batch_size,
    notes=notes,
    fingerprint=manifest_lib.fingerprint(checkpoint.folder),
  )
