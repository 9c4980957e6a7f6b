"""Embeddings, contexts and matching probabilities of whole galleries.

Every function runs one compiled step over batches of a fixed size. The last
batch is padded and the results of the padding are dropped, so exactly the
requested items are scored and nothing compiles twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from mico_jax.aliases import Params
from mico_jax.config import Config, to_json
from mico_jax.data.language import max_length
from mico_jax.data.pipeline import evaluation_batches
from mico_jax.data.records import Record
from mico_jax.data.samples import keys_of
from mico_jax.data.sources import Source
from mico_jax.data.stalled import Stalled
from mico_jax.data.statements import stated
from mico_jax.data.tokenizer import Tokenizer
from mico_jax.evaluation.cut_texts import tell_cut
from mico_jax.evaluation.kept_inputs import KeptInputs
from mico_jax.evaluation.results import hash_json
from mico_jax.evaluation.sameness import Broken, Contents, merge_repeats
from mico_jax.inference.prepare import NOT_FINITE, not_finite
from mico_jax.kernels.compiler import forward_options
from mico_jax.modalities import (
  UNSTATED,
  DecodeError,
  by_letter,
  preprocessing,
)
from mico_jax.models import ContextKV, MiCo, forward


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Items with their records and embeddings.

  Attributes:
    records: of every item asked for; None where it could not be read.
    present: modality key -> whether the item has it.
    embeddings: context letters -> unit-norm rows; those of items that lack a
      modality are undefined.
    pooled: letter -> pooled encoder features.
    batches: the host arrays, for contexts; empty unless asked for.
    silent: keys of modalities that an item may lack as long as it has another
      letter of a context; what it lacks is zeros, as in the official code.
    contents: modality key -> hash of what each item shows; empty: unknown.
    repeats: places of items that another one stands for, see `sameness`.
  """

  records: list[Record | None]
  present: Mapping[str, Bool[np.ndarray, " N"]]
  embeddings: Mapping[str, Float[np.ndarray, "N E"]]
  pooled: Mapping[str, Float[np.ndarray, "N _"]]
  batches: KeptInputs | Sequence[Mapping[str, Any]]
  silent: tuple[str, ...] = ()
  contents: Mapping[str, Int[np.ndarray, " N"]] = dataclasses.field(
    default_factory=dict
  )
  repeats: frozenset[int] = frozenset()

  def count(self, limit: int = 0) -> int:
    """Number of items, at most `limit` if it is not 0."""
    items = len(self.records) - len(self.repeats)
    return min(limit or items, items)

  def end(self, limit: int) -> int:
    """The place behind the first `limit` items."""
    items = [i for i in range(len(self.records)) if i not in self.repeats]
    return (
      items[limit - 1] + 1 if 0 < limit <= len(items) else len(self.records)
    )

  def usable(self, letters: str) -> Int[np.ndarray, " M"]:
    """Indices of the items that were read and have all modalities.

    Of `silent` modalities they may lack all but one.
    """
    ok = np.asarray([record is not None for record in self.records], bool)
    ok[list(self.repeats)] = False
    some = np.zeros(len(self.records), bool)
    for letter in letters:
      key = by_letter(letter).key
      some |= self.present[key]
      if key not in self.silent:
        ok &= self.present[key]
    return np.flatnonzero(ok & some)

  def check_finite(self, source: str) -> None:
    """Raises DecodeError naming the first usable sample without finite rows.

    Args:
      source: name of the data source, for the message.
    """
    for letters, rows in self.embeddings.items():
      usable = self.usable(letters)
      bad = usable[not_finite(rows[usable])]
      record = self.records[bad[0]] if len(bad) else None
      if record is not None:
        raise DecodeError(
          f"{source}, sample {record.id!r} ({len(bad)} in all): the embedding "
          f"of {letters!r} {NOT_FINITE}"
        )


class _Steps:
  """Compiled functions of an embedder, which take the parameters."""

  def __init__(self, model: MiCo, config: Config, tokenizer: Tokenizer):
    self._model, self._config = model, config
    self._pad = tokenizer.info.pad
    jit = functools.partial(jax.jit, compiler_options=forward_options())
    self.embed = jit(self._embed_items, static_argnums=(2, 3))
    self.text = jit(self._embed_text)
    self.context = jit(self._make_context, static_argnums=2)
    self.match = jit(self._match_pairs)
    self.others: dict[str, Any] = {}

  def _encode(
    self, params: Params, inputs: Mapping[str, Array]
  ) -> forward.Encoded:
    return forward.encode_inputs(
      self._model, self._config, params, inputs, pad=self._pad
    )

  def _embed_items(
    self,
    params: Params,
    inputs: Mapping[str, Array],
    contexts: tuple[str, ...],
    with_pooled: bool,
  ) -> tuple[dict[str, Array], dict[str, Array]]:
    encoded = self._encode(params, inputs)
    embeddings = forward.embed(self._model, params, encoded, contexts)
    return embeddings, dict(encoded.pooled) if with_pooled else {}

  def _embed_text(
    self, params: Params, ids: Int[Array, "B L"]
  ) -> Float[Array, "B E"]:
    return forward.embed_text(self._model, params, ids)

  def _make_context(
    self, params: Params, inputs: Mapping[str, Array], letters: str
  ) -> ContextKV:
    encoded = self._encode(params, inputs)
    return forward.project(self._model, params, encoded, letters)

  def _match_pairs(
    self,
    params: Params,
    context: ContextKV,
    rows: Int[Array, " P"],
    ids: Int[Array, "P L"],
  ) -> Float[Array, " P"]:
    return forward.match_probability(
      self._model, params, ids, context.take(rows)
    )


_MAX_STEPS = 4
_STEPS: dict[tuple[str, str], _Steps] = {}


def _steps_of(model: MiCo, config: Config, tokenizer: Tokenizer) -> _Steps:
  """Compiled functions, shared by all evaluations of a run."""
  run = (to_json(config), tokenizer.sha256)
  if run not in _STEPS:
    while len(_STEPS) >= _MAX_STEPS:
      del _STEPS[next(iter(_STEPS))]
    _STEPS[run] = _Steps(model, config, tokenizer)
  return _STEPS[run]


class Embedder:
  """A model with its parameters, ready to embed and match.

  Attributes:
    model: from `mico_jax.models.build`.
    config: of the run: how inputs are read and preprocessed.
    tokenizer: of the run.
    batch_size: rows of every compiled step.
  """

  def __init__(
    self,
    model: MiCo,
    params: Params,
    config: Config,
    tokenizer: Tokenizer,
    *,
    batch_size: int = 0,
    workdir: str = "",
  ):
    """Keeps the parts; nothing is computed yet.

    Args:
      model: the model.
      params: its parameters (averaged ones, if the run keeps them).
      config: of the run.
      tokenizer: of the run.
      batch_size: rows per step; 0: config.evaluation.batch_size.
      workdir: of the run, which keeps the samples that stall; "": none.
    """
    self.model, self.params = model, params
    self._stalled = Stalled(workdir, "evaluation") if workdir else None
    self.config, self.tokenizer = config, tokenizer
    self.batch_size = batch_size or config.evaluation.batch_size
    self._steps = _steps_of(model, config, tokenizer)

  def preprocessing_sha256(self, keys: Sequence[str], source: str) -> str:
    """Hash of how these modalities of a source, and texts, are read."""
    config = self.config
    spec = config.data.sources[source]
    told = {k: stated(spec, k) for k in keys}
    units = {k: dataclasses.asdict(v) for k, v in told.items() if v != UNSTATED}
    modes = {k: preprocessing.mode_of(config, k, train=False) for k in keys}
    inputs = {k: preprocessing.input_config(config, k) for k in keys}
    return hash_json(
      {
        "modes": {k: mode.name for k, mode in modes.items()},
        "frames": {k: options.frames for k, options in inputs.items()},
        **preprocessing.samplings(config, keys),
        **({"stated": units} if units else {}),
        "image_size": config.model.vision.image_size,
        "audio": dataclasses.asdict(config.data.audio),
        "tokenizer": self.tokenizer.sha256,
        "max_length": dict(config.data.tokenizer.max_length),
      }
    )

  # --------------------------------------------------------------------- host
  def compiled(self, name: str, make: Callable[[], Any]) -> Any:
    """A compiled function that other evaluations of the run share.

    Args:
      name: of the function.
      make: makes it, where it does not exist yet; it must not hold parameters.
    """
    if name not in self._steps.others:
      self._steps.others[name] = make()
    return self._steps.others[name]

  def encode_texts(
    self, texts: Sequence[str], kind: str
  ) -> Int[np.ndarray, "N L"]:
    """Token ids of texts of one caption kind."""
    length = max_length(self.config.data.tokenizer, (kind,))
    rows = [self.tokenizer.encode(text, length) for text in texts]
    ids = np.asarray(rows, np.int32).reshape(-1, length)
    tell_cut(self.tokenizer, texts, ids, kind)
    return ids

  def embed_texts(
    self, texts: Sequence[str], kind: str = "default"
  ) -> Float[np.ndarray, "N E"]:
    """Unit-norm embeddings of texts.

    Args:
      texts: any number.
      kind: caption kind; decides the token count.

    Raises:
      ValueError: for no texts.
      DecodeError: naming the first text without finite embedding.
    """
    if not texts:
      raise ValueError("no texts to embed.")
    ids = self.encode_texts(texts, kind)
    parts = [
      np.asarray(self._steps.text(self.params, rows))[:valid]
      for rows, valid in _padded(ids, self.batch_size)
    ]
    rows = np.concatenate(parts).astype(np.float32)
    _check_rows(rows, texts, "the embedding")
    return rows

  def embed_gallery(
    self,
    source_name: str,
    contexts: Sequence[str],
    *,
    source: Source | None = None,
    size: int = 0,
    indices: Sequence[int] | None = None,
    records: Sequence[Record] | None = None,
    also_read: Sequence[str] = (),
    keep_batches: bool = False,
    keep_pooled: bool = False,
  ) -> Gallery:
    """Reads and embeds items once per modality.

    Args:
      source_name: data source of the config.
      contexts: letters to embed, e.g. ("v", "a", "va").
      source: the open source; None: opened here.
      size: number of samples, from the first; 0: all.
      indices: of the samples to read, instead of the first ones.
      records: to read, instead of samples of the source.
      also_read: letters to read without embedding them.
      keep_batches: keep the arrays, for matching and captions.
      keep_pooled: keep encoder features, for probes.
    """
    keys = keys_of((*contexts, *also_read))
    records_: list[Record | None] = []
    embedded: dict[str, list[np.ndarray]] = {c: [] for c in contexts}
    pooled: dict[str, list[np.ndarray]] = {}
    present: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    broken, contents = Broken(source_name), Contents(keys)
    read = lambda told=None: evaluation_batches(
      self.config,
      source_name,
      size=size,
      batch_size=self.batch_size,
      keys=keys,
      tokenizer=self.tokenizer,
      source=source,
      indices=indices,
      records=records,
      stalled=self._stalled,
      tell_broken=told,
    )
    kept = KeptInputs(lambda: (batch["inputs"] for batch, _ in read()))
    for batch, group in read(broken.add):
      n = len(group)
      rows, features = self._steps.embed(
        self.params, batch["inputs"], tuple(contexts), keep_pooled
      )
      for c, value in rows.items():
        embedded[c].append(np.asarray(value, np.float32)[:n])
      for letter, value in features.items():
        pooled.setdefault(letter, []).append(np.asarray(value, np.float32)[:n])
      for key in keys:
        present[key].append(np.asarray(batch["present"][key][:n]))
      contents.add(batch["inputs"], n)
      records_ += group
      if keep_batches:
        kept.add(batch["inputs"])
    if not records_:
      raise ValueError(f"data source {source_name!r} gave no samples.")
    broken.tell(len(records_))
    hashes, repeats = contents.arrays(), frozenset[int]()
    there = {key: np.concatenate(x) for key, x in present.items()}
    if records is None:
      records_, repeats = merge_repeats(
        records_,
        hashes,
        there,
        source_name,
        label=self.config.evaluation.label,
      )
    gallery = Gallery(
      records=records_,
      present=there,
      embeddings={c: np.concatenate(x) for c, x in embedded.items()},
      pooled={x: np.concatenate(v) for x, v in pooled.items()},
      batches=kept,
      silent=self.config.evaluation.silent,
      contents=hashes,
      repeats=repeats,
    )
    gallery.check_finite(source_name)
    return gallery

  def temperature(self, letters: str) -> float:
    """The divisor of similarities between texts and a context."""
    return float(self.model.temperature(self.params, (letters,)))

  def contexts(
    self, gallery: Gallery, letters: str
  ) -> Iterable[tuple[int, ContextKV]]:
    """The first item and the projected context of each batch of a gallery."""
    keys = keys_of((letters,))
    for number, inputs in enumerate(gallery.batches):
      chosen = {key: inputs[key] for key in keys}
      context = self._steps.context(self.params, chosen, letters)
      yield number * self.batch_size, context

  def match(
    self,
    gallery: Gallery,
    letters: str,
    texts: Sequence[str],
    kind: str,
    pairs: Int[np.ndarray, "P 2"],
  ) -> Float[np.ndarray, " P"]:
    """P(match) of pairs (text, item).

    Each batch of items is encoded once for all its pairs.

    Args:
      gallery: made with `keep_batches`.
      letters: of the context.
      texts: that pairs point to.
      kind: caption kind of the texts.
      pairs: index of the text and of the item.

    Raises:
      ValueError: if the gallery kept no batches.
      DecodeError: naming the text of the first pair without finite P(match).
    """
    if not gallery.batches:
      raise ValueError("matching needs a gallery made with keep_batches=True.")
    ids = self.encode_texts(texts, kind)
    out = np.zeros(len(pairs), np.float32)
    for start, context in self.contexts(gallery, letters):
      end = start + self.batch_size
      mine = np.flatnonzero((pairs[:, 1] >= start) & (pairs[:, 1] < end))
      for chosen, valid in _padded(mine, self.batch_size):
        scores = self._steps.match(
          self.params,
          context,
          (pairs[chosen, 1] - start).astype(np.int32),
          ids[pairs[chosen, 0]],
        )
        out[chosen[:valid]] = np.asarray(scores)[:valid]
    _check_rows(out[:, None], [texts[i] for i in pairs[:, 0]], "P(match)")
    return out


def joint_scores(
  matched: Float[np.ndarray, "*N"],
  similarity: Float[np.ndarray, "*N"],
  temperature: float,
) -> Float[np.ndarray, "*N"]:
  """Log-odds of a match plus similarity over temperature, in nats.

  Both heads judge the same pair, as in BLIP's re-ranking (arXiv:2201.12086),
  which adds the logit and the similarity itself.

  Args:
    matched: P(match), of float32: kept 1e-7 from 0 and 1.
    similarity: of unit-norm embeddings.
    temperature: that the contrastive loss divides by.
  """
  p = np.clip(np.asarray(matched, np.float64), 1e-7, 1 - 1e-7)
  return np.log(p) - np.log1p(-p) + similarity / temperature


def _check_rows(
  rows: Float[np.ndarray, "N E"], texts: Sequence[str], what: str
) -> None:
  """Raises DecodeError naming the first text whose row is not finite."""
  bad = np.flatnonzero(not_finite(rows))
  if len(bad):
    raise DecodeError(
      f"text {texts[bad[0]]!r} ({len(bad)} in all): {what} {NOT_FINITE}"
    )


def _padded(
  rows: Shaped[np.ndarray, "N ..."], size: int
) -> Iterable[tuple[Shaped[np.ndarray, "S ..."], int]]:
  """Chunks of exactly `size` rows (the last repeats a row) and their count."""
  for start in range(0, len(rows), size):
    chunk = rows[start : start + size]
    valid = len(chunk)
    if valid < size:
      filler = np.repeat(chunk[:1], size - valid, axis=0)
      chunk = np.concatenate([chunk, filler])
    yield chunk, valid
