"""The door of the token cross-entropy, with logits and without.

`token_cross_entropy` takes logits. `tied_cross_entropy` takes hidden states and
the tied table, and holds the logits of a block of positions at most:

  dense    all logits, where they fit into one block
  chunked  scored positions only, a block at a time
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float, Int

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding, parts
from mico_jax.kernels.cross_entropy import tied, xla
from mico_jax.kernels.dtypes import accumulation_dtype

IGNORE = -100  # label of a position that is not scored
BLOCK_BYTES = 64 * 2**20  # of the logits of a block

BACKENDS: dict[str, Callable[..., tuple[Array, Array]]] = {"xla": xla.loss}
TIED_BACKENDS = ("dense", "chunked")


@functools.cache
def _log_once(message: str) -> None:
  logging.getLogger(__name__).info("%s", message)


def _say(message: str) -> None:
  if not target.current().plain:
    _log_once(message)


def token_cross_entropy(
  logits: Float[Array, "*B V"],
  labels: Int[Array, "*B"],
  *,
  label_smoothing: float = 0.0,
  backend: str = "auto",
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
  """Cross-entropy of each labelled position.

  Args:
    logits: unnormalised; any float type, computed in at least float32.
    labels: ids in [0, V), or `IGNORE` where nothing is scored.
    label_smoothing: mass moved from the label to the whole vocabulary.
    backend: "auto" or a key of `BACKENDS`.

  Returns:
    (loss in nats, 0 where ignored; whether the best id is the label, false
    where ignored).

  Raises:
    ValueError: if the shapes do not fit or the backend is unknown.
  """
  if logits.shape[:-1] != labels.shape:
    raise ValueError(
      f"{logits.shape=} must be {labels.shape=} followed by the vocabulary."
    )
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must lie in [0, 1).")
  name = "xla" if backend == "auto" else backend
  if name not in BACKENDS:
    raise ValueError(
      f"unknown cross-entropy {backend=}; known: auto, {', '.join(BACKENDS)}."
    )
  _say(f"token cross-entropy: {name}")
  return BACKENDS[name](
    logits, labels, label_smoothing=label_smoothing, ignore=IGNORE
  )


def tied_cross_entropy(
  x: Float[Array, "*B W"],
  words: Float[Array, "V W"],
  bias: Float[Array, " V"],
  labels: Int[Array, "*B"],
  *,
  label_smoothing: float = 0.0,
  partition: BatchSharding | None = None,
  chunk: int = 0,
  backend: str = "auto",
) -> tuple[Float[Array, "*B"], Bool[Array, "*B"]]:
  """Cross-entropy of each labelled position under the logits x words^T + bias.

  Args:
    x: what the decoder reads, in the compute dtype; sums are in float32.
    words: the table, cast to the dtype of `x`.
    bias: of each word.
    labels: ids in [0, V), or `IGNORE` where nothing is scored or decoded.
    label_smoothing: mass moved from the label to the whole vocabulary.
    partition: how axis 0 lies on a mesh; None: the compiler decides.
    chunk: positions decoded at a time; 0: as many as fit into 64 MiB.
    backend: "auto" or one of `TIED_BACKENDS`.

  Returns:
    (loss in nats, 0 where ignored; whether the best id is the label, false
    where ignored).

  Raises:
    ValueError: if shapes do not fit or the backend is unknown.
    NotImplementedError: if "chunked" is named and the rows do not divide.
  """
  if x.shape[:-1] != labels.shape or bias.shape != words.shape[:1]:
    raise ValueError(
      f"{x.shape=} must be {labels.shape=} and a width, {bias.shape=} the "
      f"words of {words.shape=}."
    )
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must lie in [0, 1).")
  if backend not in ("auto", *TIED_BACKENDS):
    raise ValueError(
      f"unknown cross-entropy {backend=}; known: auto, "
      f"{', '.join(TIED_BACKENDS)}."
    )
  count = parts(partition)
  per_position = words.shape[0] * accumulation_dtype(x.dtype).itemsize
  positions = max(labels.size // count, 1)
  divides = labels.ndim > 0 and labels.shape[0] % count == 0
  size = f"logits of {positions * per_position / 2**20:.1f} MiB a device"
  name, reason = backend, "named"
  if target.current().plain:
    name, reason = "dense", "counted"
  elif backend == "auto" and not divides:
    name, reason = "dense", f"rows do not divide over {count} devices"
  elif backend == "auto":
    small = positions * per_position <= BLOCK_BYTES
    name, reason = ("dense" if small else "chunked"), size
  elif backend == "chunked" and not divides:
    raise NotImplementedError(
      f"cross-entropy: not chunked: {labels.shape=} does not divide over "
      f"{count} devices."
    )
  _say(f"caption cross-entropy: {name} ({reason})")
  precision = getattr(jax.config, "jax_default_matmul_precision", None)
  if name == "dense":
    scores = tied.logits(x, words, bias, precision)
    return xla.loss(
      scores, labels, label_smoothing=label_smoothing, ignore=IGNORE
    )
  form = tied.Form(
    label_smoothing=label_smoothing,
    ignore=IGNORE,
    chunk=min(chunk or max(BLOCK_BYTES // per_position, 1), positions),
    precision=precision,
    partition=partition if count > 1 else None,
  )
  values, hits = tied.loss(
    form, x.reshape(-1, x.shape[-1]), words, bias, labels.reshape(-1)
  )
  return values.reshape(labels.shape), hits.reshape(labels.shape)
