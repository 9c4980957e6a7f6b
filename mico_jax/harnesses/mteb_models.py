"""Checkpoints as models of mteb: MTEB, MIEB, MAEB and MVEB.

    import mteb
    from mico_jax.harnesses.mteb_models import MiCoEncoder, MiCoReranker

    tasks = mteb.get_tasks(["Flickr30kT2IRetrieval"])
    mteb.evaluate(MiCoEncoder("runs/demo"), tasks)
    mteb.evaluate(MiCoReranker("runs/demo", top=50), tasks)

`MiCoEncoder` embeds texts, pictures, sounds, videos and, where the checkpoint
has a joint head, videos with their sound. `MiCoReranker` searches by the
embeddings and orders the best candidates by the matching head; it is a class of
its own because mteb takes a class with both interfaces for a cross-encoder.

Sounds are read at their own rate and videos by the checkpoint's choice of
frames, so mteb's collators, which resample by torchaudio, are not used. Run
with mteb 2.26.24. mteb has no depth, normals or other sensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax import extras

try:
  from mteb._create_dataloaders import create_dataloader
  from mteb.models.abs_encoder import AbsEncoder
  from mteb.models.model_meta import ModelMeta, ScoringFunction
  from mteb.types import PromptType
except ImportError as error:
  raise ImportError(
    f"mteb cannot be loaded ({error}): {extras.install('mteb')}.",
    name=error.name,
  ) from error

from mico_jax.harnesses.inputs import as_input
from mico_jax.inference.omni_model import OmniModel, load
from mico_jax.modalities import MODALITIES

# Columns of a batch, which mteb names as we name modalities.
COLUMNS = ("text", "image", "video", "audio")
Rows = dict[str, list[Any]]  # modality -> inputs


def _open(model: OmniModel | str) -> OmniModel:
  return load(model) if isinstance(model, str) else model


def _meta(model: OmniModel, name: str) -> Any:
  """What mteb writes beside the results."""
  return ModelMeta.create_empty(
    overwrites={
      "name": f"mico_jax/{name}",
      "revision": model.fingerprint[:40] or None,
      "embed_dim": model.embed_dim,
      "max_tokens": model.preparer.max_length("text"),
      "framework": ["JAX"],
      "similarity_fn_name": ScoringFunction.COSINE,
      "use_instructions": False,
      "modalities": [key for key in COLUMNS if key in model.modalities],
    }
  )


def _name(model: OmniModel | str) -> str:
  return model.rstrip("/").rsplit("/", 1)[-1] if isinstance(model, str) else ""


class MiCoEncoder(AbsEncoder):
  """Embeddings of a checkpoint for mteb (its `EncoderProtocol`)."""

  def __init__(
    self,
    model_name: OmniModel | str,
    revision: str | None = None,
    *,
    device: str | None = None,
    **kwargs: Any,
  ):
    """Loads a checkpoint.

    Args:
      model_name: a loaded checkpoint, or the path of one.
      revision: not used; the results carry the checkpoint's hash.
      device: not used; JAX chooses.
      **kwargs: "name" in the results; else the name of the folder.
    """
    del revision, device
    self.model = _open(model_name)
    name = kwargs.get("name") or _name(model_name) or self.model.config.name
    self.mteb_model_meta = _meta(self.model, name)

  def encode(
    self,
    inputs: Any,
    *,
    task_metadata: Any = None,
    hf_split: str = "",
    hf_subset: str = "",
    prompt_type: Any = None,
    **kwargs: Any,
  ) -> Float[np.ndarray, "N E"]:
    """Embeds the batches of a data loader.

    Raises:
      ValueError: for batches of modalities without a (joint) head.
    """
    del task_metadata, hf_split, hf_subset, prompt_type, kwargs
    parts = [np.zeros((0, self.model.embed_dim), np.float32)]
    parts += [embed_rows(self.model, rows) for rows in batches(inputs, self)]
    return np.concatenate(parts)


class MiCoReranker:
  """Search with re-ranking by the matching head (mteb's `SearchProtocol`).

  For each query the `top` best candidates by cosine are scored by P(match) of
  the head, and lie above all others, which keep the order of the cosine.
  """

  def __init__(self, model: OmniModel | str, *, top: int = 50, name: str = ""):
    """Loads a checkpoint.

    Args:
      model: a loaded checkpoint, or the path of one.
      top: candidates of a query that the head scores.
      name: in the results; "": that of the folder.

    Raises:
      ValueError: if `top` is no positive whole number.
    """
    if top != int(top) or top < 1:
      raise ValueError(f"{top=} candidates cannot be re-ranked; use 1 or more.")
    self.model, self.top = _open(model), top
    name = name or _name(model) or self.model.config.name
    self.mteb_model_meta = _meta(self.model, f"{name}-reranked-{top}")
    self._corpus: Any = None

  def index(self, corpus: Any, **kwargs: Any) -> None:
    """Keeps the corpus."""
    del kwargs
    self._corpus = corpus

  def search(
    self,
    queries: Any,
    *,
    task_metadata: Any,
    top_k: int,
    encode_kwargs: Mapping[str, Any] | None = None,
    top_ranked: Mapping[str, Sequence[str]] | None = None,
    num_proc: int | None = None,
    **kwargs: Any,
  ) -> dict[str, dict[str, float]]:
    """Scores of the best candidates of each query.

    Raises:
      ValueError: if neither queries nor corpus are texts alone.
    """
    del kwargs
    size = dict(encode_kwargs or {}).get("batch_size", 32)
    read = lambda data, kind: _joined(
      batches(
        create_dataloader(
          data,
          task_metadata=task_metadata,
          prompt_type=kind,
          batch_size=size,
          num_proc=num_proc,
        ),
        self,
      )
    )
    asked = read(queries, PromptType.query)
    found = read(self._corpus, PromptType.document)
    ids, documents = list(queries["id"]), list(self._corpus["id"])
    similar = embed_rows(self.model, asked) @ embed_rows(self.model, found).T
    similar = similar.astype(np.float64)
    if top_ranked is not None:
      place = {name: i for i, name in enumerate(documents)}
      allowed = np.zeros(similar.shape, bool)
      for row, name in enumerate(ids):
        allowed[row, [place[x] for x in top_ranked.get(name, ())]] = True
      similar[~allowed] = -np.inf
    order = np.argsort(-similar, axis=1, kind="stable")
    scores = self._matched(asked, found, similar, order[:, : self.top])
    out = {}
    for row, name in enumerate(ids):
      best = np.argsort(-scores[row], kind="stable")[:top_k]
      out[name] = {
        documents[i]: float(scores[row, i])
        for i in best
        if np.isfinite(scores[row, i])
      }
    return out

  def _matched(
    self,
    asked: Rows,
    found: Rows,
    similar: Float[np.ndarray, "Q G"],
    best: Any,
  ) -> Float[np.ndarray, "Q G"]:
    """Similarities with 2 + P(match) in [2, 3] in place of the best ones."""
    out = similar.copy()
    pairs = [
      (row, int(i))
      for row, columns in enumerate(best)
      for i in columns
      if np.isfinite(similar[row, i])
    ]
    texts, items, flip = asked, found, False
    if set(asked) != {"text"}:
      texts, items, flip = found, asked, True
    if set(texts) != {"text"} or "text" in items:
      raise ValueError(
        "matching compares texts with other inputs; got queries of "
        f"{' + '.join(asked)} and a corpus of {' + '.join(found)}."
      )
    # Each item is read and encoded once, for all texts that it meets.
    meets: dict[int, list[int]] = {}
    for row, column in pairs:
      text, item = (column, row) if flip else (row, column)
      meets.setdefault(item, []).append(text)
    for item, chosen in meets.items():
      probability = _match_one(
        self.model,
        {key: values[item] for key, values in items.items()},
        [texts["text"][i] for i in chosen],
      )
      for text, value in zip(chosen, probability, strict=True):
        out[(item, text) if flip else (text, item)] = 2.0 + float(value)
    return out


def _match_one(
  model: OmniModel, item: Mapping[str, Any], texts: Sequence[str]
) -> Float[np.ndarray, " Q"]:
  """P(match) of one item with several texts."""
  prepare = model.preparer.prepare_one
  ids = np.stack([prepare("text", text) for text in texts])
  arrays = {key: prepare(key, value)[None] for key, value in item.items()}
  letters = joint_letters(model, item)
  return model.match_arrays(ids, arrays, letters)[0]


def joint_letters(model: OmniModel, keys: Iterable[str]) -> str:
  """The letters of modalities in the order of the checkpoint's groups."""
  wanted = {MODALITIES[key].letter for key in keys}
  heads = (head for head in model.config.model.heads if set(head) == wanted)
  return next(heads, "".join(sorted(wanted)))


def embed_rows(model: OmniModel, rows: Rows) -> Float[np.ndarray, "N E"]:
  """Embeddings of aligned inputs: of a modality, or of a joint head.

  Raises:
    ValueError: without such a head.
  """
  inputs: dict[str, Any] = dict(rows)
  if len(inputs) == 1:
    (embedding,) = model.embed(**inputs).values()
    return embedding
  group = joint_letters(model, inputs)
  try:
    return model.embed(groups=group, **inputs)[group]
  except ValueError as error:
    joint = [head for head in model.config.model.heads if len(head) > 1]
    raise ValueError(
      f"the task gives {' + '.join(rows)} together; joint heads of the "
      f"checkpoint: {', '.join(joint) or 'none'} ({error})"
    ) from None


def _joined(parts: Iterable[Rows]) -> Rows:
  """Batches as one."""
  out: Rows = {}
  for rows in parts:
    for key, values in rows.items():
      out.setdefault(key, []).extend(values)
  return out


def batches(loader: Any, holder: MiCoEncoder | MiCoReranker) -> Iterable[Rows]:
  """The batches of a data loader of mteb, as inputs of `OmniModel.embed`.

  Raises:
    ValueError: for a batch without a column that is known, or with a row that
      lacks one.
  """
  model = holder.model
  for batch in loader:
    rows: Rows = {}
    for key in COLUMNS:
      values = list(batch[key]) if key in batch else []
      missing = [i for i, value in enumerate(values) if value is None]
      if missing:
        raise ValueError(f"row {missing[0]} of a batch has no {key!r}.")
      if values:
        rows[key] = [as_input(model, key, value) for value in values]
    if not rows:
      known = ", ".join(COLUMNS)
      raise ValueError(f"a batch has {', '.join(batch)}; expected {known}.")
    yield rows
