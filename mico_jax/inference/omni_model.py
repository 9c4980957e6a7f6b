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
from jaxtyping import Float, Int

from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.checkpoint import restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.config import Config
from mico_jax.data.tokenizer import Tokenizer, tokenizer_from_files
from mico_jax.inference import scores
from mico_jax.inference.inside import InsideMethods
from mico_jax.inference.prepare import Preparer
from mico_jax.inference.pure import PureFunctions
from mico_jax.inference.search import SearchMethods
from mico_jax.inference.self_check import model_params, self_check
from mico_jax.inference.skipping import Skipped
from mico_jax.inference.text_methods import (
  Call,
  ContextBatch,
  TextMethods,
  pad_rows,
)
from mico_jax.inference.writing import TextWriter
from mico_jax.inference.zero_shot import ZeroShotMethods
from mico_jax.kernels.compiler import forward_options
from mico_jax.layers.stack import split_layers
from mico_jax.modalities import MODALITIES, by_letter, items, played_by
from mico_jax.models import build
from mico_jax.parallel.backend import require_backend


class OmniModel(ZeroShotMethods, SearchMethods, InsideMethods, TextMethods):
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
    f = self.functions = PureFunctions(self.model, config, tokenizer.info.pad)
    self._embed = jit(
      lambda params, arrays, letters: f.embed(
        params, f.pixels(arrays), letters
      ),
      static_argnums=2,
    )
    self._context = jit(
      lambda params, arrays, letters: f.context(
        params, f.pixels(arrays), letters
      ),
      static_argnums=2,
    )
    self._match = jit(f.match)
    self._texts = TextWriter(self.model, config, tokenizer)

  @property
  def modalities(self) -> tuple[str, ...]:
    """Keys of the modalities that this checkpoint accepts."""
    return self.preparer.keys

  @property
  def embed_dim(self) -> int:
    """Size of the joint space."""
    return self.config.model.embed_dim

  def _embed_rows(
    self, inputs: Mapping[str, Sequence[Any]], letters: str, call: Call
  ) -> Float[np.ndarray, "N E"]:
    skipped = Skipped(call.on_error)
    shape = items.lengths_of(inputs), self.embed_dim
    values = np.full(shape, np.nan, np.float32)
    for part, arrays, rows in self._chunks(inputs, call, "embed", skipped):
      found = self.embed_arrays(arrays, letters, batch_size=call.batch_size)
      good = skipped.finite(found, part, rows, "the embedding")
      values[rows[good]] = found[good]
    return values

  def embed_arrays(
    self,
    arrays: Mapping[str, np.ndarray],
    letters: str,
    *,
    batch_size: int = 0,
  ) -> Float[np.ndarray, "N E"]:
    """Embeddings of prepared inputs (see `Preparer`), for pipelines.

    Args:
      arrays: {modality: stacked rows}.
      letters: of the head: one letter, or those of a joint head.
      batch_size: largest number of rows per compiled call; 0: of the model.
    """
    return np.concatenate(
      [
        np.asarray(self._embed(self.params, batch, letters))[:real]
        for batch, real in self._batches(arrays, batch_size)
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
    self,
    *,
    groups: str | Sequence[str] = (),
    on_error: str = "raise",
    batch_size: int = 0,
    progress: bool | None = None,
    **inputs: Any,
  ) -> dict[str, Float[np.ndarray, "N E"]]:
    """Unit-norm embeddings in the joint space.

    Args:
      groups: joint heads to use, such as "va": aligned lists of those
        modalities give one embedding per row; empty: each modality alone.
      on_error: "skip": the row of an input that cannot be used is NaN, and a
        warning names it; "raise": it is an error.
      batch_size: largest number of inputs per compiled call; 0: of the model.
      progress: whether a bar is shown; None: in a terminal or notebook, to
        calls of more than a few seconds.
      **inputs: lists by modality.

    Returns:
      {modality or group: embeddings}, one row for each input.

    Raises:
      ValueError: for a modality or head that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose embedding is not
        finite; of several that are skipped, if no other is left.
    """
    if not inputs:
      raise ValueError("no inputs to embed; give e.g. image=['photo.jpg'].")
    embeddings, lists = {}, self._lists(inputs)
    call = Call(on_error, batch_size, progress)
    if not groups:
      for key, values in lists.items():
        letter = MODALITIES[key].letter
        embeddings[key] = self._embed_rows({key: values}, letter, call)
      return embeddings
    for group in [groups] if isinstance(groups, str) else groups:
      self.model.head(group)  # Raises for an unknown one.
      keys = dict.fromkeys(self._key_of(letter, lists) for letter in group)
      embeddings[group] = self._embed_rows(
        {key: lists[key] for key in keys}, group, call
      )
    return embeddings

  def __repr__(self) -> str:
    """Name, size, modalities and where it comes from."""
    vision = self.config.model.vision
    count = sum(x.size for x in jax.tree.leaves(self.params))
    return (
      f"OmniModel({self.config.name!r}, step {self.step}: "
      f"{count / 1e6:.3g}M parameters, {vision.encoder} {vision.width} x "
      f"{vision.depth}, {vision.image_size} pixels, joint space of "
      f"{self.embed_dim}; takes {', '.join(self.modalities)}; heads "
      f"{', '.join(self.config.model.heads)})"
    )

  def _key_of(self, letter: str, inputs: Mapping[str, Any]) -> str:
    """The input for a letter; an image may serve as a video."""
    if key := played_by(letter, inputs):
      return key
    raise ValueError(
      f"letter {letter!r} needs {by_letter(letter).key}=[...]; given: "
      f"{', '.join(inputs)}."
    )

  def match(
    self,
    *,
    text: Sequence[str],
    on_error: str = "raise",
    batch_size: int = 0,
    progress: bool | None = None,
    **inputs: Any,
  ) -> Float[np.ndarray, " N"]:
    """Probability in [0, 1] that text i matches the inputs i.

    Args:
      text: one per row.
      on_error: "skip": the probability of inputs that cannot be used is NaN,
        and a warning names them; "raise": they are an error.
      batch_size: see `embed`.
      progress: see `embed`.
      **inputs: aligned lists; several modalities form one context.

    Raises:
      ValueError: for a modality that the checkpoint lacks.
      DecodeError: for an input that cannot be read, or whose probability is
        not finite.
    """
    letters = self._letters(inputs)
    lists = self._lists({"text": text, **inputs})
    call, skipped = Call(on_error, batch_size, progress), Skipped(on_error)
    values = np.full(items.lengths_of(lists), np.nan, np.float32)
    for part, arrays, rows in self._chunks(lists, call, "match", skipped):
      found = []
      for batch, real in self._batches(arrays, batch_size):
        ids = batch.pop("text")
        context = self._context(self.params, batch, letters)
        found.append(np.asarray(self._match(self.params, ids, context))[:real])
      matches = np.concatenate(found)
      good = skipped.finite(matches, part, rows, "the matching probability")
      values[rows[good]] = matches[good]
    return values

  def _contexts(
    self,
    inputs: Mapping[str, Any],
    call: Call,
    what: str,
    skipped: Skipped,
    **texts: Sequence[Any] | None,
  ) -> Iterator[ContextBatch]:
    """See `TextMethods`."""
    letters, lists = self._letters(inputs), self._lists(inputs)
    given = {key: rows for key, rows in texts.items() if rows is not None}
    items.lengths_of({**given, **lists})
    for part, arrays, places in self._chunks(lists, call, what, skipped):
      start = 0
      for batch, real in self._batches(arrays, call.batch_size):
        rows, prompt = places[start : start + real], None
        context = self._context(self.params, batch, letters)
        if "question" in given:
          asked = [given["question"][row] for row in rows]
          prompt = pad_rows(self._texts.prompts(asked), context.keys.shape[1])
        inputs_of = {k: v[start : start + real] for k, v in part.items()}
        yield ContextBatch(inputs_of, context, prompt, rows)
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
    path: a workdir (its newest checkpoint that verifies) or a step folder; a
      name of `mico_jax.list_pretrained()`; or hf://owner/name, a folder that
      a run or `mico-jax export --to torch` wrote.
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
