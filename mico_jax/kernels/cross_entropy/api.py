"""Entry points of the token cross-entropy, with and without given logits.

`token_cross_entropy` takes logits. `tied_cross_entropy` takes hidden states and
the tied embedding table, and computes logits for at most a block of positions:

  dense    all logits, where they fit into one block
  chunked  scored positions only, a block at a time
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float, Int

from mico_jax.kernels import target
from mico_jax.kernels.batch_sharding import BatchSharding, parts
from mico_jax.kernels.cross_entropy import tied, xla
from mico_jax.kernels.dtypes import accumulation_dtype

IGNORE = -100  # label of a position that is not scored
BLOCK_BYTES = 64 * 2**20  # most bytes of the logits of a block

BACKENDS: dict[str, Callable[..., tuple[Array, Array]]] = {"xla": xla.loss}
TIED_BACKENDS = ("dense", "chunked")


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
    label_smoothing: target mass moved from the label to the whole vocabulary,
      in [0, 1).
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
  _check_smoothing(label_smoothing)
  name = "xla" if backend == "auto" else backend
  if name not in BACKENDS:
    raise ValueError(
      f"unknown cross-entropy {backend=}; known: auto, {', '.join(BACKENDS)}."
    )
  target.log_once(__name__, f"token cross-entropy: {name}")
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
    x: hidden states in the compute dtype; sums are in float32.
    words: embedding table, cast to the dtype of `x`.
    bias: bias of each word's logit.
    labels: ids in [0, V), or `IGNORE` where nothing is scored or decoded.
    label_smoothing: target mass moved from the label to the whole vocabulary,
      in [0, 1).
    partition: sharding of axis 0 over a mesh; None: the compiler decides.
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
  _check_smoothing(label_smoothing)
  count = parts(partition)
  bytes_each = words.shape[0] * accumulation_dtype(x.dtype).itemsize
  positions = max(labels.size // count, 1)
  divides = labels.ndim > 0 and labels.shape[0] % count == 0
  name = _choose_tied(backend, positions * bytes_each, count, divides=divides)
  precision = getattr(jax.config, "jax_default_matmul_precision", None)
  if name == "dense":
    scores = tied.logits(x, words, bias, precision)
    return xla.loss(
      scores, labels, label_smoothing=label_smoothing, ignore=IGNORE
    )
  form = tied.Form(
    label_smoothing=label_smoothing,
    ignore=IGNORE,
    chunk=min(chunk or max(BLOCK_BYTES // bytes_each, 1), positions),
    precision=precision,
    partition=partition if count > 1 else None,
  )
  values, hits = tied.loss(
    form, x.reshape(-1, x.shape[-1]), words, bias, labels.reshape(-1)
  )
  return values.reshape(labels.shape), hits.reshape(labels.shape)


def _check_smoothing(label_smoothing: float) -> None:
  if not 0 <= label_smoothing < 1:
    raise ValueError(f"{label_smoothing=} must lie in [0, 1).")


def _choose_tied(backend: str, size: int, count: int, *, divides: bool) -> str:
  """The backend of `tied_cross_entropy`; logs why.

  Args:
    backend: "auto" or one of `TIED_BACKENDS`.
    size: bytes of all logits of a device.
    count: number of devices.
    divides: whether the rows divide over the devices.

  Raises:
    ValueError: for an unknown backend.
    NotImplementedError: if "chunked" is named and the rows do not divide.
  """
  if backend not in ("auto", *TIED_BACKENDS):
    raise ValueError(
      f"unknown cross-entropy {backend=}; known: auto, "
      f"{', '.join(TIED_BACKENDS)}."
    )
  if target.current().plain:
    return "dense"
  uneven = f"rows do not divide over {count} devices"
  name, reason = backend, "named"
  if backend == "auto" and not divides:
    name, reason = "dense", uneven
  elif backend == "auto":
    name = "dense" if size <= BLOCK_BYTES else "chunked"
    reason = f"logits of {size / 2**20:.1f} MiB a device"
  elif backend == "chunked" and not divides:
    raise NotImplementedError(f"cross-entropy: not chunked: {uneven}.")
  target.log_once(__name__, f"caption cross-entropy: {name} ({reason})")
  return name
